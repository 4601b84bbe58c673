/* What the files of the plugin share: matrices and activations on the device, and the launchers. */
#ifndef SQ_CUDA_GPU_H
#define SQ_CUDA_GPU_H

#include <cuda_runtime.h>

#include "device.h"
#include "pack.h"

/* ---- errors ------------------------------------------------------------------------------------ */

/* Fills `error` (may be NULL) and returns `status`. */
sq_status gpu_fail(sq_error *error, sq_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* SQ_OK, or what the runtime says about `what` ("copying weights"). */
sq_status gpu_check(cudaError_t result, const char *what, sq_error *error);

/* ---- data on the device ------------------------------------------------------------------------ */

static inline size_t gpu_round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* Rows padded to whole tiles, packed as pack.h says. Of several matrices one behind the other each begins
 * with a tile of its own. */
typedef struct gpu_matrix {
    uint32_t bits; /* 2, 3, 4: an index; 8: Q8_0; 16: F16 */
    uint32_t n_tiles, n_in, n_spans;
    uint4 *codes;
    uint32_t *tables;       /* [n_tiles, 16, sq_table_words]; Q8_0: scales of slots g and g + 8 in the low and
                             * high half, [n_tiles, blocks of 32 inputs, 8] */
    float *scales;          /* of the rows' tables [n_tiles · 16], or NULL: 1 */
    uint32_t *sparse_first; /* [n_tiles · 16 + 1] into `sparse`, or NULL */
    uint32_t *sparse;       /* column, and f16 value << 16 */
    float *bias;            /* [n_tiles · 16], or NULL */
} gpu_matrix;

/* Activations that matrices multiply: f16 [2 · n_tokens, stride], zero from n_in to stride. An activation x
 * is kept in two parts, x · 2^-6 = high + low · 2^-11, which together have 22 bits, from 4e6 down to 1e-9:
 * row 2t holds the high parts of token t, row 2t + 1 the low ones. */
typedef struct gpu_operand {
    uint16_t *data;
    uint32_t stride; /* a multiple of SQ_OPERAND_PAD */
} gpu_operand;

enum { SQ_OPERAND_PAD = 256 };
#define SQ_OPERAND_SCALE 0x1p-6f
#define SQ_LOW_SCALE     0x1p-11f

/* The root mean squares by which an operand is still to be divided: each tile of the matrix that made it left
 * the sum of squares of its 16 rows, [n_tokens, stride]. */
typedef struct gpu_squares {
    float *sums; /* NULL: the operand is complete */
    uint32_t n_tiles, stride, n;
    float eps;
} gpu_squares;

/* What becomes of y = W x + bias. */
typedef enum gpu_use {
    GPU_STORE,   /* out = softcap(y) */
    GPU_ADD,     /* out += y; next = out · next_weight, its squares to next_squares */
    GPU_GATED,   /* next = activation(y of slot g) · (y of slot g + 8) */
    GPU_OPERAND, /* next = y, or max(y, 0) */
} gpu_use;

/* Up to GPU_FEW_TOKENS places of an expert, one behind the other; none, where n is 0. */
typedef struct gpu_job {
    uint32_t expert, first, n;
} gpu_job;

/* What a mixture's router chose for the tokens of a run. Activations of places lie ordered by expert. */
typedef struct gpu_routes {
    uint32_t n_experts, n_used;
    uint32_t *experts; /* [n_tokens, n_used], the best first */
    float *weights;    /* [n_tokens, n_used] */
    uint32_t *places;  /* [n_tokens, n_used] where each lies */
    uint32_t *tokens;  /* [n_tokens · n_used] whose each place is */
    gpu_job *jobs;     /* [gpu_n_jobs] */
} gpu_routes;

typedef struct gpu_product {
    gpu_matrix w;
    /* Of a mixture: each expert's matrix [n_experts], on the device, that w is an example of. Those that have
     * as many bits as w are multiplied with their places of `in`, `out` and `next`. NULL: w alone. */
    const gpu_matrix *experts;
    const gpu_job *jobs;
    uint32_t n_jobs;
    const uint32_t *in_rows; /* of each place, the token of `in` and `in_squares`; NULL: they lie by place */
    gpu_operand in;
    gpu_squares in_squares;
    uint32_t n_tokens;
    gpu_use use;
    float *out; /* [n_tokens, out_stride] */
    uint32_t out_stride;
    float cap; /* 0: none */
    gpu_operand next;
    const float *next_weight; /* [n_tiles · 16] */
    float *next_squares;
    sq_activation activation;
    bool relu;
} gpu_product;

/* The device as launches see it. */
typedef struct gpu_card {
    int n_processors, shared_bytes; /* of a block at most */
    bool dependent_launch;
} gpu_card;

/* The card in use, and what is told of it (`info` may be NULL). SQ_ERROR_UNSUPPORTED where there is none. */
sq_status gpu_card_open(gpu_card *card, sq_device_info *info, sq_error *error);

/* How a product of few tokens is cut up; 0: by default. For the benchmark. */
typedef struct gpu_shape {
    uint32_t n_warps, blocks_per_processor;
} gpu_shape;

/* ---- launchers --------------------------------------------------------------------------------- */

typedef struct gpu_launch {
    const gpu_card *card;
    cudaStream_t stream;
    cudaError_t result; /* of the first launch that failed */
} gpu_launch;

template <typename... Parameters, typename... Arguments>
void gpu_run(gpu_launch *l, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
             Arguments... arguments) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = l->stream;
    config.attrs = &attribute;
    config.numAttrs = l->card->dependent_launch ? 1 : 0;
    cudaError_t result = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    if (l->result == cudaSuccess)
        l->result = result;
}

