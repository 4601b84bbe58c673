/* The KV cache and attention over it, over vectors of W floats: the one body that the files of
 * instruction sets include after simd_ops.h. Beyond its list it takes
 *
 *   vf_store_f16_n  the first n lanes, rounded to nearest even
 *   SCORE_ROWS      queries whose scores for 2 vectors of positions stay in registers
 *   VALUE_ROWS      queries of whose output VALUE_VECTORS vectors stay in registers
 *
 * A block of the cache (kernels.h) is read from memory once and then, from the L1 cache, for all rows; a
 * row is one head of one token. What lies at the same place of the next block is asked for meanwhile: without
 * that, attention after 6,000 tokens took twice the time. Sums of a row run in the order of positions, block
 * by block, whatever rows are computed with it: a position that a row does not see adds 0 to it. */
#ifndef SQ_SIMD_ATTENTION_H
#define SQ_SIMD_ATTENTION_H

#include "simd_ops.h"

#include <float.h>

/* ---- elements ---------------------------------------------------------------------------------- */

SQ_INLINE vf i8_load(const uint8_t *row, size_t i) {
    return vf_load_i8((const int8_t *)row + i);
}
SQ_INLINE vf i8_load_n(const uint8_t *row, size_t i, uint32_t n) {
    int8_t lanes[W] = {0};
    memcpy(lanes, row + i, n);
    return vf_load_i8(lanes);
}

/* How an element is read; f16 and f32 as the weights of a matrix are. */
typedef struct elements {
    load_weights *load;
    load_n_weights *load_n;
    size_t n_bytes;
    bool scaled;
} elements;

#define ELEMENTS_F16 ((elements){f16_load, f16_load_n, 2, false})
#define ELEMENTS_F32 ((elements){f32_load, f32_load_n, 4, false})
#define ELEMENTS_Q8  ((elements){i8_load, i8_load_n, 1, true})

typedef struct block {
    float *key_scales, *value_scales; /* [.., SQ_KV_BLOCK], [SQ_KV_BLOCK] */
    uint8_t *keys, *values;
} block;

SQ_INLINE size_t block_bytes(elements e, uint32_t head_dim) {
    return (e.scaled ? sq_kv_scales(head_dim) : 0) * sizeof(float) + 2 * e.n_bytes * head_dim * SQ_KV_BLOCK;
}

SQ_INLINE block block_at(elements e, const void *cache, uint32_t head_dim, uint32_t index) {
    size_t part_bytes = e.n_bytes * head_dim * SQ_KV_BLOCK;
    size_t n_scales = e.scaled ? sq_kv_scales(head_dim) : 0;
    float *scales = (float *)((uint8_t *)cache + index * block_bytes(e, head_dim));
    uint8_t *keys = (uint8_t *)(scales + n_scales);
    return (block){scales, scales + n_scales - SQ_KV_BLOCK, keys, keys + part_bytes};
}

/* ---- storing ----------------------------------------------------------------------------------- */

/* Elements of n lanes of x as they are stored, one after another. */
SQ_INLINE void narrow(elements e, vf x, uint32_t n, uint8_t *out) {
    if (e.n_bytes == 4) {
        vf_store_n((float *)out, x, n);
    } else if (e.n_bytes == 2) {
        vf_store_f16_n((uint16_t *)out, x, n);
    } else {
        /* As in the definition: the nearest integer is in the low bits. */
        int32_t whole[W];
        vf_store((float *)whole, x + vf_set1(0x1.8p23f));
        for (uint32_t i = 0; i < n; i++) {
            out[i] = (uint8_t)whole[i];
        }
    }
}

SQ_INLINE float largest(const float *x, uint32_t n) {
    vf max = vf_zero();
    for (uint32_t i = 0; i < n; i += W) {
        vf xs = vf_load_n(x + i, lanes(n, i));
        max = vf_max(vf_max(xs, -xs), max);
    }
    return vf_top(max);
}

