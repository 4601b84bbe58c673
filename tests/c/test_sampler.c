/* The sampler against the plainest possible reference. */
#include "sampler.h"

#include <float.h>
#include <stdlib.h>

#include "check.h"

static sq_sampler_options plain(float temperature) {
    return (sq_sampler_options){.temperature = temperature, .top_p = 1, .repeat_penalty = 1, .seed = 1};
}

static sq_sampler *create(uint32_t n_vocab, const sq_sampler_options *options) {
    sq_sampler *sampler;
    sq_error error;
    CHECK_OK(sq_sampler_create_for(n_vocab, options, &sampler, &error), &error);
    return sampler;
}

/* ---- reference: sort everything, in double ---------------------------------------------------- */

typedef struct ranked {
    double logit, weight;
    sq_token token;
} ranked;

static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

/* Fills `kept` with the survivors, best first, weights relative to the best; returns their number. */
static size_t reference(const float *logits, size_t n, const sq_sampler_options *o, ranked *kept) {
    for (size_t i = 0; i < n; i++)
        kept[i] = (ranked){logits[i], 0, (sq_token)i};
    qsort(kept, n, sizeof *kept, by_rank);
    if (o->top_k && o->top_k < n)
        n = o->top_k;
    double total = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        kept[i].weight = exp((kept[i].logit - kept[0].logit) / o->temperature);
        total += kept[i].weight;
    }
    size_t n_top_p = 0;
    while (n_top_p < n && (n_top_p == 0 || sum < o->top_p * total))
        sum += kept[n_top_p++].weight;
    n = o->top_p < 1 ? n_top_p : n;
    while (n > 1 && kept[n - 1].weight < o->min_p)
        n--;
    return n;
}

static void check_candidates(const float *logits, uint32_t n_vocab, const sq_sampler_options *options) {
    sq_sampler *sampler = create(n_vocab, options);
    ranked *kept = malloc(n_vocab * sizeof *kept);
    size_t n_expected = reference(logits, n_vocab, options, kept), n;
    const sq_candidate *c = sq_sampler_candidates(sampler, logits, &n);
    if (CHECK_SAY(n == n_expected, "vocab %u, T %g, k %u, p %g, min-p %g: %zu candidates, expected %zu",
                  n_vocab, (double)options->temperature, options->top_k, (double)options->top_p,
                  (double)options->min_p, n, n_expected)) {
        double *weights = calloc(n_vocab, sizeof *weights);
        for (size_t i = 0; i < n; i++)
            weights[c[i].token] = c[i].weight;
        for (size_t i = 0; i < n; i++)
            CHECK_NEAR(weights[kept[i].token], kept[i].weight, 1e-12 * kept[i].weight);
        free(weights);
    }
    free(kept);
    sq_sampler_free(sampler);
}

static void test_candidates(void) {
    static const uint32_t sizes[] = {1, 2, 3, 17, 300, 2000};
    static const uint32_t top_ks[] = {0, 1, 2, 5, 40, 299, 300, 5000};
    static const float top_ps[] = {0, 0.1f, 0.5f, 0.95f, 1}, min_ps[] = {0, 0.05f, 0.5f, 1};
    uint64_t random = 7;
    float logits[2000];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t kind = 0; kind < 3; kind++) { /* spread; many ties; all equal */
            for (uint32_t i = 0; i < sizes[s]; i++) {
                double uniform = (double)(check_random(&random) >> 11) * 0x1p-53;
                logits[i] = kind == 0 ? (float)(12 * uniform - 6) : kind == 1 ? (float)(int)(6 * uniform) : 1;
            }
            for (size_t k = 0; k < sizeof top_ks / sizeof *top_ks; k++)
                for (size_t p = 0; p < sizeof top_ps / sizeof *top_ps; p++)
                    for (size_t m = 0; m < sizeof min_ps / sizeof *min_ps; m++) {
                        sq_sampler_options options = plain(kind == 2 ? 0.7f : 1.3f);
                        options.top_k = top_ks[k];
                        options.top_p = top_ps[p];
                        options.min_p = min_ps[m];
                        check_candidates(logits, sizes[s], &options);
                    }
        }
    }
}

/* ---- greedy and odd logits -------------------------------------------------------------------- */

static sq_token sample_once(const sq_sampler_options *options, const float *logits, uint32_t n_vocab) {
    sq_sampler *sampler = create(n_vocab, options);
    sq_token token = sq_sampler_sample(sampler, logits);
    sq_sampler_free(sampler);
    return token;
}

