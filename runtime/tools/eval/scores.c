#include "scores.h"

#include "reference.h"
#include "text.h"

#include <math.h>
#include <stdlib.h>

static void moments_add(moments *m, double value) {
    m->sum += value;
    m->sum_of_squares += value * value;
    m->n++;
}

double moments_mean(const moments *m) {
    return m->sum / (double)m->n;
}

double moments_standard_error(const moments *m) {
    double n = (double)m->n, mean = moments_mean(m);
    double variance = fmax(0, m->sum_of_squares / n - mean * mean);
    return n > 1 ? sqrt(variance / (n - 1)) : NAN;
}

double scores_perplexity(const moments *nats) {
    return exp(moments_mean(nats));
}

/* The derivative of exp is exp. */
double scores_perplexity_error(const moments *nats) {
    return scores_perplexity(nats) * moments_standard_error(nats);
}

/* log Σ exp(logits) and the token on top, the lowest at ties. */
static double log_sum(const float *logits, size_t n_vocab, size_t *top) {
    *top = 0;
    for (size_t i = 1; i < n_vocab; i++) {
        *top = logits[i] > logits[*top] ? i : *top;
    }
    double sum = 0;
    for (size_t i = 0; i < n_vocab; i++) {
        sum += exp((double)logits[i] - (double)logits[*top]);
    }
    return (double)logits[*top] + log(sum);
}

/* exp(-units / REFERENCE_UNITS) of all units. */
static const double *unit_probabilities(void) {
    static double table[REFERENCE_LOWEST + 1];
    for (size_t i = 0; table[0] == 0 && i <= REFERENCE_LOWEST; i++) {
        size_t units = REFERENCE_LOWEST - i; /* [0] last: it says that the table is full */
        table[units] = exp(-(double)units / REFERENCE_UNITS);
    }
    return table;
}

/* With P ∝ exp(-row / REFERENCE_UNITS) and Q ∝ exp(logits):
 *     KL(P || Q) = Σ P (log P - log Q) = Σ P (-row / REFERENCE_UNITS - logits) - log ΣP + log Σexp(logits) */
static void add_divergence(scores *s, const float *logits, double log_q, size_t top, const uint16_t *row,
                           size_t n_vocab, sq_token next) {
    const double *probability = unit_probabilities();
    double sum = 0, weighted = 0;
    for (size_t i = 0; i < n_vocab; i++) {
        double p = probability[row[i]];
        sum += p;
        weighted += p * (-(double)row[i] / REFERENCE_UNITS - (double)logits[i]);
    }
    double divergence = weighted / sum - log(sum) + log_q;
    if (s->divergence.n == s->capacity) {
        s->capacity = 2 * s->capacity + 1024;
        s->divergences = memory_resize(s->divergences, s->capacity, sizeof *s->divergences);
    }
    s->divergences[s->divergence.n] = (float)divergence;
    moments_add(&s->divergence, divergence);
    moments_add(&s->top, row[top] == 0);
    moments_add(&s->reference_nats, row[next] / (double)REFERENCE_UNITS + log(sum));
}

void scores_add(scores *s, const float *logits, const uint16_t *row, size_t n_vocab, sq_token next) {
    size_t top;
    double log_q = log_sum(logits, n_vocab, &top);
    moments_add(&s->nats, log_q - (double)logits[next]);
    if (row) {
        add_divergence(s, logits, log_q, top, row, n_vocab, next);
    }
}

void scores_free(scores *s) {
    free(s->divergences);
    *s = (scores){0};
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double scores_quantile(scores *s, double share) {
    size_t n = s->divergence.n;
    qsort(s->divergences, n, sizeof *s->divergences, compare);
    double place = share * (double)(n - 1);
    size_t below = (size_t)place, above = below + 1 < n ? below + 1 : below;
    double low = (double)s->divergences[below], high = (double)s->divergences[above];
    return low + (place - (double)below) * (high - low);
}
