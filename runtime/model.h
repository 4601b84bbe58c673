/* A model: hyperparameters, weights bound to their roles, and the architecture that runs them. */
#ifndef SQ_MODEL_H
#define SQ_MODEL_H

#include "kernels.h"
#include "tensor.h"

typedef struct sq_tokenizer sq_tokenizer;
typedef struct sq_chat sq_chat;
typedef struct sq_run sq_run;
typedef struct sq_device sq_device;
typedef struct sq_device_api sq_device_api;

/* y = W x + bias */
typedef struct sq_linear {
    sq_matrix w;
    const float *bias; /* [n_out], or NULL */
} sq_linear;

/* y = x / sqrt(mean(x²) + norm_eps) · weight, or, with a bias, y = layer norm of x (kernels.h) */
typedef struct sq_norm {
    const float *weight; /* [width of x]; NULL: there is no such norm, y = x */
    const float *bias;   /* [width of x], or NULL */
} sq_norm;

/* Rotary positions: tables that layers choose from. */
typedef enum sq_rope_table {
    SQ_ROPE_NONE = -1,
    SQ_ROPE_MAIN,
    SQ_ROPE_LOCAL, /* of layers with a window, where they have one of their own */
    SQ_N_ROPES
} sq_rope_table;

typedef struct sq_rope {
    /* [2, n_rot / 2], radians a position: for timelines of up to n_ctx_short tokens, and for longer ones */
    float *frequencies;
    float scale; /* of cosine and sine; YaRN and LongRoPE raise the scores' temperature by it */
} sq_rope;

/* One feed-forward network of a mixture. */
typedef struct sq_expert {
    sq_linear gate, up; /* [n_ff_expert, n_embd] */
    sq_linear down;     /* [n_embd, n_ff_expert] */
} sq_expert;

typedef struct sq_layer {
    sq_norm attn_norm, ffn_norm;         /* [n_embd] */
    sq_norm attn_out_norm, ffn_out_norm; /* [n_embd], of what is added to x; may be absent */
    sq_norm q_norm, k_norm;              /* [head_dim], of each head, before rotation; may be absent */
    sq_linear q, k, v;                   /* [n_heads · head_dim or n_kv_heads · head_dim, n_embd] */
    sq_linear attn_output;               /* [n_embd, n_heads · head_dim] */
    sq_linear gate, up; /* [n_ff, n_embd]; of these three no gate where the family has none, */
    sq_linear down;     /* [n_embd, n_ff]  and none at all in a layer with experts */
    sq_linear router;   /* [n_experts, n_embd] */
    sq_expert *experts; /* [n_experts], or NULL */
    uint32_t window;    /* a token sees itself and window - 1 before it; 0: all */
    sq_rope_table rope;
} sq_layer;

typedef struct sq_hparams {
    uint32_t n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx_train;
    uint32_t n_rot;        /* dimensions of a head that rotate */
    uint32_t n_ctx_short;  /* tokens up to which the first frequencies hold; UINT32_MAX: always */
    uint32_t n_token_embd; /* width of the embedding and the head, which may differ from n_embd */
    uint32_t n_experts, n_experts_used, n_ff_expert; /* 0: no mixtures */
    bool expert_weights_norm;                        /* an expert's weight is its share among those used */
    bool post_norm; /* attn_norm and ffn_norm are of x after the addition; no output_norm */
    float norm_eps;
    float embd_scale; /* of the embedding */
    float attn_scale; /* of q · k */
    float attn_cap;   /* of the scores (kernels.h, softcap); 0: none */
    float logit_cap;  /* of the logits; 0: none */
} sq_hparams;

/* A family: one file in models/ each, and one line in `architectures` (model.c). */
typedef struct sq_arch {
    const char *name; /* general.architecture */
    /* Reads hyperparameters and binds the weights; model->file is open, model->arch set. */
    sq_status (*load)(sq_model *model, sq_error *error);
    /* Runs the tokens of `run` through all layers; called by every thread of the pool at once. */
    void (*forward)(sq_run *run, uint32_t thread);

    bool qk_norm;           /* layers have q_norm and k_norm */
    bool out_norms;         /* layers have attn_out_norm and ffn_out_norm */
    bool layer_norm;        /* norms have a bias */
    bool learned_positions; /* a vector is added at each position; nothing need rotate */
    bool plain_ffn;         /* down(relu(up(h))), without a gate */
    sq_activation activation;
} sq_arch;

