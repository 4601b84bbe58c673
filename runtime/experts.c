#include "experts.h"

#include <math.h>

static bool is_chosen(const uint32_t *experts, uint32_t n, uint32_t e) {
    for (uint32_t i = 0; i < n; i++)
        if (experts[i] == e)
            return true;
    return false;
}

void sq_experts_choose(const float *logits, uint32_t n_experts, uint32_t n_used, bool normalised,
                       uint32_t *experts, float *weights) {
    for (uint32_t i = 0; i < n_used; i++) {
        uint32_t best = n_experts;
        for (uint32_t e = 0; e < n_experts; e++)
            if ((best == n_experts || logits[e] > logits[best]) && !is_chosen(experts, i, e))
                best = e;
        experts[i] = best;
    }
    float sum = 0;
    for (uint32_t i = 0; i < n_used; i++) {
        weights[i] = expf(logits[experts[i]] - logits[experts[0]]);
        sum += weights[i];
    }
    if (!normalised) {
        sum = 0;
        for (uint32_t e = 0; e < n_experts; e++)
            sum += expf(logits[e] - logits[experts[0]]);
    }
    for (uint32_t i = 0; i < n_used; i++)
        weights[i] /= sum;
}

void sq_experts_group(sq_routes *routes, uint32_t n_places, uint32_t n_experts) {
    uint32_t *first = routes->first;
    for (uint32_t e = 0; e <= n_experts; e++)
        first[e] = 0;
    for (uint32_t p = 0; p < n_places; p++)
        first[routes->experts[p]]++;
    uint32_t end = 0;
    for (uint32_t e = 0; e <= n_experts; e++)
        first[e] = end += first[e];
    /* Each now is its expert's end, and comes down to its beginning. */
    for (uint32_t p = n_places; p-- > 0;)
        routes->order[--first[routes->experts[p]]] = p;
}
