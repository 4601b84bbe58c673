/* The sampler without its model: what sq_sampler_create does once it knows the vocabulary's size. */
#ifndef SQ_SAMPLER_H
#define SQ_SAMPLER_H

#include "sq.h"

/* A token that may be drawn, with probability weight / Σ weights. */
typedef struct sq_candidate {
    double weight;
    sq_token token;
} sq_candidate;

sq_status sq_sampler_create_for(uint32_t n_vocab, const sq_sampler_options *options, sq_sampler **sampler,
                                sq_error *error);

/* Whether it takes the largest logit as it is: temperature 0, no biases, no penalties. */
bool sq_sampler_is_greedy(const sq_sampler *sampler);

/* Everything of sq_sampler_sample but the draw, for a temperature above 0: the tokens that survive, at
 * least one, in no particular but a reproducible order. They live until the next call. */
const sq_candidate *sq_sampler_candidates(sq_sampler *sampler, const float *logits, size_t *n);

#endif
