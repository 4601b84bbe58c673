/* The KV cache and attention over it, of every instruction set this machine has: the bytes that the layout in
 * kernels.h asks for, sums in double precision, and the same bits whatever is computed together. */
#include "kernels.h"

#include "check.h"
#include "guard.h"

static const sq_kernels *sets[4];
static int n_sets;

static uint64_t seed = 0x2545f4914f6cdd1du;

static const char *const type_names[SQ_N_KV_TYPES] = {"f16", "f32", "q8"};
static const uint32_t element_bytes[SQ_N_KV_TYPES] = {2, 4, 1};

/* Uniform in [-size, size]. */
/* ---- the layout, a second time ------------------------------------------------------------------ */

static size_t n_scales(sq_kv_type type, uint32_t dim) {
    return type == SQ_KV_Q8 ? SQ_KV_BLOCK * ((dim + 15) / 16 + 1) : 0;
}

static size_t block_bytes(sq_kv_type type, uint32_t dim) {
    return 2 * SQ_KV_BLOCK * (size_t)dim * element_bytes[type] + n_scales(type, dim) * sizeof(float);
}

/* Byte offsets in a cache: of component i of the key or value of a position, and of its scale. */
static size_t element_at(sq_kv_type type, uint32_t dim, uint32_t position, bool value, uint32_t i) {
    uint32_t p = position % SQ_KV_BLOCK;
    size_t element = value ? SQ_KV_BLOCK * dim + p * dim + i : i * SQ_KV_BLOCK + p;
    return position / SQ_KV_BLOCK * block_bytes(type, dim) + n_scales(type, dim) * sizeof(float) +
           element * element_bytes[type];
}

static size_t scale_at(uint32_t dim, uint32_t position, bool value, uint32_t i) {
    size_t row = value ? n_scales(SQ_KV_Q8, dim) / SQ_KV_BLOCK - 1 : i / 16;
    return position / SQ_KV_BLOCK * block_bytes(SQ_KV_Q8, dim) +
           (row * SQ_KV_BLOCK + position % SQ_KV_BLOCK) * sizeof(float);
}

static float float_at(const guarded *cache, size_t offset) {
    float f;
    memcpy(&f, (char *)cache->data + offset, sizeof f);
    return f;
}

static double decoded(const guarded *cache, sq_kv_type type, uint32_t dim, uint32_t position, bool value,
                      uint32_t i) {
    size_t at = element_at(type, dim, position, value, i);
    uint16_t half;
    switch (type) {
    case SQ_KV_F16:
        memcpy(&half, (char *)cache->data + at, sizeof half);
        return sq_f16_to_f32(half);
    case SQ_KV_F32:
        return float_at(cache, at);
    default:
        return (double)((int8_t *)cache->data)[at] * float_at(cache, scale_at(dim, position, value, i));
    }
}

/* n_blocks that end at an unreadable page. All bytes are 0xff: NaN for floats and scales, so that what is
 * read without having been stored shows. */
static guarded cache_create(sq_kv_type type, uint32_t dim, uint32_t n_blocks) {
    size_t n_bytes = n_blocks * block_bytes(type, dim);
    guarded g = guard_alloc(n_bytes);
    memset(g.data, 0xff, n_bytes);
    return g;
}

/* ---- storing ----------------------------------------------------------------------------------- */

/* Component i of x is stored rounded to the nearest, and of Q8 the largest one uses the whole range. */
static void check_element(const guarded *cache, sq_kv_type type, uint32_t dim, uint32_t position, bool value,
                          uint32_t i, const float *x) {
    size_t at = element_at(type, dim, position, value, i);
    uint16_t half;
    if (type == SQ_KV_F16) {
        memcpy(&half, (char *)cache->data + at, sizeof half);
        CHECK_EQ(half, sq_f32_to_f16(x[i]));
    } else if (type == SQ_KV_F32) {
        CHECK(!memcmp((char *)cache->data + at, &x[i], sizeof *x));
    } else {
        uint32_t first = value ? 0 : i / 16 * 16, end = value ? dim : first + 16;
        float max = 0;
        for (uint32_t k = first; k < end && k < dim; k++) {
            max = fmaxf(max, fabsf(x[k]));
        }
        int q = ((int8_t *)cache->data)[at];
        CHECK_NEAR(float_at(cache, scale_at(dim, position, value, i)), max / 127, 1e-7 * max);
        CHECK_NEAR(q, max > 0 ? x[i] * 127 / max : 0, 0.5001);
        CHECK(fabsf(x[i]) < max || abs(q) == (max > 0 ? 127 : 0));
    }
}