static void test_greedy(void) {
    sq_sampler_options greedy = plain(0);
    CHECK_EQ(sample_once(&greedy, (float[]){1, 3, 2}, 3), 1);
    CHECK_EQ(sample_once(&greedy, (float[]){1, 3, 3, 3}, 4), 1); /* ties: the lowest id */
    CHECK_EQ(sample_once(&greedy, (float[]){-5}, 1), 0);
}

static void test_odd_logits(void) {
    float inf = INFINITY;
    for (int i = 0; i < 4; i++) { /* greedy, plain, top-k, everything */
        sq_sampler_options options = plain(i == 0 ? 0 : 0.5f);
        if (i == 2)
            options.top_k = 2;
        if (i == 3)
            sq_sampler_defaults(&options);
        CHECK_EQ(sample_once(&options, (float[]){NAN, -inf, 1, NAN}, 4), 2);
        CHECK_EQ(sample_once(&options, (float[]){NAN, 0, inf, 5}, 4), 2);
        CHECK_EQ(sample_once(&options, (float[]){-inf, -inf, -inf}, 3), 0);
        CHECK_EQ(sample_once(&options, (float[]){NAN, NAN}, 2), 0);
        CHECK_EQ(sample_once(&options, (float[]){-FLT_MAX, FLT_MAX, 0}, 3), 1);
    }
    sq_sampler_options cold = plain(1e-38f), hot = plain(FLT_MAX);
    CHECK_EQ(sample_once(&cold, (float[]){1, 1.0001f, 0}, 3), 1);
    sq_token token = sample_once(&hot, (float[]){1, 2, 3}, 3);
    CHECK(token >= 0 && token < 3);
}

/* ---- bias and penalties ----------------------------------------------------------------------- */

/* The logit after adjustments, seen through the weights: ln w = (logit - max) at temperature 1. Token 0
 * is the reference with logit 20, never adjusted. */
static double adjusted(sq_sampler *sampler, const float *logits, sq_token token) {
    size_t n;
    const sq_candidate *c = sq_sampler_candidates(sampler, logits, &n);
    double reference = NAN, wanted = 0;
    for (size_t i = 0; i < n; i++) {
        if (c[i].token == 0)
            reference = c[i].weight;
        if (c[i].token == token)
            wanted = c[i].weight;
    }
    return 20 + log(wanted / reference);
}

static void test_penalties(void) {
    const float logits[] = {20, 4, -4, 1, 0};
    sq_sampler_options options = plain(1);
    options.repeat_penalty = 2;
    options.presence_penalty = 0.5f;
    options.frequency_penalty = 0.25f;
    options.penalty_window = 4;
    sq_sampler *sampler = create(5, &options);
    CHECK_NEAR(adjusted(sampler, logits, 1), 4, 1e-9);
    const sq_token seen[] = {1, 2, 1, -1, 99, 4}; /* two that are no tokens: ignored */
    for (size_t i = 0; i < 6; i++)
        sq_sampler_accept(sampler, seen[i]);
    for (int again = 0; again < 2; again++) { /* sampling changes nothing */
        CHECK_NEAR(adjusted(sampler, logits, 1), 4 / 2.0 - 0.5 - 2 * 0.25, 1e-9);
        CHECK_NEAR(adjusted(sampler, logits, 2), -4 * 2.0 - 0.5 - 0.25, 1e-9);
        CHECK_NEAR(adjusted(sampler, logits, 3), 1, 1e-9);
        CHECK_NEAR(adjusted(sampler, logits, 4), 0 - 0.5 - 0.25, 1e-9);
    }
    sq_sampler_accept(sampler, 3); /* the first 1 falls out of the window */
    CHECK_NEAR(adjusted(sampler, logits, 1), 4 / 2.0 - 0.5 - 0.25, 1e-9);
    CHECK_NEAR(adjusted(sampler, logits, 3), 1 / 2.0 - 0.5 - 0.25, 1e-9);
    for (int i = 0; i < 4; i++)
        sq_sampler_accept(sampler, 3);
    CHECK_NEAR(adjusted(sampler, logits, 1), 4, 1e-9);
    CHECK_NEAR(adjusted(sampler, logits, 3), 1 / 2.0 - 0.5 - 4 * 0.25, 1e-9);
    sq_sampler_reset(sampler, 1);
    CHECK_NEAR(adjusted(sampler, logits, 3), 1, 1e-9);
    sq_sampler_free(sampler);
}

