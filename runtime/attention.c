/* The KV cache and attention over it, in plain C. */
#include "scalar.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* One block of a chain: kernels.h. */
typedef struct block {
    float *key_scales, *value_scales; /* [.., SQ_KV_BLOCK], [SQ_KV_BLOCK] */
    void *keys, *values;
} block;

static block block_of(void *cache, size_t element_bytes, uint32_t head_dim, uint32_t position) {
    size_t part_bytes = element_bytes * head_dim * SQ_KV_BLOCK;
    size_t n_scales = element_bytes == 1 ? sq_kv_scales(head_dim) : 0;
    size_t block_bytes = n_scales * sizeof(float) + 2 * part_bytes;
    float *scales = (float *)((uint8_t *)cache + position / SQ_KV_BLOCK * block_bytes);
    uint8_t *keys = (uint8_t *)(scales + n_scales);
    return (block){scales, scales + n_scales - SQ_KV_BLOCK, keys, keys + part_bytes};
}

/* ---- elements ---------------------------------------------------------------------------------- */

typedef void element_set(void *elements, size_t i, float value);
typedef float element_get(const void *elements, size_t i);

static void f16_set(void *elements, size_t i, float value) {
    ((uint16_t *)elements)[i] = sq_f32_to_f16(value);
}
static float f16_get(const void *elements, size_t i) {
    return sq_f16_to_f32(((const uint16_t *)elements)[i]);
}

static void f32_set(void *elements, size_t i, float value) {
    ((float *)elements)[i] = value;
}
static float f32_get(const void *elements, size_t i) {
    return ((const float *)elements)[i];
}

/* Adding 3 · 2^22 leaves the nearest integer, ties to even, in the low bits; no value is undefined. */
static void i8_set(void *elements, size_t i, float value) {
    float shifted = value + 0x1.8p23f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    ((uint8_t *)elements)[i] = (uint8_t)bits;
}
static float i8_get(const void *elements, size_t i) {
    return ((const int8_t *)elements)[i];
}

/* ---- storing ----------------------------------------------------------------------------------- */

static inline void store(const float *x, uint32_t n, void *elements, size_t first, size_t step,
                         element_set *set) {
    for (uint32_t i = 0; i < n; i++) {
        set(elements, first + i * step, x[i]);
    }
}

static void store_q8(const float *x, uint32_t n, void *elements, size_t first, size_t step, float *scale) {
    float max = 0;
    for (uint32_t i = 0; i < n; i++) {
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    }
    float inverse = max > 0 ? 127 / max : 0;
    for (uint32_t i = 0; i < n; i++) {
        i8_set(elements, first + i * step, x[i] * inverse);
    }
    *scale = max / 127;
}

void sq_kv_store_f16(const float *key, const float *value, uint32_t head_dim, uint32_t position,
                     void *cache) {
    block b = block_of(cache, 2, head_dim, position);
    position %= SQ_KV_BLOCK;
    store(key, head_dim, b.keys, position, SQ_KV_BLOCK, f16_set);
    store(value, head_dim, b.values, (size_t)position * head_dim, 1, f16_set);
}

void sq_kv_store_f32(const float *key, const float *value, uint32_t head_dim, uint32_t position,
                     void *cache) {
    block b = block_of(cache, 4, head_dim, position);
    position %= SQ_KV_BLOCK;
    store(key, head_dim, b.keys, position, SQ_KV_BLOCK, f32_set);
    store(value, head_dim, b.values, (size_t)position * head_dim, 1, f32_set);
}

void sq_kv_store_q8(const float *key, const float *value, uint32_t head_dim, uint32_t position, void *cache) {
    block b = block_of(cache, 1, head_dim, position);
    position %= SQ_KV_BLOCK;
    for (uint32_t i = 0; i < head_dim; i += SQ_KEY_GROUP) {
        uint32_t n = head_dim - i < SQ_KEY_GROUP ? head_dim - i : SQ_KEY_GROUP;
        store_q8(key + i, n, b.keys, i * SQ_KV_BLOCK + position, SQ_KV_BLOCK,
                 b.key_scales + i / SQ_KEY_GROUP * SQ_KV_BLOCK + position);
    }
    store_q8(value, head_dim, b.values, (size_t)position * head_dim, 1, b.value_scales + position);
}

/* ---- attention --------------------------------------------------------------------------------- */

/* One query in one pass: what was summed is scaled down whenever a larger score comes, so that exp
 * cannot overflow (Milakov and Gimelshein, arXiv 1805.02867). */
static inline void attend_query(const sq_attention *a, const float *q, uint32_t first, uint32_t end,
                                float *out, size_t element_bytes, element_get *get) {
    float max = -FLT_MAX, sum = 0;
    memset(out, 0, a->head_dim * sizeof *out);
    for (uint32_t p = first; p < end; p++) {
        block b = block_of((void *)a->cache, element_bytes, a->head_dim, p);
        size_t at = p % SQ_KV_BLOCK;
        float score = 0;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            float k = get(b.keys, i * SQ_KV_BLOCK + at);
            score += q[i] * (element_bytes == 1 ? k * b.key_scales[i / SQ_KEY_GROUP * SQ_KV_BLOCK + at] : k);
        }
        score *= a->scale;
        if (a->cap > 0) {
            sq_kernels_scalar.softcap(&score, a->cap, 1);
        }
        float old_max = max;
        max = fmaxf(max, score);
        float shrink = expf(old_max - max), weight = expf(score - max);
        sum = sum * shrink + weight;
        weight *= element_bytes == 1 ? b.value_scales[at] : 1;
        for (uint32_t i = 0; i < a->head_dim; i++) {
            out[i] = out[i] * shrink + weight * get(b.values, at * a->head_dim + i);
        }
    }
    for (uint32_t i = 0; i < a->head_dim; i++) {
        out[i] /= sum;
    }
}

static inline void attend(const sq_attention *a, size_t element_bytes, element_get *get) {
    for (uint32_t t = 0; t < a->n_tokens; t++) {
        uint32_t end = a->position + t + 1, first = a->window && end > a->window ? end - a->window : 0;
        for (size_t h = 0; h < a->n_heads; h++) {
            attend_query(a, a->q + t * a->ldq + h * a->head_dim, first, end,
                         a->out + t * a->ldo + h * a->head_dim, element_bytes, get);
        }
    }
}

void sq_attend_f16(const sq_attention *attention) {
    attend(attention, 2, f16_get);
}
void sq_attend_f32(const sq_attention *attention) {
    attend(attention, 4, f32_get);
}
void sq_attend_q8(const sq_attention *attention) {
    attend(attention, 1, i8_get);
}