extern const sq_arch sq_arch_gemma2;
extern const sq_arch sq_arch_gemma3;
extern const sq_arch sq_arch_llama;
extern const sq_arch sq_arch_opt;
extern const sq_arch sq_arch_phi3;
extern const sq_arch sq_arch_qwen2;
extern const sq_arch sq_arch_qwen3;
extern const sq_arch sq_arch_qwen3moe;
extern const sq_arch sq_arch_smollm3;

/* What of a model an accelerator runs (device.h): layers from n_cpu_layers on, the final norm and the head,
 * and the embedding where that is 0. */
typedef struct sq_offload {
    const sq_device_api *api; /* NULL: the CPU runs all */
    sq_device *device;
    char name[128];   /* of the device */
    char absent[512]; /* why there is none, though the options would have one; else "" */
} sq_offload;

struct sq_model {
    sq_gguf *file;
    const sq_arch *arch;
    const sq_kernels *kernels;
    bool exact; /* prompts in f32 too */
    sq_tokenizer *tokenizer;
    sq_chat *chat; /* never NULL; holds the reason where chat is not possible */

    sq_hparams hparams;
    sq_linear embedding; /* [n_vocab, n_token_embd] */
    sq_linear embd_in;   /* [n_embd, n_token_embd] where these differ */
    sq_linear positions; /* [n_ctx_train, n_embd] where the family learns them */
    sq_linear embd_out;  /* [n_token_embd, n_embd] where these differ */
    sq_linear head;      /* [n_vocab, n_token_embd]; the same matrix as the embedding where tied */
    bool tied;
    sq_norm output_norm; /* [n_embd] */
    sq_rope ropes[SQ_N_ROPES];
    sq_layer *layers;      /* [n_layers] */
    uint32_t n_cpu_layers; /* the first so many run on the CPU */
    sq_offload offload;

    /* What sq_model_get_tensor lists, in the order of loading. */
    sq_tensor_info *tensors;
    const sq_matrix **matrices; /* beside tensors; NULL: a vector */
    const float **vectors;
    size_t n_tensors, capacity;
};

/* The same as sq_model_open on memory that the caller keeps, 64-byte aligned. */
sq_status sq_model_open_memory(const void *data, size_t n_bytes, const sq_model_options *options,
                               sq_model **model, sq_error *error);

const sq_tokenizer *sq_model_tokenizer(const sq_model *model);
const sq_chat *sq_model_chat(const sq_model *model);

/* ---- for the files of models/: load and list in one step -------------------------------------------------
 */

/* Hyperparameter ARCH.key, an integer in [low, high]; `fallback` where the key may be missing (then
 * pass optional true). */
sq_status sq_model_load_u32(const sq_model *model, const char *key, uint32_t low, uint32_t high,
                            bool optional, uint32_t fallback, uint32_t *value, sq_error *error);
/* A positive finite number. */
sq_status sq_model_load_f32(const sq_model *model, const char *key, bool optional, float fallback,
                            float *value, sq_error *error);
/* False where the key is missing. */
sq_status sq_model_load_bool(const sq_model *model, const char *key, bool *value, sq_error *error);
/* PREFIX.weight and, where it is there, PREFIX.bias. `linear` must stay where it is. */
sq_status sq_model_load_linear(sq_model *model, const char *prefix, uint32_t n_out, uint32_t n_in,
                               sq_linear *linear, sq_error *error);
/* PREFIX.weight and, where the family's norms have one, PREFIX.bias. */
sq_status sq_model_load_norm(sq_model *model, const char *prefix, uint32_t n, sq_norm *norm, sq_error *error);
sq_status sq_model_load_vector(sq_model *model, const char *name, uint32_t n, const float **vector,
                               sq_error *error);

#endif
