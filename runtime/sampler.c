/* From logits to a token. NaN and -inf logits are never drawn while there is any other, +inf counts as
 * the largest finite number; where all are forbidden the answer is token 0. */
#include "sampler.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

enum { MAX_PENALTY_WINDOW = 1 << 20 };

struct sq_sampler {
    sq_sampler_options options;
    sq_logit_bias *biases; /* [options.n_biases] */
    uint32_t n_vocab;
    uint64_t random;
    float *logits;            /* [n_vocab]: the logits after bias and penalties */
    sq_candidate *candidates; /* [top_k, or n_vocab where it is off] */
    size_t n_candidates;
    sq_token *window;    /* ring of the last penalty_window accepted tokens */
    uint64_t n_accepted; /* the next goes to n_accepted mod penalty_window */
    int32_t *counts;     /* [n_vocab]: how often a token is in the window */
};

/* ---- life ------------------------------------------------------------------------------------ */

void sq_sampler_defaults(sq_sampler_options *options) {
    *options = (sq_sampler_options){
        .temperature = 0.7f,
        .top_k = 40,
        .top_p = 0.95f,
        .min_p = 0.05f,
        .repeat_penalty = 1.0f,
        .penalty_window = 64,
    };
}

static sq_status check_range(const char *name, float value, float low, float high, const char *expected,
                             sq_error *error) {
    if (value >= low && value <= high)
        return SQ_OK; /* false for NaN */
    return sq_fail(error, SQ_ERROR_ARGUMENT, "%s is %g, expected %s", name, (double)value, expected);
}

static sq_status check_biases(const sq_sampler_options *options, uint32_t n_vocab, sq_error *error) {
    if (options->n_biases && !options->biases)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "%zu logit biases announced, but no list given",
                       options->n_biases);
    for (size_t i = 0; i < options->n_biases; i++) {
        sq_logit_bias bias = options->biases[i];
        if (bias.token < 0 || (uint32_t)bias.token >= n_vocab)
            return sq_fail(error, SQ_ERROR_ARGUMENT,
                           "logit bias for token %" PRId32 ", expected 0 to %" PRIu32, bias.token,
                           n_vocab - 1);
        if (isnan(bias.bias) || bias.bias == INFINITY)
            return sq_fail(error, SQ_ERROR_ARGUMENT,
                           "logit bias of token %" PRId32 " is %g, expected a number or -infinity",
                           bias.token, (double)bias.bias);
    }
    return SQ_OK;
}

static sq_status check_options(const sq_sampler_options *o, uint32_t n_vocab, sq_error *error) {
    static const char *const number = "a finite number";
    static const char *const share = "0 to 1";
    sq_status status;
    if ((status = check_range("temperature", o->temperature, 0, FLT_MAX, "0 (greedy) or more", error)) ||
        (status = check_range("top-p", o->top_p, 0, 1, share, error)) ||
        (status = check_range("min-p", o->min_p, 0, 1, share, error)) ||
        (status = check_range("repeat penalty", o->repeat_penalty, FLT_MIN, FLT_MAX, "more than 0 (1 is off)",
                              error)) ||
        (status = check_range("presence penalty", o->presence_penalty, -FLT_MAX, FLT_MAX, number, error)) ||
        (status = check_range("frequency penalty", o->frequency_penalty, -FLT_MAX, FLT_MAX, number, error)))
        return status;
    if (o->penalty_window > MAX_PENALTY_WINDOW)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "penalty window is %" PRIu32 " tokens, expected at most %d",
                       o->penalty_window, MAX_PENALTY_WINDOW);
    return check_biases(o, n_vocab, error);
}

sq_status sq_sampler_create_for(uint32_t n_vocab, const sq_sampler_options *options, sq_sampler **sampler,
                                sq_error *error) {
    *sampler = NULL;
    sq_sampler_options defaults;
    sq_sampler_defaults(&defaults);
    if (!options)
        options = &defaults;
    if (n_vocab == 0 || n_vocab > INT32_MAX)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "a vocabulary of %" PRIu32 " tokens, expected 1 to %d",
                       n_vocab, INT32_MAX);
    sq_status status = check_options(options, n_vocab, error);
    if (status)
        return status;

    sq_sampler *s = calloc(1, sizeof *s);
    if (!s)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a sampler");
    s->options = *options;
    s->n_vocab = n_vocab;
    s->random = options->seed;
    s->n_candidates = options->top_k && options->top_k < n_vocab ? options->top_k : n_vocab;
    s->logits = calloc(n_vocab, sizeof *s->logits);
    s->candidates = calloc(s->n_candidates, sizeof *s->candidates);
    s->window = calloc((size_t)options->penalty_window + 1, sizeof *s->window);
    s->counts = calloc(n_vocab, sizeof *s->counts);
    s->biases = calloc(options->n_biases + 1, sizeof *s->biases);
    s->options.biases = s->biases;
    if (!s->logits || !s->candidates || !s->window || !s->counts || !s->biases) {
        sq_sampler_free(s);
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a sampler over %" PRIu32 " tokens", n_vocab);
    }
    if (options->n_biases)
        memcpy(s->biases, options->biases, options->n_biases * sizeof *s->biases);
    *sampler = s;
    return SQ_OK;
}

