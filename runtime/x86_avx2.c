/* AVX2, FMA and F16C, and AVX-VNNI: the vector operations of the simd_*.h in 8 lanes. */
#include "scalar.h"

#include <immintrin.h>
#include <string.h>

enum { W = 8, GEMV_ROWS = 2, TWO_ROWS = 1, FEW_ROWS = 1, FEW_TOKENS = 4 };
enum { FIXED_TILE_ROWS = 4, VALUE_VECTORS = 2 };
#define GEMM_TOKENS        3
#define FIXED_TILE_VECTORS 2
#define SCORE_ROWS         4
#define VALUE_ROWS         4

typedef __m256 vf;
typedef __m128 v4;
typedef uint32_t vu __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));

static inline __m256i mask_of(uint32_t n) {
    return (__m256i)((vi){0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)n);
}

static inline vf vf_zero(void) {
    return _mm256_setzero_ps();
}
static inline vf vf_set1(float f) {
    return _mm256_set1_ps(f);
}
static inline vf vf_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf v) {
    _mm256_storeu_ps(p, v);
}
static inline vf vf_load_n(const float *p, uint32_t n) {
    return _mm256_maskload_ps(p, mask_of(n));
}
static inline void vf_store_n(float *p, vf v, uint32_t n) {
    _mm256_maskstore_ps(p, mask_of(n), v);
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}
static inline vf vf_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}

/* AVX2 has no masked loads of 16 bits. */
static inline __m128i load_u16_n(const uint16_t *p, uint32_t n) {
    uint16_t lanes[8] = {0};
    if (n < W) {
        memcpy(lanes, p, n * sizeof *p);
        p = lanes;
    }
    return _mm_loadu_si128((const __m128i *)p);
}
static inline vf vf_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vf vf_load_f16_n(const uint16_t *p, uint32_t n) {
    return _mm256_cvtph_ps(load_u16_n(p, n));
}
static inline void vf_store_f16_n(uint16_t *p, vf v, uint32_t n) {
    uint16_t lanes[8];
    _mm_storeu_si128((__m128i *)lanes, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    memcpy(p, lanes, n * sizeof *p);
}
static inline vf vf_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline vf vf_set1_f16(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_set1_epi16((short)(p[0] | p[1] << 8)));
}

/* Adds pairs of lanes while transposing, so that four sums cost little more than one. */
static inline v4 vf_sums(const vf *v) {
    __m256 ab = _mm256_unpacklo_ps(v[0], v[1]) + _mm256_unpackhi_ps(v[0], v[1]);
    __m256 cd = _mm256_unpacklo_ps(v[2], v[3]) + _mm256_unpackhi_ps(v[2], v[3]);
    __m256 abcd = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
    return _mm256_castps256_ps128(abcd) + _mm256_extractf128_ps(abcd, 1);
}

static inline vu vu_iota(void) {
    return (vu){0, 1, 2, 3, 4, 5, 6, 7};
}
static inline vu vu_load(const void *p) {
    return (vu)_mm256_loadu_si256(p);
}
static inline vu vu_srlv(vu v, vu shift) {
    return (vu)_mm256_srlv_epi32((__m256i)v, (__m256i)shift);
}

static inline vu vu_load_n(const void *p, uint32_t n) {
    return (vu)_mm256_maskload_epi32(p, mask_of(n));
}
/* Single loads: fewer micro-operations than the gather instruction has. */
static inline v4 v4_load_f16(const uint16_t *p) {
    return _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p));
}
/* The four floats at x + 4 i[0] and x + 4 i[4]. */
static inline vf vf_gather4(const float *x, const uint16_t *i) {
    return _mm256_set_m128(_mm_loadu_ps(x + 4 * i[4]), _mm_loadu_ps(x + 4 * i[0]));
}
static inline float f16_to_f32(uint16_t h) {
    return _cvtsh_ss(h);
}

/* Eight entries a register; a permute looks at the low three bits of an index. Four stand in it twice. */
typedef struct lut_table {
    __m256 low, high;
} lut_table;

