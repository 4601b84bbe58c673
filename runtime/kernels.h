/* The operations of a forward pass on the CPU. lut.c, sparse.c, ops.c and attention.c define each in plain C;
 * x86_*.c and arm_*.c replace entries by faster versions of the same functions. A table is chosen once, when
 * a model is opened.
 *
 * Conventions: f32 throughout; [a, b] row-major; activation vectors follow sq_pad (tensor.h): readable
 * and zero up to the next multiple of 32, at addresses aligned to 64. Outputs are written exactly, no
 * padding touched. Rows are [row0, row1). The result of a row does not depend on row0 and row1. */
#ifndef SQ_KERNELS_H
#define SQ_KERNELS_H

#include "tensor.h"

typedef struct sq_type_kernels {
    /* y[t · ldy + (r - row0)] = Σ_i W[r, i] x[t · ldx + i], dense plus sparse, for t < n_tokens, which are
     * few, r in [row0, row1). A token's result is the same to the last bit whichever others are beside it.
     * scratch: [sq_gemv_scratch_bytes(n_in, n_tokens)] (64-byte aligned). */
    void (*gemv)(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, void *scratch);
    /* out[i] = W[row, i], dense plus sparse, i < n_in; out is sq_pad(n_in) long, zero past n_in. */
    void (*expand_row)(const sq_matrix *w, uint32_t row, float *out);
} sq_type_kernels;

/* KV cache element types. Q8: i8 with f32 scales. */
typedef enum sq_kv_type { SQ_KV_F16, SQ_KV_F32, SQ_KV_Q8, SQ_N_KV_TYPES } sq_kv_type;

/* The cache of one KV head is a chain of blocks of SQ_KV_BLOCK positions, one after another in the order
 * in which attention reads them:
 *
 *     scales  f32 [⌈head_dim / SQ_KEY_GROUP⌉, SQ_KV_BLOCK] of the keys, [SQ_KV_BLOCK] of the values; Q8 alone
 *     keys    [head_dim, SQ_KV_BLOCK]: a vector of positions needs no sum over its lanes
 *     values  [SQ_KV_BLOCK, head_dim]
 *
 * An element of Q8 is x / scale, rounded to nearest even, scale = max |x| / 127 over a value, or over
 * SQ_KEY_GROUP components of a key: some components of keys are always much larger than the others. */
enum { SQ_KV_BLOCK = 32, SQ_KEY_GROUP = 16 };

/* Floats of scales in a block of Q8. */
static inline size_t sq_kv_scales(uint32_t head_dim) {
    return ((head_dim + SQ_KEY_GROUP - 1) / SQ_KEY_GROUP + 1) * (size_t)SQ_KV_BLOCK;
}

/* Attention of consecutive tokens, for the query heads that share one KV head:
 *     out[t, h] = Σ_p softmax_p(softcap(scale · q[t, h] · k[p])) v[p]
 * p runs over the positions that token t sees: itself and those before it, window in all where window is
 * not 0. The result of a token and a head does not depend on which others are asked for with it. */
typedef struct sq_attention {
    const void *cache; /* chain of blocks; the positions of the tokens are stored */
    uint32_t head_dim, window;
    uint32_t position, n_tokens; /* of the first token; how many */
    uint32_t n_heads;
    float scale, cap; /* cap 0: no softcap */
    const float *q;   /* head h of token t at q + t · ldq + h · head_dim */
    float *out;       /* the same with ldo */
    size_t ldq, ldo;
} sq_attention;

/* Of a feed-forward: silu(z) = z / (1 + exp(-z)); gelu(z) by its tanh form, (D. Hendrycks and K. Gimpel,
 * arXiv 1606.08415, section 2), z (1 + tanh(sqrt(2/pi) (z + 0.044715 z³))) / 2. */
typedef enum sq_activation { SQ_SILU, SQ_GELU, SQ_N_ACTIVATIONS } sq_activation;

