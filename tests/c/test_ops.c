/* The operations between the matrices, of every instruction set this machine has, against double
 * precision; and the conversions to and from f16. */
#include "kernels.h"

#include "check.h"
#include "guard.h"

static const sq_kernels *sets[7];
static int n_sets;

static uint64_t seed = 0x2545f4914f6cdd1du;

static const uint32_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 100, 172, 576, 577, 1536};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

/* Uniform in [-size, size]. */
/* An activation vector: n values, then zeros up to sq_pad(n). */
static guarded activations(uint32_t n, float size) {
    guarded g = guard_random(&seed, sq_pad(n), size);
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

/* ---- vectors ----------------------------------------------------------------------------------- */

static void test_rms_norm(void) {
    for (int i = 0; i < N_SIZES; i++) {
        uint32_t n = sizes[i];
        guarded x = guard_random(&seed, n, 3), weight = guard_random(&seed, n, 2),
                y = guard_alloc(n * sizeof(float)), in_place = guard_alloc(n * sizeof(float));
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
        guarded x = activations(n, 3), weight = guard_random(&seed, n, 2), bias = guard_random(&seed, n, 1),
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
        guarded x = guard_random(&seed, n, 4), y = guard_alloc(n * sizeof(float));
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
            guarded x = guard_random(&seed, n, round < 4 ? cap / 8 : 12 * cap),
                    y = guard_alloc(n * sizeof(float));
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
        guarded before = guard_random(&seed, n_heads * dim, 4), x = guard_alloc(4 * n_heads * dim),
                cosines = guard_random(&seed, half, 1), sines = guard_random(&seed, half, 1);
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
        guarded x = guard_random(&seed, n, 4), y = guard_random(&seed, n, 4),
                sum = guard_alloc(n * sizeof(float));
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

int main(void) {
    static const char *const names[] = {"scalar",     "avx2", "avxvnni", "avx512",
                                        "avx512vnni", "neon", "dotprod"};
    for (int i = 0; i < 7; i++) {
        if (!sq_kernels_choose(names[i], &sets[n_sets], NULL)) {
            printf("instruction set: %s\n", sets[n_sets++]->name);
        }
    }
    RUN(test_f16);
    RUN(test_rms_norm);
    RUN(test_layer_norm);
    RUN(test_silu_mul);
    RUN(test_gelu_mul);
    RUN(test_relu);
    RUN(test_softcap);
    RUN(test_rope);
    RUN(test_add_and_scale);
    return check_report();
}
