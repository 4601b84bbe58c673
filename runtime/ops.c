/* What a forward pass does between the matrices, and the scalar table of all kernels. */
#include "scalar.h"

#include <math.h>
#include <string.h>

static void gemm(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, float *scratch) {
    size_t ld = sq_pad(w->n_in);
    for (uint32_t row = row0; row < row1; row += SQ_GEMM_ROWS) {
        uint32_t n_rows = row1 - row < SQ_GEMM_ROWS ? row1 - row : SQ_GEMM_ROWS;
        for (uint32_t r = 0; r < n_rows; r++) {
            sq_kernels_scalar.types[w->type].expand_row(w, row + r, scratch + r * ld);
        }
        for (uint32_t t = 0; t < n_tokens; t++) {
            for (uint32_t r = 0; r < n_rows; r++) {
                float sum = 0;
                for (uint32_t i = 0; i < w->n_in; i++) {
                    sum += scratch[r * ld + i] * x[t * ldx + i];
                }
                y[t * ldy + (row - row0) + r] = sum;
            }
        }
    }
}

static void rms_norm(const float *x, const float *weight, float eps, uint32_t n, float *y) {
    float sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    float scale = 1 / sqrtf(sum / (float)n + eps);
    for (uint32_t i = 0; i < n; i++) {
        y[i] = x[i] * scale * weight[i];
    }
}

static void layer_norm(const float *x, const float *weight, const float *bias, float eps, uint32_t n,
                       float *y) {
    float sum = 0, squares = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += x[i];
    }
    float mean = sum / (float)n;
    for (uint32_t i = 0; i < n; i++) {
        squares += (x[i] - mean) * (x[i] - mean);
    }
    float scale = 1 / sqrtf(squares / (float)n + eps);
    for (uint32_t i = 0; i < n; i++) {
        y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }
}

static void silu_mul(const float *gate, const float *up, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i++) {
        y[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
    }
}

static void gelu_mul(const float *gate, const float *up, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i++) {
        float g = gate[i];
        y[i] = g / (1 + expf(-g * (GELU_LINEAR + GELU_CUBIC * g * g))) * up[i];
    }
}

static void relu(float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        x[i] = x[i] < 0 ? 0 : x[i];
    }
}

static void softcap(float *x, float cap, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        x[i] = cap * tanhf(x[i] / cap);
    }
}

static void rope(float *x, const float *cos, const float *sin, uint32_t n_heads, uint32_t head_dim,
                 uint32_t n_rot) {
    uint32_t half = n_rot / 2;
    for (uint32_t h = 0; h < n_heads; h++) {
        float *a = x + (size_t)h * head_dim, *b = a + half;
        for (uint32_t i = 0; i < half; i++) {
            float ai = a[i], bi = b[i];
            a[i] = ai * cos[i] - bi * sin[i];
            b[i] = bi * cos[i] + ai * sin[i];
        }
    }
}

static void add(float *y, const float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        y[i] += x[i];
    }
}

static void scale(float *x, float factor, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

static bool supported(void) {
    return true;
}

const sq_kernels sq_kernels_scalar = {
    .name = "scalar",
    .supported = supported,
    .types =
        {
            [SQ_TYPE_F32] = {sq_f32_gemv, sq_f32_expand_row},
            [SQ_TYPE_F16] = {sq_f16_gemv, sq_f16_expand_row},
            [SQ_TYPE_Q8_0] = {sq_q8_0_gemv, sq_q8_0_expand_row},
            [SQ_TYPE_LUT2] = {sq_lut2_gemv, sq_lut2_expand_row},
            [SQ_TYPE_LUT3] = {sq_lut3_gemv, sq_lut3_expand_row},
            [SQ_TYPE_LUT4] = {sq_lut4_gemv, sq_lut4_expand_row},
        },
    .gemm = gemm,
    .fixed_pack = sq_fixed_pack,
    .fixed_gemm = sq_fixed_gemm,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .gated = {[SQ_SILU] = silu_mul, [SQ_GELU] = gelu_mul},
    .relu = relu,
    .softcap = softcap,
    .rope = rope,
    .add = add,
    .scale = scale,
    .kv_store = {[SQ_KV_F16] = sq_kv_store_f16, [SQ_KV_F32] = sq_kv_store_f32, [SQ_KV_Q8] = sq_kv_store_q8},
    .attend = {[SQ_KV_F16] = sq_attend_f16, [SQ_KV_F32] = sq_attend_f32, [SQ_KV_Q8] = sq_attend_q8},
};