static void test_no_window(void) {
    sq_sampler_options options = plain(1);
    options.repeat_penalty = 2;
    options.penalty_window = 0;
    sq_sampler *sampler = create(2, &options);
    sq_sampler_accept(sampler, 1);
    CHECK_NEAR(adjusted(sampler, (float[]){20, 4}, 1), 4, 1e-9);
    sq_sampler_free(sampler);
}

static void test_bias(void) {
    const float logits[] = {20, 4, 30, 1};
    sq_logit_bias biases[] = {{1, 2.5f}, {2, -INFINITY}, {3, -1}, {3, -1}};
    sq_sampler_options options = plain(1);
    options.biases = biases;
    options.n_biases = 4;
    options.repeat_penalty = 2;
    options.penalty_window = 8;
    sq_sampler *sampler = create(4, &options);
    biases[0].bias = 99; /* they were copied */
    CHECK_NEAR(adjusted(sampler, logits, 1), 6.5, 1e-9);
    CHECK_EQ(adjusted(sampler, logits, 2) == -INFINITY, true);
    CHECK_NEAR(adjusted(sampler, logits, 3), -1, 1e-9);
    sq_sampler_accept(sampler, 1); /* bias before penalty */
    CHECK_NEAR(adjusted(sampler, logits, 1), 6.5 / 2, 1e-9);
    for (int i = 0; i < 1000; i++)
        CHECK(sq_sampler_sample(sampler, logits) != 2);
    sq_sampler_free(sampler);
}

/* ---- the draw --------------------------------------------------------------------------------- */

/* Chi-square of 100,000 draws over 8 tokens, 7 degrees of freedom: above 24.3 with probability 0.001 for
 * a right sampler; the seed is fixed, so this either always passes or never. */
static void test_distribution(void) {
    const float logits[] = {0, 0.5f, 1, 1.5f, -1, -2, 2, 0.25f};
    enum { N = 8, N_DRAWS = 100000 };
    for (int i = 0; i < 3; i++) { /* plain; through the heaps of top-p; through top-k */
        sq_sampler_options options = plain(0.8f);
        options.seed = 1234;
        if (i == 1)
            options.top_p = 0.9999f;
        if (i == 2)
            options.top_k = 7;
        sq_sampler *sampler = create(N, &options);
        ranked kept[N];
        size_t n = reference(logits, N, &options, kept), counts[N] = {0};
        for (int draw = 0; draw < N_DRAWS; draw++)
            counts[sq_sampler_sample(sampler, logits)]++;
        double total = 0, chi_square = 0;
        size_t n_counted = 0;
        for (size_t k = 0; k < n; k++)
            total += kept[k].weight;
        for (size_t k = 0; k < n; k++) {
            double expected = N_DRAWS * kept[k].weight / total,
                   off = (double)counts[kept[k].token] - expected;
            chi_square += off * off / expected;
            n_counted += counts[kept[k].token];
        }
        CHECK_EQ((int64_t)n_counted, N_DRAWS);
        CHECK_SAY(chi_square < 24.3, "way %d: chi-square %g, expected less than 24.3", i, chi_square);
        sq_sampler_free(sampler);
    }
}

/* The very tokens, so that a seed means the same on every machine and in every version. */
static void test_reproducible(void) {
    float logits[64];
    for (int i = 0; i < 64; i++)
        logits[i] = 1; /* all weights are exactly 1 */
    sq_sampler_options options = plain(1);
    options.seed = 42;
    sq_sampler *sampler = create(64, &options);
    /* SplitMix64 from 42, top six bits of each number. */
    static const sq_token expected[] = {47, 10, 17, 22};
    for (int i = 0; i < 4; i++)
        CHECK_EQ(sq_sampler_sample(sampler, logits), expected[i]);
    sq_token first[50], n_different = 0;
    sq_sampler_reset(sampler, 7);
    for (int i = 0; i < 50; i++)
        first[i] = sq_sampler_sample(sampler, logits);
    sq_sampler_reset(sampler, 7);
    for (int i = 0; i < 50; i++)
        CHECK_EQ(sq_sampler_sample(sampler, logits), first[i]);
    sq_sampler_reset(sampler, 8);
    for (int i = 0; i < 50; i++)
        n_different += sq_sampler_sample(sampler, logits) != first[i];
    CHECK(n_different > 30);
    sq_sampler_free(sampler);
}

/* ---- options ---------------------------------------------------------------------------------- */

