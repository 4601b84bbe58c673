/* Tables and indices of a matrix's rows fitted to how much their errors matter together.
 *
 * For each row w with table c and one-hot matrix P of its indices, lowers
 *
 *     (P c - w)ᵀ H (P c - w),     H [n_cols, n_cols] symmetric, positive definite,
 *
 * where k-means weighs each error alone. Steps over indices and table take turns, and none is taken that
 * raises it. First the indices are found by rounding one column after the other, each to the entry nearest to
 * what is best once all columns before are fixed and all behind are free: with H = M D Mᵀ, M upper triangular
 * of unit diagonal, to w_i - Σ_{j<i} M_ji (error of j). Then they descend column by column, each to the entry
 * nearest to what is best while all others stay. The table that is best for the indices has a closed form.
 *
 * Sources: LNQ, J. Kim et al., "GuidedQuant", arXiv 2505.07004, section 4 and algorithm 2, for table and
 * descent, and for H = Xᵀ diag(s) X; the rounding of weights is LDLQ, J. Chee et al., "QuIP", arXiv
 * 2307.13304, section 3, which GPTQ (arXiv 2210.17323) also is. Rounding before the descent lowers the end by
 * 8 to 18 %. */
#ifndef SQ_REFINE_H
#define SQ_REFINE_H

#include <stdint.h>

#include "export.h"

/* Objectives of a row: at the start, and after each of 6 steps over indices (3 roundings, 3 descents) and the
 * table step behind it. */
enum { SQ_REFINE_OBJECTIVES = 13 };

/* H and M lie in tiles of 64 rows and 16 columns, tile by tile along the columns, each row by row, with zeros
 * up to a multiple of 64 rows and columns: a core then reads them from first to last. */
enum { SQ_REFINE_TILE_ROWS = 64, SQ_REFINE_TILE_COLUMNS = 16 };

/* values    [n_rows, n_cols]  f32, finite, |value| at most 65504
 * hessian   [n_cols, n_cols]  H, in tiles, f32, finite, symmetric; a column whose diagonal is not positive
 *                             keeps its indices in a descent
 * factor    [n_cols, n_cols]  M, in tiles, f32, finite, with zeros on and below the diagonal
 * kept      [n_rows, n_cols]  1 where a value has no error, whatever its index; NULL: none
 * table     [n_rows, k]       in and out: f32, ascending, at most 65504 in size; k is 2 … 16. On return an
 *                             entry is a code, -127 … 127, times a scale that f16 holds and the row shares
 * indices   [n_rows, n_cols]  in and out: below k; of kept values on return the nearest entry's
 * objective [n_rows, SQ_REFINE_OBJECTIVES]  out: never rising
 *
 * The result depends neither on n_threads nor on the instruction set. Returns 0, or -1 where memory ran out.
 */
SQ_FIT_API int sq_refine_rows(const float *values, const float *hessian, const float *factor,
                              const uint8_t *kept, uint32_t n_rows, uint32_t n_cols, uint32_t k,
                              uint32_t n_threads, float *table, uint8_t *indices, double *objective);

#endif
