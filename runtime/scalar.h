/* The plain C definitions of the kernels, one table's worth, and what kernels.c knows about the CPU. */
#ifndef SQ_SCALAR_H
#define SQ_SCALAR_H

#include "kernels.h"

/* gelu(z) = z / (1 + exp(-z (LINEAR + CUBIC z²))), which does not cancel for negative z as 1 + tanh does. */
#define GELU_LINEAR 1.5957691216057308f  /* 2 sqrt(2/pi) */
#define GELU_CUBIC  0.07135481282566265f /* the same times 0.044715 */

/* lut.c: dot products with and expansion of rows of table indices. */
void sq_lut2_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch);
void sq_lut3_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch);
void sq_lut4_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch);
void sq_lut2_expand_row(const sq_matrix *w, uint32_t row, float *out);
void sq_lut3_expand_row(const sq_matrix *w, uint32_t row, float *out);
void sq_lut4_expand_row(const sq_matrix *w, uint32_t row, float *out);

/* dense.c: the same for weights stored one by one. */
void sq_f32_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, void *scratch);
void sq_f16_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, void *scratch);
void sq_q8_0_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch);
void sq_f32_expand_row(const sq_matrix *w, uint32_t row, float *out);
void sq_f16_expand_row(const sq_matrix *w, uint32_t row, float *out);
void sq_q8_0_expand_row(const sq_matrix *w, uint32_t row, float *out);

/* sparse.c: what the kept weights of one row add; nothing where the matrix keeps none. */
float sq_sparse_dot(const sq_matrix *w, uint32_t row, const float *x);
void sq_sparse_add(const sq_matrix *w, uint32_t row, float *out);

/* attention.c */
void sq_kv_store_f16(const float *key, const float *value, uint32_t head_dim, uint32_t position, void *cache);
void sq_kv_store_f32(const float *key, const float *value, uint32_t head_dim, uint32_t position, void *cache);
void sq_kv_store_q8(const float *key, const float *value, uint32_t head_dim, uint32_t position, void *cache);
void sq_attend_f16(const sq_attention *attention);
void sq_attend_f32(const sq_attention *attention);
void sq_attend_q8(const sq_attention *attention);

/* fixed.c: products in 16-bit fixed point. */
void sq_fixed_pack(const float *x, size_t ldx, uint32_t n_tokens, uint32_t n_in, void *group);
void sq_fixed_gemm(const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y, size_t ldy,
                   uint32_t row0, uint32_t row1, void *scratch);
/* m of a row with an 8-bit table: the largest power of two with which no block's norm can pass 32767,
 * whatever the codes are; 0: none, as of other rows and where a number is not finite. */
uint32_t sq_fixed_multiple(const sq_matrix *w, uint32_t row);

/* i16 in a row of an expanded tile: a cache line more than it needs, so that the same columns of several
 * rows do not compete for one set of the L1 cache. */
static inline size_t sq_fixed_row_stride(size_t n_in) {
    return sq_pad(n_in) + 32;
}

/* Norms of blocks below count as zero: their inverse might overflow. */
#define SQ_FIXED_TINY 0x1p-100f

/* kernels.c: the instructions that x86_avx2.c and x86_avx512.c are compiled for. */
bool sq_cpu_has_avx2(void);
bool sq_cpu_has_avxvnni(void);
bool sq_cpu_has_avx512(void);
bool sq_cpu_has_avx512vnni(void);

/* kernels.c: whether codes are best asked for into the L1 cache, past the L2 cache (simd_rows.h). */
#if defined(__x86_64__)
extern bool sq_cpu_streams_into_l1;
#else
enum { sq_cpu_streams_into_l1 = 0 };
#endif

#endif
