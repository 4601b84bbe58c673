/* The seam between the runtime and an accelerator. A plugin (libsq_cuda, cuda/) keeps the last layers of a
 * model, from `first_layer` on, with the final norm and the head, and runs them on the tokens of a session;
 * the CPU runs the layers before. With first_layer 0 the plugin embeds the tokens too.
 *
 * A plugin is a shared library that exports one function, sq_device_api_get. It reads the structs of these
 * headers and calls no function of libsq, so it is built of the same sources and checked by
 * SQ_DEVICE_VERSION. C and C++ compile this header. */
#ifndef SQ_DEVICE_H
#define SQ_DEVICE_H

#ifdef __cplusplus
extern "C" {
#endif

#include "model.h"

/* Changes with every change of this header, or of a struct of model.h, tensor.h or kernels.h. */
enum { SQ_DEVICE_VERSION = 3 };

/* Weights of one model on the device; used by any number of sessions, from any thread. */
typedef struct sq_device sq_device;
/* One timeline's KV cache and workspace on the device; one thread at a time uses it. */
typedef struct sq_device_session sq_device_session;

typedef struct sq_device_info {
    char name[128]; /* "NVIDIA H200" */
    uint64_t n_bytes, n_bytes_free;
} sq_device_info;

/* Consecutive tokens of one timeline. */
typedef struct sq_device_job {
    const sq_token *tokens; /* [n_tokens] */
    uint32_t n_tokens;      /* at most run_tokens */
    uint32_t position;      /* of tokens[0]; the cache holds all positions before it */
    bool long_rope;         /* rotate by the second half of a rope's frequencies */
    const float *x;         /* the residual stream before first_layer, token t at x + t · stride; */
    size_t stride;          /* NULL where first_layer is 0 */
    uint32_t n_logits;      /* of the last n_logits tokens logits are computed, and stay on the device */
} sq_device_job;

typedef struct sq_device_api {
    uint32_t version;    /* SQ_DEVICE_VERSION */
    const char *name;    /* "cuda" */
    uint32_t run_tokens; /* of a job at most; 8 or more */

    /* The device that open would use. SQ_ERROR_UNSUPPORTED and a sentence where there is none, or where
     * its driver is too old. */
    sq_status (*find)(sq_device_info *info, sq_error *error);
    /* Whether the plugin has all that layers [first_layer, n_layers) of the model need; a sentence why not.
     */
    sq_status (*check)(const sq_model *model, uint32_t first_layer, sq_error *error);
    /* Device memory of open, and of session_create. */
    uint64_t (*model_bytes)(const sq_model *model, uint32_t first_layer);
    uint64_t (*session_bytes)(const sq_model *model, uint32_t first_layer, uint32_t n_ctx, sq_kv_type kv);

    /* Uploads the weights, repacked. `model` stays open until close. */
    sq_status (*open)(const sq_model *model, uint32_t first_layer, sq_device **device, sq_error *error);
    void (*close)(sq_device *device);

    sq_status (*session_create)(sq_device *device, uint32_t n_ctx, sq_kv_type kv, sq_device_session **session,
                                sq_error *error);
    void (*session_free)(sq_device_session *session);

    /* Runs the job and waits for it. `greedy`, where not NULL, receives the token of the largest logit after
     * each of the last n_logits tokens, the lowest id at ties. */
    sq_status (*run)(sq_device_session *session, const sq_device_job *job, sq_token *greedy, sq_error *error);
    /* Copies rows [first, first + n) of the last job's logits [n_logits, n_vocab] to `logits`. */
    sq_status (*read_logits)(sq_device_session *session, uint32_t first, uint32_t n, float *logits,
                             sq_error *error);
} sq_device_api;

typedef const sq_device_api *(*sq_device_api_get_function)(void);

#ifdef __cplusplus
}
#endif

#endif