/* n components of a key (step SQ_KV_BLOCK elements) or value (step 1) that have one scale. */
SQ_INLINE void store(elements e, const float *x, uint32_t n, uint8_t *out, size_t step, float *scale) {
    float max = e.scaled ? largest(x, n) : 0, inverse = max > 0 ? 127 / max : 0;
    for (uint32_t i = 0; i < n; i += W) {
        uint32_t m = lanes(n, i);
        vf xs = vf_load_n(x + i, m);
        uint8_t narrowed[W * sizeof(float)];
        if (e.scaled) {
            xs *= vf_set1(inverse);
        }
        narrow(e, xs, m, step == 1 ? out + i * e.n_bytes : narrowed);
        for (uint32_t k = 0; step > 1 && k < m; k++) {
            memcpy(out + (i + k) * step * e.n_bytes, narrowed + k * e.n_bytes, e.n_bytes);
        }
    }
    if (e.scaled) {
        *scale = max / 127;
    }
}

SQ_INLINE void kv_store(elements e, const float *key, const float *value, uint32_t head_dim,
                        uint32_t position, void *cache) {
    block b = block_at(e, cache, head_dim, position / SQ_KV_BLOCK);
    position %= SQ_KV_BLOCK;
    uint32_t group = e.scaled ? SQ_KEY_GROUP : head_dim;
    for (uint32_t i = 0, n; i < head_dim; i += n) {
        n = head_dim - i < group ? head_dim - i : group;
        store(e, key + i, n, b.keys + ((size_t)i * SQ_KV_BLOCK + position) * e.n_bytes, SQ_KV_BLOCK,
              b.key_scales + i / group * SQ_KV_BLOCK + position);
    }
    store(e, value, head_dim, b.values + (size_t)position * head_dim * e.n_bytes, 1,
          b.value_scales + position);
}

static void kv_store_f16(const float *key, const float *value, uint32_t head_dim, uint32_t position,
                         void *cache) {
    kv_store(ELEMENTS_F16, key, value, head_dim, position, cache);
}
static void kv_store_f32(const float *key, const float *value, uint32_t head_dim, uint32_t position,
                         void *cache) {
    kv_store(ELEMENTS_F32, key, value, head_dim, position, cache);
}
static void kv_store_q8(const float *key, const float *value, uint32_t head_dim, uint32_t position,
                        void *cache) {
    kv_store(ELEMENTS_Q8, key, value, head_dim, position, cache);
}

/* ---- attention --------------------------------------------------------------------------------- */

/* Rows that share a pass over the cache. max and sums are those of the scores so far; weights holds the
 * scores of one block, then what its values are multiplied by. */
typedef struct queries {
    const float *q[SQ_ATTEND_ROWS]; /* [head_dim] */
    float *out[SQ_ATTEND_ROWS];     /* [head_dim]: sums of values, in the end divided by the sum of weights */
    uint32_t first[SQ_ATTEND_ROWS], end[SQ_ATTEND_ROWS]; /* positions that the row sees */
    float max[SQ_ATTEND_ROWS], shrink[SQ_ATTEND_ROWS];   /* what the last block multiplies earlier sums by */
    float sums[SQ_ATTEND_ROWS][W];
    float weights[SQ_ATTEND_ROWS][SQ_KV_BLOCK];
} queries;

/* scores[r][p] = q[r] · key p */
SQ_INLINE void block_scores(elements e, block b, uint32_t head_dim, int n_rows, const float *const *q,
                            float (*scores)[SQ_KV_BLOCK]) {
    for (int p = 0; p < SQ_KV_BLOCK; p += 2 * W) {
        vf sums[SCORE_ROWS][2];
        for (int r = 0; r < n_rows; r++) {
            sums[r][0] = sums[r][1] = vf_zero();
        }
        for (uint32_t i = 0; i < head_dim; i++) {
            const uint8_t *component = b.keys + (size_t)i * SQ_KV_BLOCK * e.n_bytes;
            vf k0 = e.load(component, p), k1 = e.load(component, p + W);
            __builtin_prefetch(component + block_bytes(e, head_dim) + p * e.n_bytes);
            if (e.scaled) {
                const float *scales = b.key_scales + i / SQ_KEY_GROUP * SQ_KV_BLOCK + p;
                k0 *= vf_load(scales);
                k1 *= vf_load(scales + W);
            }
            for (int r = 0; r < n_rows; r++) {
                vf qs = vf_set1(q[r][i]);
                sums[r][0] = vf_fma(qs, k0, sums[r][0]);
                sums[r][1] = vf_fma(qs, k1, sums[r][1]);
            }
        }
        for (int r = 0; r < n_rows; r++) {
            vf_store(scores[r] + p, sums[r][0]);
            vf_store(scores[r] + p + W, sums[r][1]);
        }
    }
}

