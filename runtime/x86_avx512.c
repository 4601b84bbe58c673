/* AVX-512 (F, BW, VL, DQ): the vector operations of the simd_*.h in 16 lanes. */
#include "scalar.h"

#include <immintrin.h>
#include <string.h>

enum { W = 16, GEMV_ROWS = 4, TWO_ROWS = 4, FEW_ROWS = 2, FEW_TOKENS = 4 };
enum { FIXED_TILE_ROWS = 8, VALUE_VECTORS = 4 };
#define GEMM_TOKENS        6
#define FIXED_TILE_VECTORS 3
#define SCORE_ROWS         8
#define VALUE_ROWS         4

typedef __m512 vf;
typedef __m128 v4;
typedef uint32_t vu __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));

static inline __mmask16 mask_of(uint32_t n) {
    return (__mmask16)((1u << n) - 1);
}

static inline vf vf_zero(void) {
    return _mm512_setzero_ps();
}
static inline vf vf_set1(float f) {
    return _mm512_set1_ps(f);
}
static inline vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf v) {
    _mm512_storeu_ps(p, v);
}
static inline vf vf_load_n(const float *p, uint32_t n) {
    return _mm512_maskz_loadu_ps(mask_of(n), p);
}
static inline void vf_store_n(float *p, vf v, uint32_t n) {
    _mm512_mask_storeu_ps(p, mask_of(n), v);
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
static inline vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}

static inline vf vf_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vf vf_load_f16_n(const uint16_t *p, uint32_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_of(n), p));
}
static inline void vf_store_f16_n(uint16_t *p, vf v, uint32_t n) {
    _mm256_mask_storeu_epi16(p, mask_of(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vf vf_set1_f16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)(p[0] | p[1] << 8)));
}

/* Adds pairs of lanes while transposing, so that four sums cost little more than one. */
static inline v4 vf_sums(const vf *v) {
    __m512 ab = _mm512_unpacklo_ps(v[0], v[1]) + _mm512_unpackhi_ps(v[0], v[1]);
    __m512 cd = _mm512_unpacklo_ps(v[2], v[3]) + _mm512_unpackhi_ps(v[2], v[3]);
    __m512 abcd = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
    __m256 half = _mm512_castps512_ps256(abcd) + _mm512_extractf32x8_ps(abcd, 1);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}

static inline vu vu_iota(void) {
    return (vu){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}
static inline vu vu_load(const void *p) {
    return (vu)_mm512_loadu_si512(p);
}
static inline vu vu_srlv(vu v, vu shift) {
    return (vu)_mm512_srlv_epi32((__m512i)v, (__m512i)shift);
}

static inline v4 v4_load_f16(const uint16_t *p) {
    return _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p));
}
/* The four floats at x + 4 i[0], x + 4 i[4], … */
static inline vf vf_gather4(const float *x, const uint16_t *i) {
    __m256 low = _mm256_set_m128(_mm_loadu_ps(x + 4 * i[4]), _mm_loadu_ps(x + 4 * i[0]));
    __m256 high = _mm256_set_m128(_mm_loadu_ps(x + 4 * i[12]), _mm_loadu_ps(x + 4 * i[8]));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
static inline float f16_to_f32(uint16_t h) {
    return _cvtsh_ss(h);
}

/* One register. Short tables are repeated in it, so that the bits above an index do not matter. */
typedef __m512 lut_table;

static inline lut_table lut_load(int bits, const uint16_t *lut) {
    if (bits == 4) {
        return vf_load_f16(lut);
    }
    if (bits == 2) {
        return _mm512_broadcast_f32x4(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)lut)));
    }
    __m256 half = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)lut));
    return _mm512_insertf32x8(_mm512_castps256_ps512(half), half, 1);
}
static inline __m128i lut_codes(int bits, const int8_t *lut) {
    if (bits == 4) {
        return _mm_loadu_si128((const __m128i *)lut);
    }
    if (bits == 3) {
        return _mm_broadcastq_epi64(_mm_loadl_epi64((const __m128i *)lut));
    }
    int four;
    memcpy(&four, lut, sizeof four);
    return _mm_set1_epi32(four);
}
static inline lut_table lut_load8(int bits, const int8_t *lut, vf scale) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(lut_codes(bits, lut))) * scale;
}
static inline vf lut_at(int bits, const lut_table *table, vu codes) {
    (void)bits;
    return _mm512_permutexvar_ps((__m512i)codes, *table); /* looks at the low four bits */
}

typedef struct dwords {
    vu part[1];
} dwords;

static inline dwords dwords_load(const uint8_t *p, uint32_t n) {
    return (dwords){{(vu)_mm512_maskz_loadu_epi32(mask_of(n), p)}};
}
static inline vu dwords_at(const dwords *d, vu index) {
    return (vu)_mm512_permutexvar_epi32((__m512i)index, (__m512i)d->part[0]);
}

static inline void vf_transpose4(vf *v) {
    __m512d ab = (__m512d)_mm512_unpacklo_ps(v[0], v[1]), cd = (__m512d)_mm512_unpacklo_ps(v[2], v[3]);
    __m512d ab2 = (__m512d)_mm512_unpackhi_ps(v[0], v[1]), cd2 = (__m512d)_mm512_unpackhi_ps(v[2], v[3]);
    v[0] = (vf)_mm512_unpacklo_pd(ab, cd);
    v[1] = (vf)_mm512_unpackhi_pd(ab, cd);
    v[2] = (vf)_mm512_unpacklo_pd(ab2, cd2);
    v[3] = (vf)_mm512_unpackhi_pd(ab2, cd2);
}
static inline void v4_transpose(v4 *v) {
    _MM_TRANSPOSE4_PS(v[0], v[1], v[2], v[3]);
}

static inline vi vi_nearest(vf v) {
    return (vi)_mm512_cvtps_epi32(v);
}

/* The table once in each 16 bytes. */
enum { BYTES_OFFSET = 128 };
typedef __m512i bytes_table;

static inline bytes_table bytes_load(int bits, const int8_t *lut) {
    return _mm512_xor_si512(_mm512_broadcast_i32x4(lut_codes(bits, lut)), _mm512_set1_epi8(-128));
}
static inline vu bytes_at(const bytes_table *table, vu codes) {
    return (vu)_mm512_shuffle_epi8(*table, (__m512i)(codes & 0x0f0f0f0fu));
}
/* Written out because GCC 12 keeps the sums of its built-in function in memory. */
static inline vi bytes_dot(vi sums, vu a, vu b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
}

#include "simd_digits.h"
#include "simd_fixed.h"
#include "simd_table.h"

static inline vi dot_pairs_madd(vi sums, vi a, vi b) {
    return sums + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
/* As bytes_dot. */
static inline vi dot_pairs_vnni(vi sums, vi a, vi b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
}

static void fixed_gemm_madd(const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y, size_t ldy,
                            uint32_t row0, uint32_t row1, void *scratch) {
    fixed_gemm(dot_pairs_madd, w, packed, n_tokens, y, ldy, row0, row1, scratch);
}
static void fixed_gemm_vnni(const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y, size_t ldy,
                            uint32_t row0, uint32_t row1, void *scratch) {
    fixed_gemm(dot_pairs_vnni, w, packed, n_tokens, y, ldy, row0, row1, scratch);
}

const sq_kernels sq_kernels_avx512 = SIMD_KERNELS(avx512, lut, fixed_pack, fixed_gemm_madd);
const sq_kernels sq_kernels_avx512vnni = SIMD_KERNELS(avx512vnni, digits, fixed_pack, fixed_gemm_vnni);
