/* The operations between the matrices, of every instruction set this machine has, against double
 * precision; and the conversions to and from f16. */
#include "kernels.h"

#include "check.h"
#include "guard.h"

static const sq_kernels *sets[3];
static int n_sets;

static uint64_t seed = 0x2545f4914f6cdd1du;

static const uint32_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 100, 172, 576, 577, 1536};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

/* Uniform in [-size, size]. */
static float random_float(float size) {
    return size * ((float)(check_random(&seed) >> 40) / (1 << 23) - 1);
}

/* n values up to an unreadable page. */
static guarded random_floats(size_t n, float size) {
    guarded g = guard_alloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        ((float *)g.data)[i] = random_float(size);
    }
    return g;
}

/* An activation vector: n values, then zeros up to sq_pad(n). */
static guarded activations(uint32_t n, float size) {
    guarded g = random_floats(sq_pad(n), size);
    memset((float *)g.data + n, 0, (sq_pad(n) - n) * sizeof(float));
    return g;
}

static float ulp(double f) {
    return fmaxf(nextafterf(fabsf((float)f), INFINITY) - fabsf((float)f), 1e-45f);
}

/* ---- f16 --------------------------------------------------------------------------------------- */

static float half_value(uint32_t h) { /* of finite halves */
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float f = exponent ? ldexpf((float)(1024 + mantissa), exponent - 25) : ldexpf((float)mantissa, -24);
    return h & 0x8000 ? -f : f;
}

static uint32_t float_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void test_f16(void) {
    for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
        for (uint32_t m = 0; m < 0x7c00; m++) {
            uint32_t h = sign | m, next = h + 1; /* the next after the largest is infinity */
            float f = half_value(h), to = sign ? -INFINITY : INFINITY;
            float middle = f / 2 + (m < 0x7bff ? half_value(next) : sign ? -65536 : 65536) / 2;
            CHECK_EQ(float_bits(sq_f16_to_f32((uint16_t)h)), float_bits(f));
            CHECK_EQ(sq_f32_to_f16(f), h);
            CHECK_EQ(sq_f32_to_f16(middle), h % 2 ? next : h);
            CHECK_EQ(sq_f32_to_f16(nextafterf(middle, f)), h);
            CHECK_EQ(sq_f32_to_f16(nextafterf(middle, to)), next);
        }
        CHECK_EQ(float_bits(sq_f16_to_f32((uint16_t)(sign | 0x7c00))), sign << 16 | 0x7f800000);
        CHECK_EQ(sq_f32_to_f16(sign ? -INFINITY : INFINITY), sign | 0x7c00);
        CHECK_EQ(sq_f32_to_f16(sign ? -3e38f : 3e38f), sign | 0x7c00);
    }
    for (uint32_t h = 0x7c01; h < 0x8000; h++) {
        CHECK(isnan(sq_f16_to_f32((uint16_t)h)));
        CHECK(isnan(sq_f16_to_f32((uint16_t)(h | 0x8000))));
    }
    CHECK_EQ(sq_f32_to_f16(NAN) & 0x7e00, 0x7e00);
}

static void test_kv_store(void) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        guarded x = guard_alloc(n * sizeof(float)), half = guard_alloc(2 * n), same = guard_alloc(4 * n);
        for (int s = 0; s < n_sets; s++) {
            for (int round = 0; round < 20; round++) {
                for (uint32_t k = 0; k < n; k++) { /* any bits at all, or what is stored in practice */
                    uint32_t bits = (uint32_t)check_random(&seed);
                    float f = random_float(8);
                    memcpy((float *)x.data + k, round % 2 ? (void *)&bits : (void *)&f, sizeof bits);
                }
                sets[s]->kv_store[SQ_KV_F16](x.data, n, half.data);
                sets[s]->kv_store[SQ_KV_F32](x.data, n, same.data);
                for (uint32_t k = 0; k < n; k++) {
                    CHECK_EQ(((uint16_t *)half.data)[k], sq_f32_to_f16(((float *)x.data)[k]));
                }
                CHECK(!memcmp(same.data, x.data, 4 * n));
            }
        }
        guard_free(x);
        guard_free(half);
        guard_free(same);
    }
}

/* ---- vectors ----------------------------------------------------------------------------------- */