/* Turns row r's scores of block b, which starts at `position`, into weights: softmax in one pass, as in the
 * definition but a block at a time. */
SQ_INLINE void block_softmax(elements e, const sq_attention *a, block b, uint32_t position, int r,
                             queries *rows) {
    float *weights = rows->weights[r];
    vf top = vf_set1(-INFINITY);
    for (int p = 0; p < SQ_KV_BLOCK; p += W) {
        vf_store(weights + p, vf_load(weights + p) * vf_set1(a->scale));
    }
    if (a->cap > 0) {
        softcap(weights, a->cap, SQ_KV_BLOCK);
    }
    for (uint32_t p = position; p < rows->first[r] && p < position + SQ_KV_BLOCK; p++) {
        weights[p - position] = -INFINITY;
    }
    for (uint32_t p = position > rows->end[r] ? position : rows->end[r]; p < position + SQ_KV_BLOCK; p++) {
        weights[p - position] = -INFINITY;
    }
    for (int p = 0; p < SQ_KV_BLOCK; p += W) {
        top = vf_max(vf_load(weights + p), top);
    }
    float max = vf_top(top), old_max = rows->max[r];
    rows->max[r] = max = max > old_max ? max : old_max;
    rows->shrink[r] = 1;
    if (max > old_max) {
        vf shrink = vf_exp(vf_set1(old_max - max));
        vf_store_n(&rows->shrink[r], shrink, 1);
    }
    vf sum = vf_load(rows->sums[r]) * vf_set1(rows->shrink[r]);
    for (int p = 0; p < SQ_KV_BLOCK; p += W) {
        vf weight = vf_exp(vf_load(weights + p) - vf_set1(max));
        sum += weight;
        if (e.scaled) {
            weight *= vf_load(b.value_scales + p);
        }
        vf_store(weights + p, weight);
    }
    vf_store(rows->sums[r], sum);
}

/* out[r][c…] = out[r][c…] · shrink[r] + Σ_p weights[r][p] values[p, c…], p in [p0, p1), over n_vectors
 * vectors, or n < W lanes of one. */
SQ_INLINE void value_columns(elements e, const uint8_t *values, uint32_t head_dim, uint32_t p0, uint32_t p1,
                             int n_rows, queries *rows, int row, uint32_t c, int n_vectors, uint32_t n) {
    vf sums[VALUE_ROWS][VALUE_VECTORS];
    for (int r = 0; r < n_rows; r++) {
        for (int i = 0; i < n_vectors; i++) {
            sums[r][i] = vf_load_n(rows->out[row + r] + c + i * W, n) * vf_set1(rows->shrink[row + r]);
        }
    }
    for (uint32_t p = p0; p < p1; p++) {
        const uint8_t *value = values + (size_t)p * head_dim * e.n_bytes;
        for (int i = 0; i < n_vectors; i += 64 / (int)(W * e.n_bytes)) {
            __builtin_prefetch(value + block_bytes(e, head_dim) + (c + i * W) * e.n_bytes);
        }
        vf vs[VALUE_VECTORS];
        for (int i = 0; i < n_vectors; i++) {
            vs[i] = n == W ? e.load(value, c + i * W) : e.load_n(value, c, n);
        }
        for (int r = 0; r < n_rows; r++) {
            vf weight = vf_set1(rows->weights[row + r][p]);
            for (int i = 0; i < n_vectors; i++) {
                sums[r][i] = vf_fma(weight, vs[i], sums[r][i]);
            }
        }
    }
    for (int r = 0; r < n_rows; r++) {
        for (int i = 0; i < n_vectors; i++) {
            vf_store_n(rows->out[row + r] + c + i * W, sums[r][i], n);
        }
    }
}

SQ_INLINE void block_values(elements e, const uint8_t *values, uint32_t head_dim, uint32_t p0, uint32_t p1,
                            int n_rows, queries *rows, int row) {
    uint32_t c = 0;
    for (; c + VALUE_VECTORS * W <= head_dim; c += VALUE_VECTORS * W) {
        value_columns(e, values, head_dim, p0, p1, n_rows, rows, row, c, VALUE_VECTORS, W);
    }
    for (; c + W <= head_dim; c += W) {
        value_columns(e, values, head_dim, p0, p1, n_rows, rows, row, c, 1, W);
    }
    if (c < head_dim) {
        value_columns(e, values, head_dim, p0, p1, n_rows, rows, row, c, 1, head_dim - c);
    }
}