sq_status sq_sampler_create(const sq_model *model, const sq_sampler_options *options, sq_sampler **sampler,
                            sq_error *error) {
    sq_model_info info;
    sq_model_get_info(model, &info);
    return sq_sampler_create_for(info.n_vocab, options, sampler, error);
}

void sq_sampler_free(sq_sampler *sampler) {
    if (!sampler)
        return;
    free(sampler->biases);
    free(sampler->logits);
    free(sampler->candidates);
    free(sampler->window);
    free(sampler->counts);
    free(sampler);
}

void sq_sampler_reset(sq_sampler *sampler, uint64_t seed) {
    sampler->random = seed;
    sampler->n_accepted = 0;
    memset(sampler->counts, 0, sampler->n_vocab * sizeof *sampler->counts);
}

void sq_sampler_accept(sq_sampler *sampler, sq_token token) {
    uint32_t n_window = sampler->options.penalty_window;
    if (n_window == 0 || token < 0 || (uint32_t)token >= sampler->n_vocab)
        return;
    sq_token *slot = &sampler->window[sampler->n_accepted % n_window];
    if (sampler->n_accepted >= n_window)
        sampler->counts[*slot]--;
    sampler->counts[token]++;
    sampler->n_accepted++;
    *slot = token;
}

/* ---- bias and penalties ---------------------------------------------------------------------- */

/* A number that can be compared and subtracted. */
static float tame(float logit) {
    if (isnan(logit))
        return -INFINITY;
    return logit > FLT_MAX ? FLT_MAX : logit;
}

/* Keskar et al., "CTRL" (2019), section 4.1, for the repeat penalty; with negative logits multiplied, so
 * that the penalty never favours. Presence and frequency penalties as in OpenAI's API. */
static float penalize(const sq_sampler_options *o, float logit, int32_t count) {
    logit = logit > 0 ? logit / o->repeat_penalty : logit * o->repeat_penalty;
    return tame(logit - o->presence_penalty - o->frequency_penalty * (float)count);
}

static bool has_penalties(const sq_sampler_options *o) {
    return o->repeat_penalty != 1 || o->presence_penalty != 0 || o->frequency_penalty != 0;
}

bool sq_sampler_is_greedy(const sq_sampler *sampler) {
    const sq_sampler_options *o = &sampler->options;
    return o->temperature == 0 && !o->n_biases && !has_penalties(o);
}

static void apply_penalties(sq_sampler *s) {
    const sq_sampler_options *o = &s->options;
    if (!has_penalties(o))
        return;
    size_t n = s->n_accepted < o->penalty_window ? (size_t)s->n_accepted : o->penalty_window;
    /* A token stands in the window as often as it was seen, but is penalized once: a negative count marks
     * those done. */
    for (size_t i = 0; i < n; i++) {
        sq_token token = s->window[i];
        if (s->counts[token] < 0)
            continue;
        s->logits[token] = penalize(o, s->logits[token], s->counts[token]);
        s->counts[token] = -s->counts[token];
    }
    for (size_t i = 0; i < n; i++)
        if (s->counts[s->window[i]] < 0)
            s->counts[s->window[i]] = -s->counts[s->window[i]];
}

static void adjust(sq_sampler *s, const float *logits) {
    for (uint32_t i = 0; i < s->n_vocab; i++)
        s->logits[i] = tame(logits[i]);
    for (size_t i = 0; i < s->options.n_biases; i++) {
        float *logit = &s->logits[s->biases[i].token];
        *logit = tame(*logit + s->biases[i].bias);
    }
    apply_penalties(s);
}

/* ---- the candidates -------------------------------------------------------------------------- */