static void test_rms_norm(void) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        guarded x = random_floats(n, 3), weight = random_floats(n, 2), y = guard_alloc(n * sizeof(float)),
                in_place = guard_alloc(n * sizeof(float));
        const float *xs = x.data, *ws = weight.data, *ys = y.data;
        double squares = 0;
        for (uint32_t k = 0; k < n; k++) {
            squares += (double)xs[k] * xs[k];
        }
        for (int s = 0; s < n_sets; s++) {
            sets[s]->rms_norm(xs, ws, 1e-5f, n, y.data);
            for (uint32_t k = 0; k < n; k++) {
                double expected = xs[k] / sqrt(squares / n + 1e-5f) * ws[k];
                CHECK_NEAR(ys[k], expected, 0x1p-24 * fabs(expected) * 24);
            }
            memcpy(in_place.data, x.data, n * sizeof(float));
            sets[s]->rms_norm(in_place.data, ws, 1e-5f, n, in_place.data);
            CHECK(!memcmp(in_place.data, y.data, n * sizeof(float)));
        }
        guard_free(x);
        guard_free(weight);
        guard_free(y);
        guard_free(in_place);
    }
}

static void test_layer_norm(void) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        guarded x = activations(n, 3), weight = random_floats(n, 2), bias = random_floats(n, 1),
                y = guard_alloc(n * sizeof(float));
        float *xs = x.data;
        const float *ws = weight.data, *bs = bias.data, *ys = y.data;
        double mean = 0, squares = 0;
        for (uint32_t k = 0; k < n; k++) {
            xs[k] += 20; /* what counts is the spread */
            mean += (double)xs[k] / n;
        }
        for (uint32_t k = 0; k < n; k++) {
            squares += (xs[k] - mean) * (xs[k] - mean);
        }
        for (int s = 0; s < n_sets; s++) {
            sets[s]->layer_norm(xs, ws, bs, 1e-5f, n, y.data);
            for (uint32_t k = 0; k < n; k++) {
                double expected = (xs[k] - mean) / sqrt(squares / n + 1e-5f) * ws[k] + bs[k];
                CHECK_NEAR(ys[k], expected, 0x1p-24 * 24 * (20 + fabs(expected)));
            }
        }
        guard_free(x);
        guard_free(weight);
        guard_free(bias);
        guard_free(y);
    }
}

static double silu(double x) {
    return x / (1 + exp(-x));
}

static double gelu_argument(double x) {
    return 2 * sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
}

static double gelu(double x) { /* accurate where 1 + tanh cancels */
    return x / (1 + exp(-gelu_argument(x)));
}

static void check_gated(sq_activation activation) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        for (int s = 0; s < n_sets; s++) {
            for (int round = 0; round < 8; round++) {
                guarded gate = activations(n, round % 2 ? 120 : 4), up = activations(n, 2),
                        y = guard_alloc(n * sizeof(float));
                sets[s]->gated[activation](gate.data, up.data, n, y.data);
                const float *g = gate.data, *u = up.data;
                for (uint32_t k = 0; k < n; k++) {
                    double expected = (activation == SQ_GELU ? gelu(g[k]) : silu(g[k])) * u[k],
                           found = ((float *)y.data)[k];
                    /* exp multiplies a relative error of its argument by the argument. Where it overflows in
                     * the definition, the result is 0 for values under 1e-36. */
                    double slack = 4 + (activation == SQ_GELU ? 3 * fabs(gelu_argument(g[k])) : 0);
                    CHECK_SAY(fabs(found - expected) <= slack * ulp(expected) + 1e-36,
                              "%s: %s(%.9g) %.9g: found %.9g, expected %.9g", sets[s]->name,
                              activation == SQ_GELU ? "gelu" : "silu", g[k], u[k], found, expected);
                }
                sets[s]->gated[activation](gate.data, up.data, n, gate.data); /* in place */
                CHECK(!memcmp(gate.data, y.data, n * sizeof(float)));
                guard_free(gate);
                guard_free(up);
                guard_free(y);
            }
        }
    }
    for (int s = 0; s < n_sets; s++) {
        float gate[32] = {NAN, INFINITY, -1000, 1000, 0}, up[32] = {1, 1, 1, 1, 1}, y[5];
        sets[s]->gated[activation](gate, up, 5, y);
        CHECK(isnan(y[0]) && y[1] == INFINITY && y[2] == 0 && y[3] == 1000 && y[4] == 0);
    }
}

static void test_silu_mul(void) {
    check_gated(SQ_SILU);
}

static void test_gelu_mul(void) {
    check_gated(SQ_GELU);
}

static void test_relu(void) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        guarded x = random_floats(n, 4), y = guard_alloc(n * sizeof(float));
        for (int s = 0; s < n_sets; s++) {
            memcpy(y.data, x.data, n * sizeof(float));
            sets[s]->relu(y.data, n);
            for (uint32_t k = 0; k < n; k++) {
                float value = ((float *)x.data)[k];
                CHECK(((float *)y.data)[k] == (value > 0 ? value : 0));
            }
        }
        guard_free(x);
        guard_free(y);
    }
    for (int s = 0; s < n_sets; s++) {
        float x[4] = {NAN, INFINITY, -INFINITY, 0};
        sets[s]->relu(x, 4);
        CHECK(isnan(x[0]) && x[1] == INFINITY && x[2] == 0 && x[3] == 0);
    }
}