static void check_store(sq_kv_type type, uint32_t dim, uint32_t position, float size) {
    uint32_t n_blocks = position / SQ_KV_BLOCK + 1;
    guarded expected = cache_create(type, dim, n_blocks), found = cache_create(type, dim, n_blocks);
    guarded key = guard_random(&seed, dim, size), value = guard_random(&seed, dim, size);
    sq_kernels_scalar.kv_store[type](key.data, value.data, dim, position, expected.data);
    for (uint32_t i = 0; i < dim; i++) {
        check_element(&expected, type, dim, position, false, i, key.data);
        check_element(&expected, type, dim, position, true, i, value.data);
    }
    for (int s = 0; s < n_sets; s++) {
        sets[s]->kv_store[type](key.data, value.data, dim, position, found.data);
        CHECK_SAY(!memcmp(found.data, expected.data, n_blocks * block_bytes(type, dim)),
                  "%s %s: position %u of %u dims is stored differently", sets[s]->name, type_names[type],
                  position, dim);
    }
    guard_free(expected);
    guard_free(found);
    guard_free(key);
    guard_free(value);
}

static const uint32_t dims[] = {1, 6, 8, 20, 32, 64, 80, 96, 100, 128, 256};
enum { N_DIMS = sizeof dims / sizeof *dims };

static void test_store(void) {
    static const uint32_t positions[] = {0, 1, 31, 32, 77};
    for (sq_kv_type type = 0; type < SQ_N_KV_TYPES; type++) {
        for (int i = 0; i < N_DIMS; i++) {
            for (int j = 0; j < 5; j++) {
                check_store(type, dims[i], positions[j], 3);
            }
            check_store(type, dims[i], 2, 0);
            check_store(type, dims[i], 2, 1e5f); /* infinite as f16 */
        }
    }
}

/* Any bits at all are stored alike by all, NaN included. */
static void test_store_any_bits(void) {
    float key[40], value[40];
    for (int round = 0; round < 300; round++) {
        for (int i = 0; i < 40; i++) {
            uint32_t bits[2] = {(uint32_t)check_random(&seed), (uint32_t)check_random(&seed)};
            memcpy(&key[i], &bits[0], sizeof *key);
            memcpy(&value[i], &bits[1], sizeof *value);
        }
        for (sq_kv_type type = 0; type < SQ_N_KV_TYPES; type++) {
            guarded expected = cache_create(type, 40, 1), found = cache_create(type, 40, 1);
            sq_kernels_scalar.kv_store[type](key, value, 40, 5, expected.data);
            for (int s = 0; s < n_sets; s++) {
                sets[s]->kv_store[type](key, value, 40, 5, found.data);
                CHECK_SAY(!memcmp(found.data, expected.data, block_bytes(type, 40)), "%s %s: round %d",
                          sets[s]->name, type_names[type], round);
            }
            guard_free(expected);
            guard_free(found);
        }
    }
}

/* ---- attention --------------------------------------------------------------------------------- */

typedef struct example {
    uint32_t dim, n_heads, position, n_tokens, window;
    float size; /* of queries and keys */
    float cap;
} example;

/* One head of one token in double: `expected` [dim], and the error that f32 scores may cause. */
static double reference(const guarded *cache, sq_kv_type type, const example *x, uint32_t token,
                        const float *q, double *expected) {
    uint32_t end = x->position + token + 1, first = x->window && end > x->window ? end - x->window : 0;
    double *scores = malloc(end * sizeof *scores), max = -INFINITY, sum = 0, magnitude = 0;
    memset(expected, 0, x->dim * sizeof *expected);
    for (uint32_t p = first; p < end; p++) {
        double size = 0;
        scores[p] = 0;
        for (uint32_t i = 0; i < x->dim; i++) {
            double term = q[i] * decoded(cache, type, x->dim, p, false, i) / sqrt(x->dim);
            scores[p] += term;
            size += fabs(term);
        }
        scores[p] = x->cap > 0 ? x->cap * tanh(scores[p] / x->cap) : scores[p];
        max = fmax(max, scores[p]);
        magnitude = fmax(magnitude, size);
    }
    for (uint32_t p = first; p < end; p++) {
        double weight = exp(scores[p] - max);
        sum += weight;
        for (uint32_t i = 0; i < x->dim; i++) {
            expected[i] += weight * decoded(cache, type, x->dim, p, true, i);
        }
    }
    for (uint32_t i = 0; i < x->dim; i++) {
        expected[i] /= sum;
    }
    free(scores);
    return 0x1p-24 * (8 + 2 * magnitude);
}