typedef struct sq_kernels {
    const char *name; /* "scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", "dotprod" */
    bool (*supported)(void);
    sq_type_kernels types[SQ_N_TYPES];

    /* y[t · ldy + (r - row0)] = Σ_i W[r, i] x[t · ldx + i] for t < n_tokens, r in [row0, row1).
     * Expands tiles of SQ_GEMM_ROWS rows into `scratch` [SQ_GEMM_ROWS, sq_pad(n_in)] (64-byte aligned),
     * then multiplies them with all tokens. */
    void (*gemm)(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, float *scratch);

    /* The same in 16-bit fixed point, faster and nearly as exact: fixed.c. First the activations of
     * n_tokens <= SQ_FIXED_TOKENS tokens are packed into a group [sq_fixed_group_bytes(n_in)] (64-byte
     * aligned), groups one behind the other; then threads multiply them. scratch:
     * [sq_fixed_scratch_bytes(n_in)] (64-byte aligned). NULL where f32 is as fast. */
    void (*fixed_pack)(const float *x, size_t ldx, uint32_t n_tokens, uint32_t n_in, void *group);
    void (*fixed_gemm)(const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y, size_t ldy,
                       uint32_t row0, uint32_t row1, void *scratch);

    /* y[i] = x[i] / sqrt(mean(x²) + eps) · weight[i]; y may be x, which needs no padding */
    void (*rms_norm)(const float *x, const float *weight, float eps, uint32_t n, float *y);
    /* y[i] = (x[i] - mean(x)) / sqrt(mean((x - mean(x))²) + eps) · weight[i] + bias[i]; y may be x, which
     * needs no padding */
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float eps, uint32_t n,
                       float *y);
    /* y[i] = activation(gate[i]) · up[i]; y may be gate */
    void (*gated[SQ_N_ACTIVATIONS])(const float *gate, const float *up, uint32_t n, float *y);
    /* x[i] = max(x[i], 0) */
    void (*relu)(float *x, uint32_t n);
    /* x[i] = cap · tanh(x[i] / cap) */
    void (*softcap)(float *x, float cap, uint32_t n);
    /* Rotates pairs (x[i], x[i + n_rot/2]) of each of n_heads heads of head_dim by cos[i], sin[i], i <
     * n_rot/2: "rotate halves", Hugging Face's order; dims from n_rot on stay. In place. */
    void (*rope)(float *x, const float *cos, const float *sin, uint32_t n_heads, uint32_t head_dim,
                 uint32_t n_rot);
    /* y[i] += x[i] */
    void (*add)(float *y, const float *x, uint32_t n);
    /* x[i] *= factor */
    void (*scale)(float *x, float factor, uint32_t n);

    /* Stores key and value [head_dim] of one position into a cache of this type. */
    void (*kv_store[SQ_N_KV_TYPES])(const float *key, const float *value, uint32_t head_dim,
                                    uint32_t position, void *cache);
    void (*attend[SQ_N_KV_TYPES])(const sq_attention *attention);
} sq_kernels;

enum { SQ_GEMM_ROWS = 64 }; /* more rows read x less often, fewer fit the L2 cache */
/* Rows (tokens · heads) that share a pass over a cache: their outputs and one block fit the L1 cache. */
enum { SQ_ATTEND_ROWS = 32 };

/* Fixed point: weights of a row that share a scale, tokens packed side by side, rows expanded at once. */
enum { SQ_FIXED_BLOCK = 512, SQ_FIXED_TOKENS = 16, SQ_FIXED_ROWS = 64 };

static inline size_t sq_fixed_n_blocks(size_t n_in) {
    return (n_in + SQ_FIXED_BLOCK - 1) / SQ_FIXED_BLOCK;
}

/* For activations in another order, and what simd_digits.h makes of them: three bytes each, in whole blocks.
 */
static inline size_t sq_gemv_scratch_bytes(size_t n_in, uint32_t n_tokens) {
    return (n_tokens + 3) / 4 * 4 * sq_pad(n_in) * sizeof(float) +
           n_tokens * ((n_in / 512 + 1) * 512 * 3 + 256);
}

size_t sq_fixed_group_bytes(size_t n_in);
size_t sq_fixed_scratch_bytes(size_t n_in);

extern const sq_kernels sq_kernels_scalar;
/* Present where the target is x86-64, or 64-bit ARM; fill what they replace, the rest from scalar. */
extern const sq_kernels sq_kernels_avx2;
extern const sq_kernels sq_kernels_avxvnni;
extern const sq_kernels sq_kernels_avx512;
extern const sq_kernels sq_kernels_avx512vnni;
extern const sq_kernels sq_kernels_neon;
extern const sq_kernels sq_kernels_dotprod;

/* "auto" or NULL: the fastest this machine supports. */
sq_status sq_kernels_choose(const char *cpu, const sq_kernels **kernels, sq_error *error);

float sq_f16_to_f32(uint16_t h);
uint16_t sq_f32_to_f16(float f); /* nearest even; overflow gives infinity */

/* An entry of a row's table: docs/FORMAT.md 2. */
static inline float sq_lut_entry(const sq_matrix *w, uint32_t bits, uint32_t row, uint32_t code) {
    size_t i = ((size_t)row << bits) + code;
    return w->lut8 ? sq_f16_to_f32(w->lut_scale[row]) * w->lut8[i] : sq_f16_to_f32(w->lut[i]);
}

#endif