static void check_refused(sq_sampler_options options, const char *part) {
    sq_sampler *sampler;
    sq_error error;
    CHECK_FAILS(sq_sampler_create_for(100, &options, &sampler, &error), &error, SQ_ERROR_ARGUMENT, part);
    CHECK(sampler == NULL);
}

static void test_options(void) {
    sq_sampler_options good, o;
    sq_sampler_defaults(&good);
    CHECK_NEAR(good.temperature, 0.7, 1e-6);
    CHECK_EQ(good.top_k, 40);
    CHECK_EQ(good.penalty_window, 64);
    sq_sampler_free(create(100, &good));
    sq_sampler_free(create(100, NULL));
    sq_sampler_free(NULL);
#define REFUSED(field, value, part) (o = good, o.field = (value), check_refused(o, part))
    REFUSED(temperature, -1, "temperature is -1, expected 0");
    REFUSED(temperature, NAN, "temperature is nan");
    REFUSED(temperature, INFINITY, "temperature is inf");
    REFUSED(top_p, 1.5f, "top-p is 1.5, expected 0 to 1");
    REFUSED(top_p, -0.1f, "top-p is -0.1");
    REFUSED(min_p, NAN, "min-p is nan");
    REFUSED(min_p, 2, "min-p is 2");
    REFUSED(repeat_penalty, 0, "repeat penalty is 0");
    REFUSED(repeat_penalty, -INFINITY, "repeat penalty is -inf");
    REFUSED(presence_penalty, INFINITY, "presence penalty is inf");
    REFUSED(frequency_penalty, NAN, "frequency penalty is nan");
    REFUSED(penalty_window, UINT32_MAX, "penalty window is 4294967295");
    REFUSED(n_biases, 3, "no list");
    sq_logit_bias bias = {100, 1};
    good.biases = &bias;
    good.n_biases = 1;
    check_refused(good, "token 100, expected 0 to 99");
    bias.token = -1;
    check_refused(good, "token -1");
    bias = (sq_logit_bias){5, NAN};
    check_refused(good, "token 5 is nan");
    bias.bias = INFINITY;
    check_refused(good, "token 5 is inf");
    bias.bias = -INFINITY;
    sq_sampler_free(create(100, &good));
    sq_sampler *sampler;
    sq_error error;
    CHECK_FAILS(sq_sampler_create_for(0, NULL, &sampler, &error), &error, SQ_ERROR_ARGUMENT, "0 tokens");
}

/* ---- probabilities ---------------------------------------------------------------------------- */

static void test_log_probability(void) {
    CHECK_NEAR(sq_log_probability((float[]){0, 0, 0, 0}, 4, 2), -log(4), 1e-15);
    CHECK_NEAR(sq_log_probability((float[]){3}, 1, 0), 0, 0);
    CHECK_NEAR(sq_log_probability((float[]){1e30f, 0}, 2, 1), -(double)1e30f, 1e16);
    CHECK_NEAR(sq_log_probability((float[]){-1000, -1001}, 2, 0), -log1p(exp(-1)), 1e-14);
    CHECK_NEAR(sq_log_probability((float[]){0, -INFINITY}, 2, 0), 0, 0);
    CHECK(sq_log_probability((float[]){0, -INFINITY}, 2, 1) == -INFINITY);
    CHECK(sq_log_probability((float[]){0, NAN}, 2, 1) == -INFINITY);
    CHECK(sq_log_probability((float[]){0, NAN}, 2, 0) == 0);
    CHECK(sq_log_probability((float[]){0, 1}, 2, 2) == -INFINITY);
    CHECK(sq_log_probability((float[]){0, 1}, 2, -1) == -INFINITY);
    CHECK(sq_log_probability((float[]){-INFINITY, -INFINITY}, 2, 0) == -INFINITY);
    double sum = 0;
    float logits[500];
    for (int i = 0; i < 500; i++)
        logits[i] = (float)(i % 37) * 0.3f;
    for (int i = 0; i < 500; i++)
        sum += exp(sq_log_probability(logits, 500, i));
    CHECK_NEAR(sum, 1, 1e-12);
}

int main(void) {
    RUN(test_candidates);
    RUN(test_greedy);
    RUN(test_odd_logits);
    RUN(test_penalties);
    RUN(test_no_window);
    RUN(test_bias);
    RUN(test_distribution);
    RUN(test_reproducible);
    RUN(test_options);
    RUN(test_log_probability);
    return check_report();
}
