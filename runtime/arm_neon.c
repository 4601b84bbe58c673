/* NEON of 64-bit ARM, and its dot products: the vector operations of the simd_*.h in 4 lanes. */
#include "scalar.h"

#include <arm_neon.h>
#include <string.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

enum { W = 4, GEMV_ROWS = 2, TWO_ROWS = 2, FEW_ROWS = 2, FEW_TOKENS = 4, VALUE_VECTORS = 4 };
#define GEMM_TOKENS 6
#define SCORE_ROWS  8
#define VALUE_ROWS  4

typedef float32x4_t vf;
typedef float32x4_t v4;
typedef uint32x4_t vu;
typedef int32x4_t vi;

static inline vf vf_zero(void) {
    return vdupq_n_f32(0);
}
static inline vf vf_set1(float f) {
    return vdupq_n_f32(f);
}
static inline vf vf_load(const float *p) {
    return vld1q_f32(p);
}
static inline void vf_store(float *p, vf v) {
    vst1q_f32(p, v);
}
/* NEON has no masked loads and stores. n <= W, as the compiler does not see everywhere. */
static inline size_t lane_bytes(uint32_t n, size_t element_bytes) {
    return (n < W ? n : W) * element_bytes;
}
static inline vf vf_load_n(const float *p, uint32_t n) {
    float lanes[W] = {0};
    memcpy(lanes, p, lane_bytes(n, sizeof *p));
    return vf_load(lanes);
}
static inline void vf_store_n(float *p, vf v, uint32_t n) {
    float lanes[W];
    vf_store(lanes, v);
    memcpy(p, lanes, lane_bytes(n, sizeof *p));
}
static inline vf vf_fma(vf a, vf b, vf c) {
    return vfmaq_f32(c, a, b);
}
/* The instructions give a NaN where either operand is one. */
static inline vf vf_min(vf a, vf b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
static inline vf vf_max(vf a, vf b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

static inline vf vf_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline vf vf_load_f16_n(const uint16_t *p, uint32_t n) {
    uint16_t lanes[W] = {0};
    memcpy(lanes, p, lane_bytes(n, sizeof *p));
    return vf_load_f16(lanes);
}
static inline void vf_store_f16_n(uint16_t *p, vf v, uint32_t n) {
    uint16_t lanes[W];
    vst1_u16(lanes, vreinterpret_u16_f16(vcvt_f16_f32(v)));
    memcpy(p, lanes, lane_bytes(n, sizeof *p));
}
static inline vf vf_load_i8(const int8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
static inline vf vf_set1_f16(const uint8_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16((uint16_t)(p[0] | p[1] << 8))));
}

static inline v4 vf_sums(const vf *v) {
    return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
}

static inline vu vu_iota(void) {
    return (vu){0, 1, 2, 3};
}
static inline vu vu_load(const void *p) {
    return vreinterpretq_u32_u8(vld1q_u8(p));
}
static inline vu vu_srlv(vu v, vu shift) {
    return vshlq_u32(v, -vreinterpretq_s32_u32(shift));
}

static inline v4 v4_load_f16(const uint16_t *p) {
    return vf_load_f16(p);
}
/* The four floats at x + 4 i[0]. */
static inline vf vf_gather4(const float *x, const uint16_t *i) {
    return vf_load(x + 4 * i[0]);
}
static inline float f16_to_f32(uint16_t h) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

/* Up to 16 entries in f16, over a scale: their low bytes, then their high bytes, for lookups are in bytes. */
typedef struct lut_table {
    uint8x16x2_t bytes;
    vf scale;
} lut_table;

static inline lut_table lut_split(uint8x16_t first, uint8x16_t second, vf scale) {
    return (lut_table){{{vuzp1q_u8(first, second), vuzp2q_u8(first, second)}}, scale};
}
static inline lut_table lut_load(int bits, const uint16_t *lut) {
    uint8x16_t first =
        bits == 2 ? vcombine_u8(vld1_u8((const uint8_t *)lut), vdup_n_u8(0)) : vld1q_u8((const uint8_t *)lut);
    return lut_split(first, bits == 4 ? vld1q_u8((const uint8_t *)(lut + 8)) : first, vf_set1(1));
}
static inline uint8x8_t lut_four8(const int8_t *lut) {
    return vreinterpret_u8_f16(vcvt_f16_f32(vf_load_i8(lut)));
}
static inline lut_table lut_load8(int bits, const int8_t *lut, vf scale) {
    uint8x16_t first = vcombine_u8(lut_four8(lut), bits == 2 ? vdup_n_u8(0) : lut_four8(lut + 4));
    return lut_split(first, bits == 4 ? vcombine_u8(lut_four8(lut + 8), lut_four8(lut + 12)) : first, scale);
}
/* Byte 0 of a lane becomes an entry's low byte, byte 1 its high byte; the others are dropped. */
static inline vf lut_at(int bits, const lut_table *table, vu codes) {
    vu code = codes & ((1u << bits) - 1), index = code | code << 8 | 0x1000u;
    vu halves = vreinterpretq_u32_u8(vqtbl2q_u8(table->bytes, vreinterpretq_u8_u32(index)));
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(halves))) * table->scale;
}

