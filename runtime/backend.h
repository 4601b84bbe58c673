/* The seam between models and the hardware: a model's forward pass is a sequence of these operations on
 * the activations of one run. A run is up to SQ_RUN_TOKENS consecutive tokens of one session.
 *
 * On the CPU every thread of the pool calls every operation, in the same order, and an operation returns
 * when its result may be read by all. */
#ifndef SQ_BACKEND_H
#define SQ_BACKEND_H

#include <stdatomic.h>

#include "experts.h"
#include "kv.h"
#include "model.h"
#include "threads.h"

enum { SQ_RUN_TOKENS = 256 };
/* Runs of at most so many tokens give each token the very bits that a run of it alone gives. */
enum { SQ_FEW_TOKENS = 16 };

typedef struct sq_backend sq_backend;
typedef struct sq_profile sq_profile;

/* Rows of activations, one per token of the run; row t at data + t · stride, stride = sq_pad(width). */
typedef struct sq_rows {
    float *data;
    size_t stride;
} sq_rows;

struct sq_run {
    const sq_model *model;
    const sq_backend *backend;
    sq_profile *profile; /* of a backend that measures */
    sq_pool *pool;
    sq_kv *kv;

    const sq_token *tokens; /* [n_tokens] */
    uint32_t n_tokens;
    uint32_t position; /* of tokens[0] on the timeline */
    float *logits;     /* receives [n_logits, n_vocab] for the last n_logits tokens */
    uint32_t n_logits;
    atomic_bool *cancel; /* set from outside */
    bool stopped;        /* the run was cancelled: its results are void */
    bool long_rope;      /* the timeline is, or is about to be, longer than n_ctx_short */

    sq_rows x;          /* [n_embd] the residual stream */
    sq_rows h;          /* [n_embd] normalised, or what is to be added to x */
    sq_rows q, k, v;    /* [n_heads · head_dim], [n_kv_heads · head_dim] twice */
    sq_rows attended;   /* [n_heads · head_dim] */
    sq_rows gate, up;   /* [n_ff] */
    sq_rows token_embd; /* [n_token_embd] where that is not n_embd */
    sq_rows router;     /* [n_experts] */
    sq_routes routes;
    /* A row for each place of `routes`, in its order, SQ_RUN_TOKENS · n_experts_used in all. */
    sq_rows routed;                 /* [n_embd] what an expert receives, then what it returns */
    sq_rows expert_gate, expert_up; /* [n_ff_expert] */
    sq_rows cos[SQ_N_ROPES];        /* [n_rot / 2], of the token's position, times the table's scale */
    sq_rows sin[SQ_N_ROPES];
    float *private_h;      /* [n_threads, sq_pad(n_embd)] */
    float *scratch;        /* [n_threads]: of gemm and fixed_gemm */
    void *packed;          /* what fixed_gemm multiplies */
    size_t scratch_floats; /* of one thread */
};

struct sq_backend {
    const char *name; /* "cpu" */
    /* x = embd_in(embd_scale · embedding[token]) + positions[position]; cos and sin of each token's position
     */
    void (*embed)(sq_run *run, uint32_t thread);
    /* out_i = linear_i(norm(x)) for i < n, n <= 3 */
    void (*norm_linears)(sq_run *run, const sq_norm *norm, const sq_linear *const *linears,
                         const sq_rows *const *outs, uint32_t n, uint32_t thread);
    /* Norms each head of q and k and rotates it, as the layer says; stores k and v in the cache. */
    void (*rope_store)(sq_run *run, uint32_t layer, uint32_t thread);
    /* attended = softmax(attn_scale · q · k) v, causal, within the layer's window */
    void (*attend)(sq_run *run, uint32_t layer, uint32_t thread);
    /* x = after(x + out(linear(in))), out and after norms */
    void (*linear_add)(sq_run *run, const sq_linear *linear, const sq_rows *in, const sq_norm *out,
                       const sq_norm *after, uint32_t thread);
    /* gate = activation(layer->gate(h)) · layer->up(h), or relu(layer->up(h)) without a gate, h = norm(x) */
    void (*ffn_up)(sq_run *run, const sq_norm *norm, const sq_layer *layer, uint32_t thread);
    /* x += Σ over the experts that the layer's router chooses: weight · down(activation(gate(h)) · up(h)),
     * h = norm(x) */
    void (*experts_add)(sq_run *run, const sq_norm *norm, const sq_layer *layer, uint32_t thread);
    /* logits = softcap(head(embd_out(norm(x)))) of the last n_logits tokens */
    void (*logits)(sq_run *run, const sq_norm *norm, const sq_linear *head, uint32_t thread);
};

extern const sq_backend sq_backend_cpu;

/* The CPU's activations. Bytes for runs on n_threads threads, and the
 * buffers of `run` laid into `memory` [that many bytes, 64-byte aligned, zeroed]. */
size_t sq_cpu_run_bytes(const sq_model *model, uint32_t n_threads);
void sq_cpu_run_init(sq_run *run, const sq_model *model, uint32_t n_threads, void *memory);

#endif
