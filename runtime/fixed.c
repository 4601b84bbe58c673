/* Products with many tokens in 16-bit fixed point: what the fast versions of simd_fixed.h compute, in
 * plain C.
 *
 * Integer units multiply pairs of i16 twice as fast as FMA multiplies f32, and unlike bf16, which keeps 8
 * bits of every number, fixed point spends all 16 where they matter. A row of weights and the activations
 * of a token are cut into blocks of SQ_FIXED_BLOCK; each is scaled to the Euclidean norm 32767 and rounded:
 *
 *     a[i] ≈ s · q[i],  s = |a| / 32767,  q[i] = round(a[i] / s)
 *
 * so that no sum of products leaves 32 bits (Cauchy-Schwarz: |Σ q p| <= |q| |p| < 2^31), and
 *
 *     y = Σ over blocks  s_w s_x Σ q_w q_x
 *
 * differs from the exact sum by about |w| |x| / 80000 a block, whatever the values look like. A result
 * depends on the row and the token alone, not on the tokens beside it.
 *
 * Entries of an 8-bit table are integers already, so such a row has one s = scale / m for all blocks: then
 * q = m · code, exactly, and only what kept weights add is rounded. */
#include "scalar.h"

#include <math.h>
#include <string.h>

size_t sq_fixed_group_bytes(size_t n_in) {
    return SQ_FIXED_TOKENS * (sq_pad(n_in) * sizeof(int16_t) + sq_fixed_n_blocks(n_in) * sizeof(float));
}

size_t sq_fixed_scratch_bytes(size_t n_in) {
    size_t row = sq_fixed_row_stride(n_in) * sizeof(int16_t) + sq_fixed_n_blocks(n_in) * sizeof(float);
    return SQ_FIXED_ROWS * row + sq_pad(n_in) * sizeof(float);
}

static void quantize(const float *a, size_t n, float inverse, int16_t *q) {
    for (size_t i = 0; i < n; i++) {
        q[i] = (int16_t)lrintf(a[i] * inverse);
    }
}

/* Returns s. A norm so small that its inverse might overflow counts as zero. */
static float quantize_by_norm(const float *a, size_t n, int16_t *q) {
    float squares = 0;
    for (size_t i = 0; i < n; i++) {
        squares += a[i] * a[i];
    }
    float norm = sqrtf(squares);
    quantize(a, n, norm > SQ_FIXED_TINY ? 32767 / norm : 0, q);
    return norm / 32767;
}

uint32_t sq_fixed_multiple(const sq_matrix *w, uint32_t row) {
    float scale = w->lut8 ? sq_f16_to_f32(w->lut_scale[row]) : 0, squares = 0, largest = 0;
    size_t block = 0;
    for (uint32_t k = w->rows ? (uint32_t)w->rows[row] : 0; w->rows && k < (uint32_t)w->rows[row + 1]; k++) {
        float value = sq_f16_to_f32(w->vals[k]);
        squares = value * value + (sq_column(w, k) / SQ_FIXED_BLOCK == block ? squares : 0);
        block = sq_column(w, k) / SQ_FIXED_BLOCK;
        largest = largest > squares ? largest : squares;
        if (!isfinite(squares)) {
            return 0;
        }
    }
    float n = w->n_in < SQ_FIXED_BLOCK ? (float)w->n_in : SQ_FIXED_BLOCK;
    float norm = 128 * scale * sqrtf(n) + sqrtf(largest);
    uint32_t multiple = 0;
    for (uint32_t m = 1; scale > 0 && isfinite(scale) && norm * (float)m <= 32767 * scale; m *= 2) {
        multiple = m;
    }
    return multiple;
}

void sq_fixed_pack(const float *x, size_t ldx, uint32_t n_tokens, uint32_t n_in, void *group) {
    size_t n = sq_pad(n_in);
    int16_t *pairs = group, q[SQ_FIXED_BLOCK];
    float *scales = (float *)(pairs + SQ_FIXED_TOKENS * n);
    memset(group, 0, sq_fixed_group_bytes(n_in));
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (size_t i = 0; i < n; i += SQ_FIXED_BLOCK) {
            size_t n_block = n - i < SQ_FIXED_BLOCK ? n - i : SQ_FIXED_BLOCK;
            scales[i / SQ_FIXED_BLOCK * SQ_FIXED_TOKENS + t] = quantize_by_norm(x + t * ldx + i, n_block, q);
            for (size_t k = 0; k < n_block; k++) {
                pairs[(i + k) / 2 * 2 * SQ_FIXED_TOKENS + 2 * t + k % 2] = q[k];
            }
        }
    }
}

void sq_fixed_gemm(const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y, size_t ldy,
                   uint32_t row0, uint32_t row1, void *scratch) {
    size_t n = sq_pad(w->n_in), group_bytes = sq_fixed_group_bytes(w->n_in);
    float *weights = scratch;
    for (uint32_t row = row0; row < row1; row++) {
        uint32_t multiple = sq_fixed_multiple(w, row);
        sq_kernels_scalar.types[w->type].expand_row(w, row, weights);
        for (size_t i = 0; i < n; i += SQ_FIXED_BLOCK) {
            size_t n_block = n - i < SQ_FIXED_BLOCK ? n - i : SQ_FIXED_BLOCK;
            int16_t q[SQ_FIXED_BLOCK];
            float scale = multiple ? sq_f16_to_f32(w->lut_scale[row]) / (float)multiple
                                   : quantize_by_norm(weights + i, n_block, q);
            if (multiple) {
                quantize(weights + i, n_block, 1 / scale, q);
            }
            for (uint32_t t = 0; t < n_tokens; t++) {
                const void *group = (const uint8_t *)packed + t / SQ_FIXED_TOKENS * group_bytes;
                const int16_t *pairs = (const int16_t *)group + i * SQ_FIXED_TOKENS + t % SQ_FIXED_TOKENS * 2;
                const float *scales = (const float *)((const int16_t *)group + n * SQ_FIXED_TOKENS);
                int32_t sum = 0;
                for (size_t k = 0; k < n_block; k++) {
                    sum += q[k] * pairs[k / 2 * 2 * SQ_FIXED_TOKENS + k % 2];
                }
                float *out = &y[t * ldy + (row - row0)];
                float product =
                    (float)sum * (scale * scales[i / SQ_FIXED_BLOCK * SQ_FIXED_TOKENS + t % SQ_FIXED_TOKENS]);
                *out = i == 0 ? product : *out + product;
            }
        }
    }
}