/* Lets a kernel use as much shared memory as the card has. All kernels ask for the same division between it
 * and the L1 cache: a change from one launch to the next would wait for the card to be idle. */
template <typename F> cudaError_t gpu_kernel_prepare(F *kernel, const gpu_card *card) {
    cudaError_t result =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, card->shared_bytes);
    return result ? result
                  : cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
}

/* Tokens at most that keep both parts of their activations, and that gpu_gemv takes. */
enum { GPU_FEW_TOKENS = 8, GPU_GEMV_TOKENS = 16 };

/* Let kernels use as much shared memory as the card has; once, before the first launch. */
cudaError_t gpu_gemv_prepare(const gpu_card *card);
cudaError_t gpu_gemm_prepare(const gpu_card *card);
/* Up to GPU_GEMV_TOKENS; of a mixture jobs of up to n_tokens, GPU_FEW_TOKENS at most. */
void gpu_gemv(gpu_launch *l, const gpu_product *p, gpu_shape shape);
/* Any number of tokens; not GPU_ADD, nor with in_squares. */
void gpu_gemm(gpu_launch *l, const gpu_product *p);
/* The one that suits. `exact`: with both parts of activations, however many tokens. */
void gpu_multiply(gpu_launch *l, const gpu_product *p, bool exact);

/* Writes what `source` has of tiles [first_tile, first_tile + n_tiles) into w->codes. */
void gpu_pack(gpu_launch *l, const sq_pack_source *source, const gpu_matrix *w, uint32_t first_tile,
              uint32_t n_tiles);

/* ---- a step, on the device --------------------------------------------------------------------- */

enum { GPU_RUN_TOKENS = 512 };

/* What changes from step to step: kernels of a graph read it. */
typedef struct gpu_step {
    uint32_t position;  /* of tokens[0] */
    uint32_t long_rope; /* 0 or 1 */
    sq_token tokens[GPU_RUN_TOKENS];
} gpu_step;

typedef struct gpu_norm {
    const float *weight, *bias; /* as of sq_norm, padded by zeros to a multiple of 16 */
} gpu_norm;

typedef struct gpu_angles {
    const float *frequencies[SQ_N_ROPES]; /* [2, n_rot / 2], or NULL */
    float scale[SQ_N_ROPES];
    float2 *table; /* [SQ_N_ROPES, n_tokens, n_rot / 2]: cosine and sine, times the scale */
    uint32_t half; /* n_rot / 2 */
} gpu_angles;

/* x = scale · embedding[token] (+ positions[position]) or what came from the CPU; then as gpu_residual does.
 * Also fills the table of angles. */
typedef struct gpu_entry {
    const gpu_step *step;
    const float *given; /* [n_tokens, given_stride] instead of the embedding, or NULL */
    uint32_t given_stride;
    gpu_matrix embedding, positions; /* codes NULL: no positions */
    float scale;
    gpu_angles angles;
} gpu_entry;

/* x = after(x + out(h)), next = before(x), each norm optional; of each token a block. */
typedef struct gpu_residual {
    float *x; /* [n_tokens, stride]; NULL: only next is wanted */
    uint32_t stride, n;
    const float *h; /* the same shape; NULL: x stays */
    gpu_norm out, after, before;
    gpu_operand next;
    float eps;
    gpu_routes routes; /* n_used 0: as said; else h is of places, and a token's is their weighted sum */
} gpu_residual;

