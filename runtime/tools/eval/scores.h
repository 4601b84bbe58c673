/* What is measured at each position of a text, and its means, medians and standard errors. */
#ifndef TOOLS_EVAL_SCORES_H
#define TOOLS_EVAL_SCORES_H

#include "sq.h"

/* Of a quantity: its mean and that mean's standard error, from its spread over the positions. */
typedef struct moments {
    double sum, sum_of_squares;
    size_t n;
} moments;

double moments_mean(const moments *m);
double moments_standard_error(const moments *m); /* NaN for less than two values */

/* `{0}` is an empty one. */
typedef struct scores {
    moments nats; /* -log of the probability of the token that came, natural */
    /* Against a reference, else empty: */
    moments reference_nats;
    moments divergence; /* KL(reference || model), in nats */
    moments top;        /* 1 where both have the same token on top, else 0 */
    float *divergences; /* [divergence.n] */
    size_t capacity;
} scores;

/* Adds a position: the model's logits [n_vocab], the reference's row [n_vocab] (reference.h; NULL without
 * one), and the token that came. */
void scores_add(scores *s, const float *logits, const uint16_t *row, size_t n_vocab, sq_token next);
void scores_free(scores *s);

double scores_perplexity(const moments *nats);
double scores_perplexity_error(const moments *nats);
/* The value below which a share (0…1) of the divergences lies, by linear interpolation; sorts them. */
double scores_quantile(scores *s, double share);

#endif
