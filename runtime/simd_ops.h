/* What lies between the matrices, over vectors of W floats: the one body that x86_avx512.c and
 * x86_avx2.c include after simd_matrix.h. Beyond its list it takes
 *
 *   vi                    vectors of W int32_t
 *   vf_min vf_max         the second operand where one is a NaN
 *   vf_store_f16_n        rounded to nearest even
 *   VALUE_VECTORS         vectors of the output that attention keeps per head, 4 heads at a time
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

static void kv_store_f16(const float *x, uint32_t n, void *cache) {
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf_store_f16_n((uint16_t *)cache + i, vf_load_n(x + i, m), m);
    }
}

static void kv_store_f32(const float *x, uint32_t n, void *cache) {
    memcpy(cache, x, n * sizeof *x);
}

/* ---- attention -------------------------------------------------------------------------------- */

/* An f16 or f32 cache is read as the rows of a matrix are: f16_load, f32_load and their _n. */
typedef struct kv_loads {
    load_weights *load;
    load_n_weights *load_n;
} kv_loads;

SQ_INLINE vf kv_load(kv_loads kv, const void *row, uint32_t i, uint32_t n) {
    return n == W ? kv.load(row, i) : kv.load_n(row, i, n);
}

/* sums[h][j] += q[h, i…] · keys[j][i…] over n lanes, for 4 keys. */
SQ_INLINE void score_step(kv_loads kv, const float *q, const uint8_t *const *keys, uint32_t head_dim,
                          uint32_t i, uint32_t n, int n_heads, vf (*sums)[4]) {
    vf ks[4];
    for (int j = 0; j < 4; j++) {
        ks[j] = kv_load(kv, keys[j], i, n);
    }
    for (int h = 0; h < n_heads; h++) {
        const float *qh = q + (size_t)h * head_dim + i;
        vf qs = n == W ? vf_load(qh) : vf_load_n(qh, n);
        for (int j = 0; j < 4; j++) {
            sums[h][j] = vf_fma(qs, ks[j], sums[h][j]);
        }
    }
}

/* scores[h, p] = scale · q[h] · k[p]; written in fours, past n_pos too (scores are padded). */
SQ_INLINE void attend_scores(kv_loads kv, const float *q, const uint8_t *k, size_t row_bytes, uint32_t n_pos,
                             int n_heads, uint32_t head_dim, float scale, float *scores) {
    for (uint32_t p = 0; p < n_pos; p += 4) {
        vf sums[4][4];
        const uint8_t *keys[4];
        for (uint32_t j = 0; j < 4; j++) {
            keys[j] = k + row_bytes * (p + j < n_pos ? p + j : n_pos - 1);
        }
        for (int h = 0; h < n_heads; h++) {
            for (int j = 0; j < 4; j++) {
                sums[h][j] = vf_zero();
            }
        }
        uint32_t i = 0;
        for (; i + W <= head_dim; i += W) {
            score_step(kv, q, keys, head_dim, i, W, n_heads, sums);
        }
        if (i < head_dim) {
            score_step(kv, q, keys, head_dim, i, head_dim - i, n_heads, sums);
        }
        for (int h = 0; h < n_heads; h++) {
            v4 totals = scale * vf_sums(sums[h]);
            memcpy(scores + h * sq_pad(n_pos) + p, &totals, sizeof totals);
        }
    }
}

/* scores[p] becomes exp(scores[p] - max), zero past n_pos; returns the sum. */
static float exp_scores(float *scores, uint32_t n_pos) {
    vf max = vf_set1(-INFINITY), sum = vf_zero();
    for (uint32_t p = n_pos; p < sq_pad(n_pos); p++) {
        scores[p] = -INFINITY;
    }
    for (uint32_t p = 0; p < n_pos; p += W) {
        max = vf_max(max, vf_load(scores + p));
    }
    float lane[W], top = -INFINITY;
    vf_store(lane, max);
    for (int i = 0; i < W; i++) {
        top = lane[i] > top ? lane[i] : top;
    }
    for (uint32_t p = 0; p < n_pos; p += W) {
        vf e = vf_exp(vf_load(scores + p) - vf_set1(top));
        vf_store(scores + p, e);
        sum += e;
    }
    return vf_sum(sum);
}