/* As gpu_gemv_prepare. */
cudaError_t gpu_residual_prepare(const gpu_card *card);
void gpu_enter(gpu_launch *l, const gpu_entry *e, const gpu_residual *r, uint32_t n_tokens);
void gpu_add_residual(gpu_launch *l, const gpu_residual *r, uint32_t n_tokens);
/* next = activation(gate) · up, n wide */
void gpu_gate(gpu_launch *l, const float *gate, const float *up, uint32_t stride, uint32_t n,
              sq_activation activation, gpu_operand next, uint32_t n_tokens);
/* greedy[t] = the first of the largest of logits[t][0 … n) */
void gpu_argmax(gpu_launch *l, const float *logits, uint32_t stride, uint32_t n, sq_token *greedy,
                uint32_t n_tokens);

/* ---- mixtures of experts ----------------------------------------------------------------------- */

/* As gpu_gemv_prepare. */
cudaError_t gpu_experts_prepare(const gpu_card *card);
/* How many jobs n_tokens can make at most. */
static inline uint32_t gpu_n_jobs(const gpu_routes *routes, uint32_t n_tokens) {
    uint32_t n_places = n_tokens * routes->n_used;
    uint32_t n_jobs = n_places / GPU_FEW_TOKENS + routes->n_experts;
    return n_jobs < n_places ? n_jobs : n_places;
}
/* experts.h, sq_experts_choose, of logits [n_tokens, stride]; then shares the places out as jobs. */
void gpu_route(gpu_launch *l, const float *logits, uint32_t stride, bool normalised, const gpu_routes *routes,
               uint32_t n_tokens);

/* ---- attention --------------------------------------------------------------------------------- */

/* Elements of a cache's row: whole groups of keys. */
static inline uint32_t gpu_row_pitch(uint32_t head_dim) {
    return (uint32_t)gpu_round_up(head_dim, SQ_KEY_GROUP);
}
/* Bytes of a key's row, or a value's: elements, then Q8's scales, to a multiple of 16. */
static inline uint32_t gpu_row_bytes(sq_kv_type kv, uint32_t head_dim, bool key) {
    uint32_t pitch = gpu_row_pitch(head_dim);
    if (kv != SQ_KV_Q8)
        return pitch * (kv == SQ_KV_F32 ? 4 : 2);
    return (uint32_t)gpu_round_up(pitch + sizeof(float) * (key ? pitch / SQ_KEY_GROUP : 1), 16);
}

typedef struct gpu_attention {
    const gpu_step *step;
    float *qkv; /* [n_tokens, stride]: q at 0, k and v at k_at and v_at */
    uint32_t stride, k_at, v_at;
    bool exact; /* of many tokens too in f32 */
    sq_kv_type kv;
    uint8_t *keys, *values; /* of this layer: rows [n_kv_heads, n_ctx] of key_bytes and of value_bytes */
    uint32_t n_ctx, pitch, key_bytes, value_bytes;
    uint32_t n_heads, n_kv_heads, head_dim, n_rot, window;
    float scale, cap, eps;
    const float *q_norm, *k_norm; /* [head_dim], or NULL */
    const float2 *angles;         /* [n_tokens, n_rot / 2], or NULL: no rotation */
    gpu_operand out;              /* [n_heads · head_dim] */
    float *partial;               /* [gpu_attention_blocks, GPU_ATTENTION_ROWS, head_dim + 2] */
    uint32_t *arrivals;           /* [gpu_attention_blocks]; zero, and zero again afterwards */
    uint32_t n_tokens;
} gpu_attention;

enum { GPU_HEAD_DIM = 256, GPU_ATTENTION_ROWS = 64 }; /* at most: of a head, and rows of a block */

/* Blocks that fill the card: the positions are split where there would be fewer. */
static inline uint32_t gpu_attention_blocks(const gpu_card *card) {
    return 2 * (uint32_t)card->n_processors;
}

/* As gpu_gemv_prepare. */
cudaError_t gpu_attention_prepare(const gpu_card *card);
cudaError_t gpu_prompt_attention_prepare(const gpu_card *card);
/* Norms and rotates q and k, stores k and v, and attends. */
void gpu_attend(gpu_launch *l, const gpu_attention *a);
/* Attends alone, by tensor cores; for caches of f16 and Q8 and an even head_dim. */
void gpu_attend_prompt(gpu_launch *l, const gpu_attention *a);

#endif
