/* Rows whose weights are stored one by one: F32, F16 and GGUF's Q8_0 (docs/FORMAT.md section 3). */
#include "scalar.h"

#include <string.h>

enum { Q8_0_WEIGHTS = 32, Q8_0_BYTES = 34 };

typedef float weight_at(const uint8_t *row, uint32_t i);

static float f32_at(const uint8_t *row, uint32_t i) {
    float f;
    memcpy(&f, row + 4 * (size_t)i, sizeof f);
    return f;
}

static uint16_t u16_at(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static float f16_at(const uint8_t *row, uint32_t i) {
    return sq_f16_to_f32(u16_at(row + 2 * (size_t)i));
}

static float q8_0_at(const uint8_t *row, uint32_t i) {
    const uint8_t *block = row + (size_t)(i / Q8_0_WEIGHTS) * Q8_0_BYTES;
    return sq_f16_to_f32(u16_at(block)) * (float)(int8_t)block[2 + i % Q8_0_WEIGHTS];
}

static inline void gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y,
                        size_t ldy, uint32_t row0, uint32_t row1, weight_at *at) {
    for (uint32_t t = 0; t < n_tokens; t++, x += ldx, y += ldy) {
        for (uint32_t row = row0; row < row1; row++) {
            float sum = 0;
            for (uint32_t i = 0; i < w->n_in; i++) {
                sum += at(w->data + row * w->row_bytes, i) * x[i];
            }
            y[row - row0] = sum + sq_sparse_dot(w, row, x);
        }
    }
}

static inline void expand_row(const sq_matrix *w, uint32_t row, float *out, weight_at *at) {
    for (uint32_t i = 0; i < w->n_in; i++) {
        out[i] = at(w->data + row * w->row_bytes, i);
    }
    memset(out + w->n_in, 0, (sq_pad(w->n_in) - w->n_in) * sizeof *out);
    sq_sparse_add(w, row, out);
}

void sq_f32_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, void *scratch) {
    (void)scratch;
    gemv(w, x, ldx, n_tokens, y, ldy, row0, row1, f32_at);
}

void sq_f16_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, void *scratch) {
    (void)scratch;
    gemv(w, x, ldx, n_tokens, y, ldy, row0, row1, f16_at);
}

void sq_q8_0_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch) {
    (void)scratch;
    gemv(w, x, ldx, n_tokens, y, ldy, row0, row1, q8_0_at);
}

void sq_f32_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    expand_row(w, row, out, f32_at);
}

void sq_f16_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    expand_row(w, row, out, f16_at);
}

void sq_q8_0_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    expand_row(w, row, out, q8_0_at);
}
