/* Routing: the right experts with the right weights, whatever the logits, and every place once. */
#include "experts.h"

#include <stdlib.h>

#include "check.h"

enum { MAX_EXPERTS = 128, MAX_TOKENS = 256, MAX_USED = 8 };

static uint64_t seed = 99;

static float random_float(void) {
    return (float)(check_random(&seed) >> 40) * 0x1p-22f - 2;
}

/* Experts better than expert e: larger, or equal and earlier. */
static uint32_t rank_of(const float *logits, uint32_t n, uint32_t e) {
    uint32_t rank = 0;
    for (uint32_t i = 0; i < n; i++)
        rank += logits[i] > logits[e] || (logits[i] == logits[e] && i < e);
    return rank;
}

static void check_choice(uint32_t n_experts, uint32_t n_used, bool normalised, float spread) {
    float logits[MAX_EXPERTS] = {0}, weights[MAX_USED];
    uint32_t experts[MAX_USED];
    double sum = 0;
    for (uint32_t e = 0; e < n_experts; e++)
        logits[e] = spread * roundf(8 * random_float()) / 8; /* with equal ones among them */
    sq_experts_choose(logits, n_experts, n_used, normalised, experts, weights);
    for (uint32_t e = 0; e < n_experts; e++)
        if (!normalised || rank_of(logits, n_experts, e) < n_used)
            sum += exp((double)logits[e] - logits[experts[0]]);
    for (uint32_t i = 0; i < n_used; i++) {
        CHECK(experts[i] < n_experts);
        CHECK_EQ(rank_of(logits, n_experts, experts[i]), i);
        CHECK_NEAR(weights[i], exp((double)logits[experts[i]] - logits[experts[0]]) / sum, 1e-6);
    }
}

static void test_choose(void) {
    static const uint32_t sizes[][2] = {{1, 1}, {2, 1}, {5, 2}, {8, 8}, {60, 4}, {128, 8}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int round = 0; round < 40; round++)
            check_choice(sizes[i][0], sizes[i][1], round % 2, round < 20 ? 1 : 300);
}

static void test_choose_from_nonsense(void) {
    float logits[4] = {NAN, -INFINITY, NAN, INFINITY}, weights[3];
    uint32_t experts[3];
    sq_experts_choose(logits, 4, 3, true, experts, weights);
    for (int i = 0; i < 3; i++)
        CHECK(experts[i] < 4 && experts[i] != experts[(i + 1) % 3]);
}

static void test_group(void) {
    static uint32_t experts[MAX_TOKENS * MAX_USED], order[MAX_TOKENS * MAX_USED], first[MAX_EXPERTS + 1];
    sq_routes routes = {.experts = experts, .order = order, .first = first};
    for (uint32_t n = 1; n <= MAX_TOKENS * MAX_USED; n = 2 * n + 1) {
        bool seen[MAX_TOKENS * MAX_USED] = {false};
        for (uint32_t p = 0; p < n; p++)
            experts[p] = (uint32_t)(check_random(&seed) >> 33) % MAX_EXPERTS;
        sq_experts_group(&routes, n, MAX_EXPERTS);
        CHECK_EQ(first[0], 0);
        CHECK_EQ(first[MAX_EXPERTS], n);
        for (uint32_t e = 0; e < MAX_EXPERTS; e++) {
            for (uint32_t i = first[e]; i < first[e + 1]; i++) {
                CHECK(order[i] < n && !seen[order[i]] && experts[order[i]] == e);
                CHECK(i == first[e] || order[i] > order[i - 1]);
                seen[order[i]] = true;
            }
        }
    }
}

int main(void) {
    RUN(test_choose);
    RUN(test_choose_from_nonsense);
    RUN(test_group);
    return check_report();
}