static void test_softcap(void) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        for (int round = 0; round < 8; round++) {
            float cap = round % 2 ? 50 : 0.5f;
            guarded x = random_floats(n, round < 4 ? cap / 8 : 12 * cap), y = guard_alloc(n * sizeof(float));
            for (int s = 0; s < n_sets; s++) {
                memcpy(y.data, x.data, n * sizeof(float));
                sets[s]->softcap(y.data, cap, n);
                for (uint32_t k = 0; k < n; k++) {
                    float value = ((float *)x.data)[k], found = ((float *)y.data)[k];
                    double expected = cap * tanh((double)value / cap);
                    CHECK_SAY(fabs(found - expected) <= 6 * ulp(expected),
                              "%s: %.9g capped at %g: found %.9g, expected %.9g", sets[s]->name, value, cap,
                              found, expected);
                }
            }
            guard_free(x);
            guard_free(y);
        }
    }
    for (int s = 0; s < n_sets; s++) {
        float x[5] = {NAN, INFINITY, -INFINITY, 1e-30f, 0};
        sets[s]->softcap(x, 30, 5);
        CHECK(isnan(x[0]) && x[1] == 30 && x[2] == -30 && fabsf(x[3] / 1e-30f - 1) < 1e-6f && x[4] == 0);
    }
}

static void test_rope(void) {
    static const struct {
        uint32_t n_heads, head_dim, n_rot;
    } cases[] = {{1, 2, 2}, {3, 8, 8}, {9, 64, 64}, {5, 80, 80}, {2, 128, 128}, {3, 80, 32}, {2, 20, 12}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t n_heads = cases[i].n_heads, dim = cases[i].head_dim, half = cases[i].n_rot / 2;
        guarded before = random_floats(n_heads * dim, 4), x = guard_alloc(4 * n_heads * dim),
                cosines = random_floats(half, 1), sines = random_floats(half, 1);
        const float *c = cosines.data, *sn = sines.data;
        for (int s = 0; s < n_sets; s++) {
            memcpy(x.data, before.data, 4 * n_heads * dim);
            sets[s]->rope(x.data, c, sn, n_heads, dim, 2 * half);
            for (uint32_t k = 0; k < n_heads * dim; k++) {
                uint32_t d = k % dim;
                const float *in = (float *)before.data + k;
                double expected = d < half ? (double)in[0] * c[d] - (double)in[half] * sn[d]
                                  : d < 2 * half
                                      ? (double)in[0] * c[d - half] + (double)*(in - half) * sn[d - half]
                                      : in[0];
                CHECK_NEAR(((float *)x.data)[k], expected, 0x1p-24 * 12);
            }
        }
        guard_free(before);
        guard_free(x);
        guard_free(cosines);
        guard_free(sines);
    }
}

static void test_add_and_scale(void) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        guarded x = random_floats(n, 4), y = random_floats(n, 4), sum = guard_alloc(n * sizeof(float));
        for (int s = 0; s < n_sets; s++) {
            memcpy(sum.data, y.data, n * sizeof(float));
            sets[s]->add(sum.data, x.data, n);
            for (uint32_t k = 0; k < n; k++) {
                CHECK(((float *)sum.data)[k] == ((float *)y.data)[k] + ((float *)x.data)[k]);
            }
            memcpy(sum.data, x.data, n * sizeof(float));
            sets[s]->scale(sum.data, 48.5f, n);
            for (uint32_t k = 0; k < n; k++) {
                CHECK(((float *)sum.data)[k] == ((float *)x.data)[k] * 48.5f);
            }
        }
        guard_free(x);
        guard_free(y);
        guard_free(sum);
    }
}

/* ---- attention --------------------------------------------------------------------------------- */

typedef struct cache {
    guarded stored;
    float *values; /* what `stored` holds */
} cache;

static cache cache_create(sq_kv_type type, size_t n, float size) {
    cache c = {guard_alloc(n * (type == SQ_KV_F16 ? 2 : 4)), malloc(n * sizeof(float))};
    for (size_t i = 0; i < n; i++) {
        float f = random_float(size);
        if (type == SQ_KV_F16) {
            uint16_t h = ((uint16_t *)c.stored.data)[i] = sq_f32_to_f16(f);
            f = sq_f16_to_f32(h);
        } else {
            ((float *)c.stored.data)[i] = f;
        }
        c.values[i] = f;
    }
    return c;
}

