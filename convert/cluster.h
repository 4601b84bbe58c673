/* One-dimensional weighted k-means of every row of a matrix, exact.
 *
 * Minimises, for each row, Σ_i weight_i (value_i - table[index_i])² over tables of k entries. On sorted
 * values a cluster is an interval, so the optimum is a shortest path found by dynamic programming:
 * best[c][i], the least cost of the first i values in c clusters, is min_j best[c-1][j] + cost(j, i), with
 * cost(j, i) from prefix sums in constant time. The smallest minimising j never falls as i grows, so each
 * layer is filled by divide and conquer in O(n log n). Sources: H. Wang and M. Song, "Ckmeans.1d.dp", The R
 * Journal 3(2), 2011, section "Algorithm"; A. Grønlund et al., "Fast exact k-means, k-medians and Bregman
 * divergence clustering in 1D", arXiv 1701.07204, sections 2.1 and 2.2.
 *
 * The table is then rounded to f16. Rounding moves the entries, so indices and entries are fitted to each
 * other again (each value takes its nearest entry, each entry the f16 nearest its values' mean) while that
 * helps. */
#ifndef SQ_CLUSTER_H
#define SQ_CLUSTER_H

#include <stdint.h>

#include "export.h"

/* values  [n_rows, n_cols]  f32, finite, |value| at most 65504
 * weights [n_rows, n_cols]  f32, finite, not negative; NULL: all 1
 * kept    [n_rows, n_cols]  1 where a value stays out of the clustering (weight 0); NULL: none
 * table   [n_rows, k]       out: f16 bits, ascending; k is 1 … 256. A row with fewer distinct values than
 *                           entries repeats its last one
 * indices [n_rows, n_cols]  out: the entry nearest to each value, the lower one at a tie; kept values too
 * errors  [n_rows, 2]       out: the weighted squared error of the exact optimum, and of what is returned;
 *                           kept values do not count
 *
 * A row whose weights are all 0 (outside of what is kept) is clustered with weights 1, a row that is wholly
 * kept as if nothing were. The result does not depend on n_threads. Returns 0, or -1 where memory ran out. */
SQ_FIT_API int sq_cluster_rows(const float *values, const float *weights, const uint8_t *kept,
                               uint32_t n_rows, uint32_t n_cols, uint32_t k, uint32_t n_threads,
                               uint16_t *table, uint8_t *indices, double *errors);

#endif
