/* A timeline on the device: its KV cache, the activations of a run, and graphs of the steps that repeat. */
#ifndef SQ_CUDA_SESSION_H
#define SQ_CUDA_SESSION_H

#include "weights.h"

/* Logits that are there at once; those of longer runs are computed piece by piece when they are read. */
enum { GPU_LOGITS = 64 };

struct sq_device_session {
    sq_device *device;
    uint32_t n_ctx;
    sq_kv_type kv;
    cudaStream_t stream;
    void *memory;   /* all that follows on the device, in one piece */
    gpu_step *host; /* pinned, and greedy behind it */
    sq_token *host_greedy;

    gpu_step *step;
    float *given;     /* [GPU_RUN_TOKENS, n_embd] from the CPU; NULL where first_layer is 0 */
    float *x, *h;     /* [GPU_RUN_TOKENS, x_stride] the residual stream, and what is to be added to it */
    float *qkv;       /* [GPU_RUN_TOKENS, qkv_stride] */
    float *gate, *up; /* [GPU_RUN_TOKENS, ff_stride] where they are not interleaved; else NULL */
    /* Of mixtures, by place: what the router says, and as above. */
    gpu_routes routes;
    float *router;                  /* [GPU_RUN_TOKENS, router_stride] */
    float *expert_gate, *expert_up; /* [places, expert_stride] where they are not interleaved; else NULL */
    gpu_operand expert_ff;
    float *routed;  /* [places, x_stride] what experts return */
    float *squares; /* [GPU_RUN_TOKENS, tiles of n_embd] */
    float2 *angles; /* [SQ_N_ROPES, GPU_RUN_TOKENS, n_rot / 2] */
    gpu_operand normed, attended, ff, token_embd;
    float *logits; /* [GPU_LOGITS, logits_stride] */
    sq_token *greedy;
    float *partial;
    uint32_t *arrivals;
    uint8_t *cache; /* of each layer from first_layer on rows [n_kv_heads, n_ctx] of keys, then of values */
    uint32_t x_stride, qkv_stride, ff_stride, router_stride, expert_stride, logits_stride;
    uint32_t key_bytes, value_bytes;
    size_t cache_keys, cache_values; /* bytes of a layer's */

    /* Of the last run: its tokens, those with logits, and which of these lie in `logits`. */
    uint32_t n_tokens, n_logits, logits_first, logits_n;
    gpu_squares final_squares;                     /* by which `normed` is still to be divided */
    cudaGraphExec_t graphs[GPU_FEW_TOKENS + 1][3]; /* by tokens, and no logits, one, all */
};

/* Functions of sq_device_api. */
sq_status gpu_session_create(sq_device *device, uint32_t n_ctx, sq_kv_type kv, sq_device_session **session,
                             sq_error *error);
void gpu_session_free(sq_device_session *session);
sq_status gpu_session_run(sq_device_session *session, const sq_device_job *job, sq_token *greedy,
                          sq_error *error);
sq_status gpu_session_read_logits(sq_device_session *session, uint32_t first, uint32_t n, float *logits,
                                  sq_error *error);

uint64_t gpu_session_bytes(const sq_model *model, uint32_t first_layer, const gpu_card *card, uint32_t n_ctx,
                           sq_kv_type kv);

/* forward.cu: launches for the run that s->step describes, up to the last norm. */
void gpu_forward(sq_device_session *s, gpu_launch *l, uint32_t n_tokens);
/* What it asks of attention in layer `index`, over s->qkv. */
gpu_attention gpu_layer_attention(const sq_device_session *s, uint32_t index, uint32_t n_tokens);
/* Logits of tokens [first, first + n) of the run to s->logits, n <= GPU_LOGITS, and their choices to
 * s->greedy[0 …]. */
void gpu_logits(sq_device_session *s, gpu_launch *l, uint32_t first, uint32_t n);

#endif
