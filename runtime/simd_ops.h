/* What lies between the matrices, over vectors of W floats: the one body that x86_avx512.c and
 * x86_avx2.c include after simd_matrix.h. Beyond its list it takes
 *
 *   vi                    vectors of W int32_t
 *   vf_min vf_max         the second operand where one is a NaN
 */
#ifndef SQ_SIMD_OPS_H
#define SQ_SIMD_OPS_H

#include "simd_matrix.h"

#include <math.h>

/* Lanes that position i of n still fills. */
SQ_INLINE uint32_t lanes(uint32_t n, uint32_t i) {
    return n - i < W ? n - i : W;
}

SQ_INLINE float vf_sum(vf v) {
    return vf_sums((const vf[4]){v, vf_zero(), vf_zero(), vf_zero()})[0];
}

/* The largest lane. */
SQ_INLINE float vf_top(vf v) {
    float lane[W];
    vf_store(lane, v);
    for (int i = 4; i < W; i++) { /* four side by side */
        lane[i % 4] = lane[i] > lane[i % 4] ? lane[i] : lane[i % 4];
    }
    float a = lane[0] > lane[1] ? lane[0] : lane[1], b = lane[2] > lane[3] ? lane[2] : lane[3];
    return a > b ? a : b;
}

/* e^x = 2^whole (1 + factor · r). */
typedef struct power {
    vf factor, r;
    vi whole;
} power;

/* x = whole · ln 2 + r, |r| <= ln 2 / 2, Taylor's series for e^r. x is taken into [-104, 89]; a NaN stays. */
SQ_INLINE power vf_power(vf x) {
    const vf round = vf_set1(0x1.8p23f); /* adding it leaves the nearest integer in the low bits */
    x = vf_min(vf_set1(89), vf_max(vf_set1(-104), x));
    vf biased = vf_fma(x, vf_set1(0x1.715476p0f), round), n = biased - round;
    vf r = vf_fma(n, vf_set1(-0x1.62e4p-1f), x); /* exact: ln 2 in two parts, the first of 15 bits */
    r = vf_fma(n, vf_set1(-0x1.7f7d1cp-20f), r);
    vf e = vf_set1(1.0f / 5040);
    e = vf_fma(e, r, vf_set1(1.0f / 720));
    e = vf_fma(e, r, vf_set1(1.0f / 120));
    e = vf_fma(e, r, vf_set1(1.0f / 24));
    e = vf_fma(e, r, vf_set1(1.0f / 6));
    e = vf_fma(e, r, vf_set1(0.5f));
    e = vf_fma(e, r, vf_set1(1));
    return (power){e, r, (vi)biased - (vi)round};
}

/* 2^n, -126 <= n <= 127 */
SQ_INLINE vf vf_two_to(vi n) {
    return (vf)((n + 127) << 23);
}

/* e^x to about one unit in the last place. Below -104 the result is 0, above 89 infinity; a NaN stays one. */
SQ_INLINE vf vf_exp(vf x) {
    power p = vf_power(x);
    vi half = p.whole >> 1; /* 2^whole in two factors, so that both are normal numbers */
    return vf_fma(p.factor, p.r, vf_set1(1)) * vf_two_to(half) * vf_two_to(p.whole - half);
}

/* tanh x = m / (m + 2), m = e^2x - 1: small x keep their precision. It is 1 from 10 on. */
SQ_INLINE vf vf_tanh(vf x) {
    x = vf_min(vf_set1(10), vf_max(vf_set1(-10), x));
    power p = vf_power(x + x);
    vf scale = vf_two_to(p.whole), m = vf_fma(scale, p.factor * p.r, scale - vf_set1(1));
    return m / (m + vf_set1(2));
}

static void rms_norm(const float *x, const float *weight, float eps, uint32_t n, float *y) {
    vf squares = vf_zero();
    for (uint32_t i = 0; i < n; i += W) {
        vf xs = vf_load_n(x + i, lanes(n, i));
        squares = vf_fma(xs, xs, squares);
    }
    vf scale = vf_set1(1 / sqrtf(vf_sum(squares) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_n(y + i, vf_load_n(x + i, m) * scale * vf_load_n(weight + i, m), m);
    }
}

static void layer_norm(const float *x, const float *weight, const float *bias, float eps, uint32_t n,
                       float *y) {
    vf sum = vf_zero(), squares = vf_zero();
    for (uint32_t i = 0; i < n; i += W) {
        sum += vf_load_n(x + i, lanes(n, i));
    }
    vf mean = vf_set1(vf_sum(sum) / (float)n);
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_n(y + i, vf_load_n(x + i, m) - mean, m);
        vf centred = vf_load_n(y + i, m); /* zero past n */
        squares = vf_fma(centred, centred, squares);
    }
    vf scale = vf_set1(1 / sqrtf(vf_sum(squares) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_n(y + i,
                   vf_fma(vf_load_n(y + i, m) * scale, vf_load_n(weight + i, m), vf_load_n(bias + i, m)), m);
    }
}

static void silu_mul(const float *gate, const float *up, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf g = vf_load_n(gate + i, m);
        vf_store_n(y + i, g / (vf_set1(1) + vf_exp(-g)) * vf_load_n(up + i, m), m);
    }
}

static void gelu_mul(const float *gate, const float *up, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf g = vf_load_n(gate + i, m);
        vf inner = g * vf_fma(g * g, vf_set1(GELU_CUBIC), vf_set1(GELU_LINEAR));
        vf_store_n(y + i, g / (vf_set1(1) + vf_exp(-inner)) * vf_load_n(up + i, m), m);
    }
}

static void relu(float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_n(x + i, vf_max(vf_zero(), vf_load_n(x + i, m)), m);
    }
}

static void softcap(float *x, float cap, uint32_t n) {
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_n(x + i, vf_set1(cap) * vf_tanh(vf_load_n(x + i, m) / vf_set1(cap)), m);
    }
}

static void rope(float *x, const float *cos, const float *sin, uint32_t n_heads, uint32_t head_dim,
                 uint32_t n_rot) {
    uint32_t half = n_rot / 2;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim) {
        for (uint32_t i = 0; i < half; i += W) {
            uint32_t m = lanes(half, i);
            float *a = x + i, *b = x + half + i;
            vf as = vf_load_n(a, m), bs = vf_load_n(b, m);
            vf c = vf_load_n(cos + i, m), s = vf_load_n(sin + i, m);
            vf_store_n(a, as * c - bs * s, m);
            vf_store_n(b, bs * c + as * s, m);
        }
    }
}

static void add(float *y, const float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_n(y + i, vf_load_n(y + i, m) + vf_load_n(x + i, m), m);
    }
}

static void scale(float *x, float factor, uint32_t n) {
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_n(x + i, vf_load_n(x + i, m) * vf_set1(factor), m);
    }
}

#endif
