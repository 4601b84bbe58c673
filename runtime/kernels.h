/* The operations of a forward pass on the CPU. lut.c, sparse.c and ops.c define each in plain C; x86_*.c
 * and arm_*.c replace entries by faster versions of the same functions. A table is chosen once, when a
 * model is opened.
 *
 * Conventions: f32 throughout; [a, b] row-major; activation vectors follow sq_pad (tensor.h): readable
 * and zero up to the next multiple of 32, at addresses aligned to 64. Outputs are written exactly, no
 * padding touched. Rows are [row0, row1). The result of a row does not depend on row0 and row1. */
#ifndef SQ_KERNELS_H
#define SQ_KERNELS_H

#include "tensor.h"

typedef struct sq_type_kernels {
    /* y[r - row0] = Σ_i W[r, i] x[i], dense plus sparse, for r in [row0, row1). */
    void (*gemv)(const sq_matrix *w, const float *x, float *y, uint32_t row0, uint32_t row1);
    /* out[i] = W[row, i], dense plus sparse, i < n_in; out is sq_pad(n_in) long, zero past n_in. */
    void (*expand_row)(const sq_matrix *w, uint32_t row, float *out);
} sq_type_kernels;

/* KV cache element types. */
typedef enum sq_kv_type { SQ_KV_F16, SQ_KV_F32, SQ_N_KV_TYPES } sq_kv_type;

/* Of a feed-forward: silu(z) = z / (1 + exp(-z)); gelu(z) by its tanh form, (D. Hendrycks and K. Gimpel,
 * arXiv 1606.08415, section 2), z (1 + tanh(sqrt(2/pi) (z + 0.044715 z³))) / 2. */
typedef enum sq_activation { SQ_SILU, SQ_GELU, SQ_N_ACTIVATIONS } sq_activation;

typedef struct sq_kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    bool (*supported)(void);
    sq_type_kernels types[SQ_N_TYPES];

    /* y[t · ldy + (r - row0)] = Σ_i W[r, i] x[t · ldx + i] for t < n_tokens, r in [row0, row1).
     * Expands tiles of SQ_GEMM_ROWS rows into `scratch` [SQ_GEMM_ROWS, sq_pad(n_in)] (64-byte aligned),
     * then multiplies them with all tokens. */
    void (*gemm)(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, float *scratch);

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

    /* Stores n f32 values into a cache of this type (round to nearest even). */
    void (*kv_store[SQ_N_KV_TYPES])(const float *x, uint32_t n, void *cache);
    /* One token's attention for the n_group query heads that share one KV head:
     *     out[h] = Σ_p softmax_p(softcap(scale · q[h] · k[p])) v[p],  p in [0, n_pos)
     * cap 0: no softcap.
     * q, out: [n_group, head_dim]; k, v: cache [n_pos, head_dim] of this type, not padded;
     * scores: scratch [n_group, sq_pad(n_pos)]. */
    void (*attend[SQ_N_KV_TYPES])(const float *q, const void *k, const void *v, uint32_t n_pos,
                                  uint32_t n_group, uint32_t head_dim, float scale, float cap, float *scores,
                                  float *out);
} sq_kernels;

enum { SQ_GEMM_ROWS = 64 }; /* more rows read x less often, fewer fit the L2 cache */

extern const sq_kernels sq_kernels_scalar;
/* Present where the target is x86-64; fill what they replace, the rest from scalar. */
extern const sq_kernels sq_kernels_avx2;
extern const sq_kernels sq_kernels_avx512;

/* "auto" or NULL: the fastest this machine supports. */
sq_status sq_kernels_choose(const char *cpu, const sq_kernels **kernels, sq_error *error);

float sq_f16_to_f32(uint16_t h);
uint16_t sq_f32_to_f16(float f); /* nearest even; overflow gives infinity */

#endif