static inline lut_table lut_load(int bits, const uint16_t *lut) {
    if (bits == 2) {
        __m128 four = _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)lut));
        return (lut_table){_mm256_set_m128(four, four), vf_zero()};
    }
    return (lut_table){vf_load_f16(lut), bits == 4 ? vf_load_f16(lut + 8) : vf_zero()};
}
static inline int load_i32(const int8_t *p) {
    int four;
    memcpy(&four, p, sizeof four);
    return four;
}
static inline long long load_i64(const int8_t *p) {
    long long eight;
    memcpy(&eight, p, sizeof eight);
    return eight;
}
static inline vf lut_half8(__m128i codes, vf scale) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)) * scale;
}
static inline lut_table lut_load8(int bits, const int8_t *lut, vf scale) {
    if (bits == 2) {
        return (lut_table){lut_half8(_mm_set1_epi32(load_i32(lut)), scale), vf_zero()};
    }
    return (lut_table){lut_half8(_mm_loadl_epi64((const __m128i *)lut), scale),
                       bits == 4 ? lut_half8(_mm_loadl_epi64((const __m128i *)(lut + 8)), scale) : vf_zero()};
}
static inline vf lut_at(int bits, const lut_table *table, vu codes) {
    __m256 low = _mm256_permutevar8x32_ps(table->low, (__m256i)codes);
    if (bits < 4) {
        return low;
    }
    __m256 high = _mm256_permutevar8x32_ps(table->high, (__m256i)codes);
    return _mm256_blendv_ps(low, high, (__m256)(codes << 28)); /* bit 3 of the index becomes the sign */
}

typedef struct dwords {
    vu part[2];
} dwords;

static inline dwords dwords_load(const uint8_t *p, uint32_t n) {
    return (dwords){{vu_load_n(p, n), n > W ? vu_load_n(p + 4 * W, n - W) : (vu){0}}};
}
static inline vu dwords_at(const dwords *d, vu index) {
    __m256 low = _mm256_permutevar8x32_ps((__m256)d->part[0], (__m256i)index);
    __m256 high = _mm256_permutevar8x32_ps((__m256)d->part[1], (__m256i)index);
    return (vu)_mm256_blendv_ps(low, high, (__m256)(index << 28));
}

static inline void vf_transpose4(vf *v) {
    __m256d ab = (__m256d)_mm256_unpacklo_ps(v[0], v[1]), cd = (__m256d)_mm256_unpacklo_ps(v[2], v[3]);
    __m256d ab2 = (__m256d)_mm256_unpackhi_ps(v[0], v[1]), cd2 = (__m256d)_mm256_unpackhi_ps(v[2], v[3]);
    v[0] = (vf)_mm256_unpacklo_pd(ab, cd);
    v[1] = (vf)_mm256_unpackhi_pd(ab, cd);
    v[2] = (vf)_mm256_unpacklo_pd(ab2, cd2);
    v[3] = (vf)_mm256_unpackhi_pd(ab2, cd2);
}
static inline void v4_transpose(v4 *v) {
    _MM_TRANSPOSE4_PS(v[0], v[1], v[2], v[3]);
}

static inline vi vi_nearest(vf v) {
    return (vi)_mm256_cvtps_epi32(v);
}

/* The table once in each 16 bytes. */
enum { BYTES_OFFSET = 128 };
typedef __m256i bytes_table;

static inline bytes_table bytes_load(int bits, const int8_t *lut) {
    __m128i codes = bits == 4 ? _mm_loadu_si128((const __m128i *)lut) : _mm_setzero_si128();
    if (bits == 3) {
        codes = _mm_set1_epi64x(load_i64(lut));
    } else if (bits == 2) {
        codes = _mm_set1_epi32(load_i32(lut));
    }
    return _mm256_xor_si256(_mm256_broadcastsi128_si256(codes), _mm256_set1_epi8(-128));
}
static inline vu bytes_at(const bytes_table *table, vu codes) {
    return (vu)_mm256_shuffle_epi8(*table, (__m256i)(codes & 0x0f0f0f0fu));
}
/* AVX-VNNI has it; this file is compiled for processors without it too. */
static inline vi bytes_dot(vi sums, vu a, vu b) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b));
    return sums;
}

#include "simd_digits.h"
#include "simd_fixed.h"
#include "simd_table.h"

static inline vi dot_pairs_madd(vi sums, vi a, vi b) {
    return sums + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

static inline vi dot_pairs_vnni(vi sums, vi a, vi b) {
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(a), "x"(b));
    return sums;
}

static void fixed_gemm_vnni(const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y, size_t ldy,
                            uint32_t row0, uint32_t row1, void *scratch) {
    fixed_gemm(dot_pairs_vnni, w, packed, n_tokens, y, ldy, row0, row1, scratch);
}
static void fixed_gemm_madd(const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y, size_t ldy,
                            uint32_t row0, uint32_t row1, void *scratch) {
    fixed_gemm(dot_pairs_madd, w, packed, n_tokens, y, ldy, row0, row1, scratch);
}

const sq_kernels sq_kernels_avx2 = SIMD_KERNELS(avx2, lut, fixed_pack, fixed_gemm_madd);
const sq_kernels sq_kernels_avxvnni = SIMD_KERNELS(avxvnni, digits, fixed_pack, fixed_gemm_vnni);
