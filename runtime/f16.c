/* IEEE binary16 in plain C, bit for bit what F16C and NEON compute. */
#include "kernels.h"

#include <string.h>

float sq_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff, bits;
    if (exponent == 0) {
        float subnormal = (float)mantissa * 0x1p-24f; /* exact; zero too */
        return sign ? -subnormal : subnormal;
    }
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0); /* a NaN becomes a quiet one */
    } else {
        bits = sign | (exponent + 127 - 15) << 23 | mantissa << 13;
    }
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

uint16_t sq_f32_to_f16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff)); /* NaN */
    }
    if (magnitude >= 0x477ff000) {
        return (uint16_t)(sign | 0x7c00); /* 65520 and more round to infinity */
    }
    if (magnitude < 0x33000000) {
        return (uint16_t)sign; /* below 2^-25, half the smallest subnormal */
    }
    /* Drop the low `shift` bits, to nearest, ties to even. */
    uint32_t exponent = magnitude >> 23, value, shift;
    if (exponent < 127 - 14) { /* subnormal: a multiple of 2^-24 */
        value = (magnitude & 0x7fffff) | 0x800000;
        shift = 126 - exponent;
    } else {
        value = magnitude - ((127u - 15) << 23);
        shift = 13;
    }
    uint32_t half = 1u << (shift - 1), rest = value & (2 * half - 1), result = value >> shift;
    if (rest > half || (rest == half && (result & 1))) {
        result++;
    }
    return (uint16_t)(sign | result);
}
