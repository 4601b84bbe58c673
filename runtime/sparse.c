/* The weights a quantized matrix keeps exactly: CSR, docs/FORMAT.md section 2. */
#include "scalar.h"

float sq_sparse_dot(const sq_matrix *w, uint32_t row, const float *x) {
    float sum = 0;
    if (w->rows) {
        for (uint32_t k = (uint32_t)w->rows[row]; k < (uint32_t)w->rows[row + 1]; k++) {
            sum += sq_f16_to_f32(w->vals[k]) * x[sq_column(w, k)];
        }
    }
    return sum;
}

void sq_sparse_add(const sq_matrix *w, uint32_t row, float *out) {
    if (w->rows) {
        for (uint32_t k = (uint32_t)w->rows[row]; k < (uint32_t)w->rows[row + 1]; k++) {
            out[sq_column(w, k)] += sq_f16_to_f32(w->vals[k]);
        }
    }
}
