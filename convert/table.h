/* Weights from tables and indices, and sums over the weights that share an entry: how tuning reads a matrix
 * and passes its gradient on. */
#ifndef SQ_CONVERT_TABLE_H
#define SQ_CONVERT_TABLE_H

#include <stdint.h>

#include "export.h"

/* values [n_rows, n_cols]: out, table[row, indices[row, column]]
 * table  [n_rows, k], k is 1 … 16; indices [n_rows, n_cols], all below k
 *
 * The result does not depend on n_threads; nor does that of the next one. */
SQ_FIT_API void sq_table_values(const float *table, const uint8_t *indices, uint32_t n_rows, uint32_t n_cols,
                                uint32_t k, uint32_t n_threads, float *values);

/* sums [n_rows, k]: out, Σ values[row, column] over the columns whose index is the entry's, in f32. */
SQ_FIT_API void sq_table_sums(const float *values, const uint8_t *indices, uint32_t n_rows, uint32_t n_cols,
                              uint32_t k, uint32_t n_threads, float *sums);

#endif