/* The order of candidates: heavier first, the lower id at ties. */
static bool precedes(sq_candidate a, sq_candidate b) {
    return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

/* Moves heap[i] down to its place. The root is the first in order, or the last where `last_on_top`. */
static void sift_down(sq_candidate *heap, size_t n, size_t i, bool last_on_top) {
    sq_candidate moving = heap[i];
    for (size_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && precedes(heap[child + 1], heap[child]) != last_on_top)
            child++;
        if (precedes(heap[child], moving) == last_on_top)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void build_heap(sq_candidate *heap, size_t n, bool last_on_top) {
    for (size_t i = n / 2; i-- > 0;)
        sift_down(heap, n, i, last_on_top);
}

/* The n_candidates largest logits, by a heap with the least of them on top: few of the rest get in. */
static void select_top_k(sq_sampler *s) {
    sq_candidate *c = s->candidates;
    size_t k = s->n_candidates;
    for (size_t i = 0; i < k; i++)
        c[i] = (sq_candidate){s->logits[i], (sq_token)i};
    if (k == s->n_vocab)
        return;
    build_heap(c, k, true);
    for (size_t i = k; i < s->n_vocab; i++) {
        if ((double)s->logits[i] <= c[0].weight)
            continue; /* at ties the lower id, which is in */
        c[0] = (sq_candidate){s->logits[i], (sq_token)i};
        sift_down(c, k, 0, true);
    }
}

/* Turns logits into exp((logit - max) / temperature). */
static void weigh(sq_sampler *s) {
    double max = -INFINITY, temperature = s->options.temperature;
    for (size_t i = 0; i < s->n_candidates; i++)
        if (s->candidates[i].weight > max)
            max = s->candidates[i].weight;
    for (size_t i = 0; i < s->n_candidates; i++) {
        double below = s->candidates[i].weight - max; /* NaN where all are -inf */
        s->candidates[i].weight = isnan(below) ? 0 : exp(below / temperature);
    }
}

static double sum_weights(const sq_candidate *c, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += c[i].weight;
    return sum;
}

/* The fewest tokens with at least the share top_p of the probability (Holtzman et al., "The curious case
 * of neural text degeneration", 2020). They are taken off a heap, which stores them from the end. */
static sq_candidate *select_top_p(sq_candidate *c, size_t *n, double top_p) {
    double wanted = top_p * sum_weights(c, *n), sum = 0;
    build_heap(c, *n, false);
    size_t rest = *n;
    do {
        rest--;
        sq_candidate best = c[0];
        c[0] = c[rest];
        c[rest] = best;
        sift_down(c, rest, 0, false);
        sum += best.weight;
    } while (rest > 0 && sum < wanted);
    *n -= rest;
    return c + rest;
}

/* Those with at least min_p times the best one's probability, whose weight is 1. */
static size_t select_min_p(sq_candidate *c, size_t n, double min_p) {
    size_t n_kept = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].weight >= min_p)
            c[n_kept++] = c[i];
    return n_kept;
}

const sq_candidate *sq_sampler_candidates(sq_sampler *sampler, const float *logits, size_t *n) {
    adjust(sampler, logits);
    select_top_k(sampler);
    weigh(sampler);
    sq_candidate *c = sampler->candidates;
    *n = sampler->n_candidates;
    if (sampler->options.top_p < 1)
        c = select_top_p(c, n, sampler->options.top_p);
    size_t n_kept = select_min_p(c, *n, sampler->options.min_p);
    if (n_kept)
        *n = n_kept; /* none only where all weights are 0 */
    return c;
}

/* ---- the draw -------------------------------------------------------------------------------- */

/* Uniform in [0, 1), 53 bits. SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number
 * generators", OOPSLA 2014, figure 15. The same numbers on every machine, for any seed. */
static double next_random(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

static sq_token take_largest(sq_sampler *s, const float *logits) {
    adjust(s, logits);
    uint32_t best = 0;
    for (uint32_t i = 1; i < s->n_vocab; i++)
        if (s->logits[i] > s->logits[best])
            best = i;
    return (sq_token)best;
}

sq_token sq_sampler_sample(sq_sampler *sampler, const float *logits) {
    if (sampler->options.temperature == 0)
        return take_largest(sampler, logits);
    size_t n;
    const sq_candidate *c = sq_sampler_candidates(sampler, logits, &n);
    double total = sum_weights(c, n);
    if (!(total > 0))
        return 0;
    double target = next_random(&sampler->random) * total, sum = 0;
    size_t last = 0; /* the last that can be drawn: rounding may leave the sum below the target */
    for (size_t i = 0; i < n; i++) {
        if (c[i].weight == 0)
            continue;
        last = i;
        sum += c[i].weight;
        if (sum > target)
            break;
    }
    return c[last].token;
}

double sq_log_probability(const float *logits, size_t n_vocab, sq_token token) {
    if (token < 0 || (size_t)token >= n_vocab || tame(logits[token]) == -INFINITY)
        return -INFINITY;
    float max = -INFINITY;
    for (size_t i = 0; i < n_vocab; i++)
        if (tame(logits[i]) > max)
            max = tame(logits[i]);
    double sum = 0;
    for (size_t i = 0; i < n_vocab; i++)
        sum += exp((double)tame(logits[i]) - max);
    return (double)tame(logits[token]) - max - log(sum);
}