/* out[h, c…] = Σ_p weights[h, p] v[p, c…] / sums[h], over n_vectors vectors, or over n < W lanes of one. */
SQ_INLINE void attend_columns(kv_loads kv, const float *weights, const float *totals, const uint8_t *v,
                              size_t row_bytes, uint32_t n_pos, int n_heads, uint32_t head_dim, uint32_t c,
                              int n_vectors, uint32_t n, float *out) {
    vf sums[4][VALUE_VECTORS];
    for (int h = 0; h < n_heads; h++) {
        for (int i = 0; i < n_vectors; i++) {
            sums[h][i] = vf_zero();
        }
    }
    for (uint32_t p = 0; p < n_pos; p++, v += row_bytes) {
        vf vs[VALUE_VECTORS];
        for (int i = 0; i < n_vectors; i++) {
            vs[i] = kv_load(kv, v, c + i * W, n);
        }
        for (int h = 0; h < n_heads; h++) {
            vf weight = vf_set1(weights[h * sq_pad(n_pos) + p]);
            for (int i = 0; i < n_vectors; i++) {
                sums[h][i] = vf_fma(weight, vs[i], sums[h][i]);
            }
        }
    }
    for (int h = 0; h < n_heads; h++) {
        for (int i = 0; i < n_vectors; i++) {
            vf_store_n(out + (size_t)h * head_dim + c + i * W, sums[h][i] / vf_set1(totals[h]), n);
        }
    }
}

SQ_INLINE void attend_heads(kv_loads kv, const float *q, const uint8_t *k, const uint8_t *v, size_t row_bytes,
                            uint32_t n_pos, int n_heads, uint32_t head_dim, float scale, float cap,
                            float *scores, float *out) {
    float totals[4];
    attend_scores(kv, q, k, row_bytes, n_pos, n_heads, head_dim, scale, scores);
    for (int h = 0; h < n_heads; h++) {
        if (cap > 0) {
            softcap(scores + h * sq_pad(n_pos), cap, n_pos);
        }
        totals[h] = exp_scores(scores + h * sq_pad(n_pos), n_pos);
    }
    uint32_t c = 0;
    for (; c + VALUE_VECTORS * W <= head_dim; c += VALUE_VECTORS * W) {
        attend_columns(kv, scores, totals, v, row_bytes, n_pos, n_heads, head_dim, c, VALUE_VECTORS, W, out);
    }
    for (; c + W <= head_dim; c += W) {
        attend_columns(kv, scores, totals, v, row_bytes, n_pos, n_heads, head_dim, c, 1, W, out);
    }
    if (c < head_dim) {
        attend_columns(kv, scores, totals, v, row_bytes, n_pos, n_heads, head_dim, c, 1, head_dim - c, out);
    }
}

/* Up to four heads share each row of the cache that is loaded. */
SQ_INLINE void attend(kv_loads kv, const float *q, const void *k, const void *v, size_t row_bytes,
                      uint32_t n_pos, uint32_t n_group, uint32_t head_dim, float scale, float cap,
                      float *scores, float *out) {
    for (uint32_t left = n_group, n; left > 0; left -= n) {
        n = left < 4 ? left : 4;
        switch (n) {
#define HEADS(n)                                                                                             \
    case n:                                                                                                  \
        attend_heads(kv, q, k, v, row_bytes, n_pos, n, head_dim, scale, cap, scores, out);                   \
        break
            HEADS(1);
            HEADS(2);
            HEADS(3);
            HEADS(4);
#undef HEADS
        }
        q += n * head_dim;
        out += n * head_dim;
        scores += n * sq_pad(n_pos);
    }
}

static void attend_f16(const float *q, const void *k, const void *v, uint32_t n_pos, uint32_t n_group,
                       uint32_t head_dim, float scale, float cap, float *scores, float *out) {
    attend((kv_loads){f16_load, f16_load_n}, q, k, v, 2 * (size_t)head_dim, n_pos, n_group, head_dim, scale,
           cap, scores, out);
}

static void attend_f32(const float *q, const void *k, const void *v, uint32_t n_pos, uint32_t n_group,
                       uint32_t head_dim, float scale, float cap, float *scores, float *out) {
    attend((kv_loads){f32_load, f32_load_n}, q, k, v, 4 * (size_t)head_dim, n_pos, n_group, head_dim, scale,
           cap, scores, out);
}

#endif