static guarded cache_fill(sq_kv_type type, const example *x) {
    uint32_t n = x->position + x->n_tokens;
    guarded cache = cache_create(type, x->dim, (n + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK);
    for (uint32_t p = 0; p < n; p++) {
        guarded key = guard_random(&seed, x->dim, x->size), value = guard_random(&seed, x->dim, 1);
        sq_kernels_scalar.kv_store[type](key.data, value.data, x->dim, p, cache.data);
        guard_free(key);
        guard_free(value);
    }
    return cache;
}

static void check_attend(sq_kv_type type, example x) {
    size_t width = x.n_heads * x.dim, ldq = width + 3, ldo = width + 5;
    double *expected = malloc(x.dim * sizeof *expected);
    guarded cache = cache_fill(type, &x), q = guard_random(&seed, x.n_tokens * ldq - 3, x.size);
    guarded out = guard_alloc(sizeof(float) * (x.n_tokens * ldo - 5)),
            single = guard_alloc(sizeof(float) * x.dim);
    sq_attention a = {
        .cache = cache.data,
        .head_dim = x.dim,
        .window = x.window,
        .position = x.position,
        .n_tokens = x.n_tokens,
        .n_heads = x.n_heads,
        .scale = 1 / sqrtf((float)x.dim),
        .cap = x.cap,
        .q = q.data,
        .out = out.data,
        .ldq = ldq,
        .ldo = ldo,
    };
    for (int s = 0; s < n_sets; s++) {
        memset(out.data, 0xff, sizeof(float) * (x.n_tokens * ldo - 5));
        sets[s]->attend[type](&a);
        for (uint32_t row = 0; row < x.n_tokens * x.n_heads; row++) {
            uint32_t t = row / x.n_heads, h = row % x.n_heads;
            const float *found = (float *)out.data + t * ldo + h * x.dim;
            const float *query = (float *)q.data + t * ldq + h * x.dim;
            double tolerance = reference(&cache, type, &x, t, query, expected), worst = 0;
            for (uint32_t i = 0; i < x.dim; i++) {
                worst = fmax(worst, isnan(found[i]) ? INFINITY : fabs(found[i] - expected[i]));
            }
            CHECK_SAY(worst <= tolerance,
                      "%s %s: head %u of %u, token %u of %u at %u, window %u, %u dims: off by %g, not %g",
                      sets[s]->name, type_names[type], h, x.n_heads, t, x.n_tokens, x.position, x.window,
                      x.dim, worst, tolerance);
            sq_attention one = a;
            one.q = query, one.out = single.data, one.position += t, one.n_tokens = one.n_heads = 1;
            sets[s]->attend[type](&one);
            CHECK_SAY(!memcmp(single.data, found, x.dim * sizeof *found),
                      "%s %s: head %u of %u, token %u of %u at %u is different alone", sets[s]->name,
                      type_names[type], h, x.n_heads, t, x.n_tokens, x.position);
        }
        for (uint32_t t = 0; t + 1 < x.n_tokens; t++) { /* nothing is written between the tokens */
            for (size_t i = width; i < ldo; i++) {
                CHECK(isnan(((float *)out.data)[t * ldo + i]));
            }
        }
    }
    guard_free(cache);
    guard_free(q);
    guard_free(out);
    guard_free(single);
    free(expected);
}

static void test_attend(void) {
    static const uint32_t positions[] = {0, 1, 2, 4, 14, 30, 31, 32, 33, 64, 299};
    for (sq_kv_type type = 0; type < SQ_N_KV_TYPES; type++) {
        for (uint32_t i = 0; i < N_DIMS; i++) {
            for (uint32_t j = 0; j < 11; j++) {
                uint32_t window = (i + j) % 3 ? 0 : 1 + 13 * j;
                check_attend(type, (example){dims[i], 1 + (i + j) % 9, positions[j], 1 + j % 4, window, 2,
                                             j % 2 ? 0 : 3});
            }
        }
        for (uint32_t n_heads = 1; n_heads <= 40; n_heads++) {
            check_attend(type, (example){24, n_heads, 50, 1, 0, 1, 0});
        }
        for (uint32_t n_tokens = 1; n_tokens <= 70; n_tokens += 3) {
            check_attend(type,
                         (example){16, 3, n_tokens % 2 ? 0 : 61, n_tokens, n_tokens % 5 ? 0 : 20, 1, 0});
        }
        check_attend(type,
                     (example){64, 3, 99, 2, 0, 60, 0}); /* scores of thousands: exp must not overflow */
        check_attend(type, (example){80, 3, 299, 2, 0, 60, 50});
        check_attend(type, (example){64, 2, 2999, 1, 0, 1, 0});
    }
}

int main(void) {
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    for (int i = 0; i < 4; i++) {
        if (!sq_kernels_choose(names[i], &sets[n_sets], NULL)) {
            printf("instruction set: %s\n", sets[n_sets++]->name);
        }
    }
    RUN(test_store);
    RUN(test_store_any_bits);
    RUN(test_attend);
    return check_report();
}
