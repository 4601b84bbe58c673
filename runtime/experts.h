/* A mixture of experts: which tokens go to which of a layer's feed-forward networks (N. Shazeer et al.,
 * arXiv 1701.06538, section 2.1; weights as transformers' Qwen3MoeTopKRouter computes them). */
#ifndef SQ_EXPERTS_H
#define SQ_EXPERTS_H

#include <stdbool.h>
#include <stdint.h>

/* The experts of a run's tokens. A place is token · n_used + rank. */
typedef struct sq_routes {
    uint32_t *experts; /* [n_tokens, n_used], each token's own, the best first */
    float *weights;    /* [n_tokens, n_used] */
    uint32_t *order;   /* [n_tokens · n_used] all places, those of expert 0 first */
    uint32_t *first;   /* [n_experts + 1] where in `order` the places of an expert begin */
} sq_routes;

/* The n_used largest of `logits` [n_experts], the earlier of equal ones first, and their shares of the
 * softmax over all experts, or, where `normalised`, over these. Any logits, NaN too, give n_used different
 * experts. */
void sq_experts_choose(const float *logits, uint32_t n_experts, uint32_t n_used, bool normalised,
                       uint32_t *experts, float *weights);
/* Sorts the places by expert: fills `order` and `first`. */
void sq_experts_group(sq_routes *routes, uint32_t n_places, uint32_t n_experts);

#endif