typedef struct dwords {
    vu part[4];
} dwords;

static inline dwords dwords_load(const uint8_t *p, uint32_t n) {
    uint32_t padded[16] = {0};
    memcpy(padded, p, n * sizeof *padded);
    return (dwords){
        {vld1q_u32(padded), vld1q_u32(padded + 4), vld1q_u32(padded + 8), vld1q_u32(padded + 12)}};
}
static inline vu dwords_at(const dwords *d, vu index) {
    uint8x16x4_t bytes = {{vreinterpretq_u8_u32(d->part[0]), vreinterpretq_u8_u32(d->part[1]),
                           vreinterpretq_u8_u32(d->part[2]), vreinterpretq_u8_u32(d->part[3])}};
    vu at = index * 0x04040404u + 0x03020100u; /* of the four bytes of a dword */
    return vreinterpretq_u32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(at)));
}

static inline void vf_transpose4(vf *v) {
    float32x4x4_t columns = {{v[0], v[1], v[2], v[3]}};
    float rows[16];
    vst4q_f32(rows, columns);
    for (int i = 0; i < 4; i++) {
        v[i] = vld1q_f32(rows + 4 * i);
    }
}

static inline vi vi_nearest(vf v) {
    return vcvtnq_s32_f32(v);
}

enum { BYTES_OFFSET = 0 };
typedef uint8x16_t bytes_table;

static inline bytes_table bytes_load(int bits, const int8_t *lut) {
    if (bits == 4) {
        return vreinterpretq_u8_s8(vld1q_s8(lut));
    }
    uint64_t codes = 0;
    memcpy(&codes, lut, 1u << bits);
    return vreinterpretq_u8_u64(vdupq_n_u64(bits == 2 ? codes | codes << 32 : codes));
}
static inline vu bytes_at(const bytes_table *table, vu codes) {
    return vreinterpretq_u32_u8(vqtbl1q_u8(*table, vreinterpretq_u8_u32(codes & 0x0f0f0f0fu)));
}
/* This file is compiled for processors without the instruction too. */
static inline vi bytes_dot(vi sums, vu a, vu b) {
    __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(a), "w"(b));
    return sums;
}

#include "simd_digits.h"
#include "simd_table.h"

static bool sq_cpu_has_neon(void) {
    return true; /* every 64-bit ARM processor has it */
}
static bool sq_cpu_has_dotprod(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true; /* every Mac has it */
#endif
}

/* Integer products of pairs take as many instructions as f32's. */
const sq_kernels sq_kernels_neon = SIMD_KERNELS(neon, lut, NULL, NULL);
const sq_kernels sq_kernels_dotprod = SIMD_KERNELS(dotprod, digits, NULL, NULL);
