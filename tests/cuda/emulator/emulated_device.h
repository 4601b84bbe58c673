/* What cuda/port.cuh writes in PTX, in plain C++. */
#ifndef SQ_EMULATED_DEVICE_H
#define SQ_EMULATED_DEVICE_H

#include <cuda_runtime.h>

extern "C" {
float sq_f16_to_f32(uint16_t h); /* runtime/f16.c */
uint16_t sq_f32_to_f16(float f);
}

inline float f16_value(uint32_t bits) {
    return sq_f16_to_f32((uint16_t)bits);
}
inline uint32_t f16_bits(float f) {
    return sq_f32_to_f16(f);
}
inline uint32_t f16x2_bits(float low, float high) {
    return f16_bits(low) | f16_bits(high) << 16;
}
inline uint32_t f16x2_sub(uint32_t a, uint32_t b) {
    return f16_bits(f16_value(a) - f16_value(b)) | f16_bits(f16_value(a >> 16) - f16_value(b >> 16)) << 16;
}
inline uint32_t bytes_permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> 4 * i & 15;
        uint32_t byte = (uint32_t)(bytes >> 8 * (s & 7)) & 255;
        if (s & 8)
            byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline uint32_t bits_take(uint32_t a, uint32_t mask, uint32_t set) {
    return (a & mask) | set;
}
inline void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    struct {
        float a[4][2], b[2][2]; /* f32 already, so that each value is widened once */
    } mine;
    static_assert(sizeof mine <= 64, "a slot of the emulator");
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++)
            mine.a[i][j] = f16_value(a[i] >> 16 * j);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            mine.b[i][j] = f16_value(b[i] >> 16 * j);
    size_t stride;
    const uint8_t *slots = emulated_exchange(&mine, sizeof mine, &stride);
    unsigned lane = emulated_lane(), row = lane / 4, column = lane % 4 * 2;
    for (unsigned part = 0; part < 2; part++) /* inputs 0 … 7, then 8 … 15 */
        for (unsigned k = 0; k < 4; k++) {
            const auto *left = (const decltype(mine) *)(slots + (4 * row + k) * stride);
            for (unsigned n = 0; n < 2; n++) {
                const auto *right = (const decltype(mine) *)(slots + (4 * (column + n) + k) * stride);
                for (unsigned j = 0; j < 2; j++) {
                    c[n] += left->a[2 * part][j] * right->b[part][j];
                    c[2 + n] += left->a[2 * part + 1][j] * right->b[part][j];
                }
            }
        }
}
/* Element [r, c] of matrix i, of whose rows each lane brings one. */
inline uint16_t emulated_element(const uint8_t *slots, size_t stride, unsigned i, unsigned r, unsigned c) {
    const uint4 *row;
    memcpy(&row, slots + (8 * i + r) * stride, sizeof row);
    uint4 whole = *row; /* UBSan sees where it is not aligned */
    uint16_t elements[8];
    memcpy(elements, &whole, sizeof elements);
    return elements[c];
}
inline void matrices_load(uint32_t m[4], const void *row) {
    size_t stride;
    const uint8_t *slots = emulated_exchange(&row, sizeof row, &stride);
    unsigned g = emulated_lane() / 4, q = emulated_lane() % 4;
    for (unsigned i = 0; i < 4; i++)
        m[i] = emulated_element(slots, stride, i, g, 2 * q) |
               (uint32_t)emulated_element(slots, stride, i, g, 2 * q + 1) << 16;
}
inline void matrices_load_transposed(uint32_t m[4], const void *row) {
    size_t stride;
    const uint8_t *slots = emulated_exchange(&row, sizeof row, &stride);
    unsigned g = emulated_lane() / 4, q = emulated_lane() % 4;
    for (unsigned i = 0; i < 4; i++)
        m[i] = emulated_element(slots, stride, i, 2 * q, g) |
               (uint32_t)emulated_element(slots, stride, i, 2 * q + 1, g) << 16;
}
inline void mma_s8(int c[4], const uint32_t a[4], const uint32_t b[2]) {
    struct {
        int8_t a[4][4], b[2][4];
    } mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    size_t stride;
    const uint8_t *slots = emulated_exchange(&mine, sizeof mine, &stride);
    unsigned lane = emulated_lane(), row = lane / 4, column = lane % 4 * 2;
    for (unsigned part = 0; part < 2; part++) /* inputs 0 … 15, then 16 … 31 */
        for (unsigned k = 0; k < 4; k++) {
            const auto *left = (const decltype(mine) *)(slots + (4 * row + k) * stride);
            for (unsigned n = 0; n < 2; n++) {
                const auto *right = (const decltype(mine) *)(slots + (4 * (column + n) + k) * stride);
                for (unsigned j = 0; j < 4; j++) {
                    c[n] += left->a[2 * part][j] * right->b[part][j];
                    c[2 + n] += left->a[2 * part + 1][j] * right->b[part][j];
                }
            }
        }
}
inline uint4 load_once(const uint4 *p) {
    return *p;
}
inline void copy_async(void *shared, const void *global) {
    *(uint4 *)shared = *(const uint4 *)global; /* UBSan sees where they are not aligned */
}
inline void copies_commit() {}
template <int N> inline void copies_wait() {}
inline void previous_kernel_wait() {}
inline void next_kernel_start() {}
template <typename T> inline T *shared_memory() {
    return (T *)emulated_shared();
}

#endif