static void cache_free(cache c) {
    guard_free(c.stored);
    free(c.values);
}

/* One head in double: `expected` [head_dim], and an error that f32 scores may cause. */
static double attend_reference(const float *q, const float *k, const float *v, uint32_t n_pos, uint32_t dim,
                               float scale, float cap, double *expected) {
    double *scores = malloc(n_pos * sizeof *scores), max = -INFINITY, sum = 0, magnitude = 0;
    memset(expected, 0, dim * sizeof *expected);
    for (uint32_t p = 0; p < n_pos; p++) {
        double size = 0;
        scores[p] = 0;
        for (uint32_t i = 0; i < dim; i++) {
            scores[p] += (double)q[i] * k[(size_t)p * dim + i] * scale;
            size += fabs((double)q[i] * k[(size_t)p * dim + i] * scale);
        }
        scores[p] = cap > 0 ? cap * tanh(scores[p] / cap) : scores[p];
        max = fmax(max, scores[p]);
        magnitude = fmax(magnitude, size);
    }
    for (uint32_t p = 0; p < n_pos; p++) {
        double weight = exp(scores[p] - max);
        sum += weight;
        for (uint32_t i = 0; i < dim; i++) {
            expected[i] += weight * v[(size_t)p * dim + i];
        }
    }
    for (uint32_t i = 0; i < dim; i++) {
        expected[i] /= sum;
    }
    free(scores);
    return 0x1p-24 * (8 + 2 * magnitude);
}

static void check_attend(sq_kv_type type, uint32_t n_pos, uint32_t n_group, uint32_t dim, float size,
                         float cap) {
    size_t n = (size_t)n_pos * dim;
    float scale = 1 / sqrtf((float)dim);
    double *expected = malloc(dim * sizeof *expected);
    cache k = cache_create(type, n, size), v = cache_create(type, n, 1);
    guarded q = random_floats(n_group * dim, size), out = guard_alloc(sizeof(float) * n_group * dim),
            scores = guard_alloc(sizeof(float) * n_group * sq_pad(n_pos));
    for (int s = 0; s < n_sets; s++) {
        sets[s]->attend[type](q.data, k.stored.data, v.stored.data, n_pos, n_group, dim, scale, cap,
                              scores.data, out.data);
        for (uint32_t h = 0; h < n_group; h++) {
            const float *found = (float *)out.data + h * dim;
            double tolerance = attend_reference((float *)q.data + h * dim, k.values, v.values, n_pos, dim,
                                                scale, cap, expected);
            double worst = 0;
            for (uint32_t i = 0; i < dim; i++) {
                worst = fmax(worst, isnan(found[i]) ? INFINITY : fabs(found[i] - expected[i]));
            }
            CHECK_SAY(worst <= tolerance, "%s %s: head %u of %u, %u positions, %u dims: off by %g, not %g",
                      sets[s]->name, type == SQ_KV_F16 ? "f16" : "f32", h, n_group, n_pos, dim, worst,
                      tolerance);
        }
    }
    cache_free(k);
    cache_free(v);
    guard_free(q);
    guard_free(out);
    guard_free(scores);
    free(expected);
}

static void test_attend(void) {
    static const uint32_t dims[] = {1, 8, 20, 32, 64, 80, 96, 100, 128, 256};
    static const uint32_t positions[] = {1, 2, 3, 4, 5, 15, 31, 32, 33, 65, 300};
    for (sq_kv_type type = 0; type < SQ_N_KV_TYPES; type++) {
        for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
            for (size_t j = 0; j < sizeof positions / sizeof *positions; j++) {
                check_attend(type, positions[j], 1 + (i + j) % 9, dims[i], 2, j % 2 ? 0 : 3);
            }
        }
        for (uint32_t n_group = 1; n_group <= 17; n_group++) {
            check_attend(type, 50, n_group, 64, 1, 0);
        }
        check_attend(type, 100, 3, 64, 60, 0); /* scores of thousands: exp must not overflow */
        check_attend(type, 3000, 2, 64, 1, 0);
        check_attend(type, 300, 3, 80, 60, 50);
    }
}

int main(void) {
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    for (int i = 0; i < 3; i++) {
        if (!sq_kernels_choose(names[i], &sets[n_sets], NULL)) {
            printf("instruction set: %s\n", sets[n_sets++]->name);
        }
    }
    RUN(test_f16);
    RUN(test_kv_store);
    RUN(test_rms_norm);
    RUN(test_layer_norm);
    RUN(test_silu_mul);
    RUN(test_gelu_mul);
    RUN(test_relu);
    RUN(test_softcap);
    RUN(test_rope);
    RUN(test_add_and_scale);
    RUN(test_attend);
    return check_report();
}