/* All that one block adds to rows [0, n_rows). */
SQ_INLINE void attend_block(elements e, const sq_attention *a, uint32_t index, int n_rows, queries *rows) {
    block b = block_at(e, a->cache, a->head_dim, index);
    uint32_t position = index * SQ_KV_BLOCK, p0 = SQ_KV_BLOCK, p1 = 0;
    for (int r = 0; r < n_rows; r += SCORE_ROWS) {
        switch (n_rows - r < SCORE_ROWS ? n_rows - r : SCORE_ROWS) {
#define ROWS(n)                                                                                              \
    case n:                                                                                                  \
        block_scores(e, b, a->head_dim, n, rows->q + r, rows->weights + r);                                  \
        break
            ROWS(1);
            ROWS(2);
            ROWS(3);
            ROWS(4);
#if SCORE_ROWS > 4
            ROWS(5);
            ROWS(6);
            ROWS(7);
            ROWS(8);
#endif
#undef ROWS
        }
    }
    for (int r = 0; r < n_rows; r++) {
        block_softmax(e, a, b, position, r, rows);
        uint32_t first = rows->first[r] > position ? rows->first[r] - position : 0;
        uint32_t end = rows->end[r] > position ? rows->end[r] - position : 0;
        p0 = first < p0 ? first : p0;
        p1 = end > p1 ? end : p1;
    }
    p1 = p1 < SQ_KV_BLOCK ? p1 : SQ_KV_BLOCK; /* what is stored behind it may be no number */
    for (int r = 0; r < n_rows; r += VALUE_ROWS) {
        switch (n_rows - r < VALUE_ROWS ? n_rows - r : VALUE_ROWS) {
#define ROWS(n)                                                                                              \
    case n:                                                                                                  \
        block_values(e, b.values, a->head_dim, p0, p1, n, rows, r);                                          \
        break
            ROWS(1);
            ROWS(2);
            ROWS(3);
            ROWS(4);
#undef ROWS
        }
    }
}

/* Rows [row, row + n_rows): row r is head r mod n_heads of token r / n_heads. */
SQ_INLINE void attend_rows(elements e, const sq_attention *a, uint32_t row, int n_rows) {
    queries rows;
    uint32_t first = UINT32_MAX, end = 0;
    for (int r = 0; r < n_rows; r++) {
        size_t t = (row + r) / a->n_heads, h = (row + r) % a->n_heads;
        rows.q[r] = a->q + t * a->ldq + h * a->head_dim;
        rows.out[r] = a->out + t * a->ldo + h * a->head_dim;
        rows.end[r] = a->position + (uint32_t)t + 1;
        rows.first[r] = a->window && rows.end[r] > a->window ? rows.end[r] - a->window : 0;
        rows.max[r] = -FLT_MAX;
        vf_store(rows.sums[r], vf_zero());
        memset(rows.out[r], 0, a->head_dim * sizeof *rows.out[r]);
        first = rows.first[r] < first ? rows.first[r] : first;
        end = rows.end[r] > end ? rows.end[r] : end;
    }
    for (uint32_t index = first / SQ_KV_BLOCK; index * SQ_KV_BLOCK < end; index++) {
        attend_block(e, a, index, n_rows, &rows);
    }
    for (int r = 0; r < n_rows; r++) {
        vf sum = vf_set1(vf_sum(vf_load(rows.sums[r])));
        for (uint32_t i = 0; i < a->head_dim; i += W) {
            uint32_t m = lanes(a->head_dim, i);
            vf_store_n(rows.out[r] + i, vf_load_n(rows.out[r] + i, m) / sum, m);
        }
    }
}

SQ_INLINE void attend(elements e, const sq_attention *a) {
    uint32_t n_rows = a->n_tokens * a->n_heads;
    for (uint32_t row = 0; row < n_rows; row += SQ_ATTEND_ROWS) {
        attend_rows(e, a, row, n_rows - row < SQ_ATTEND_ROWS ? (int)(n_rows - row) : SQ_ATTEND_ROWS);
    }
}

static void attend_f16(const sq_attention *attention) {
    attend(ELEMENTS_F16, attention);
}
static void attend_f32(const sq_attention *attention) {
    attend(ELEMENTS_F32, attention);
}
static void attend_q8(const sq_attention *attention) {
    attend(ELEMENTS_Q8, attention);
}

#endif
