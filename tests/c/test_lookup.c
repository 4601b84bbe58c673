/* Guesses, and sessions that use them: the same logits in the same places as without. */
#include "lookup.h"

#include <stdlib.h>

#include "check.h"
#include "model.h"
#include "tiny_model.h"

static uint64_t seed = 0x9e3779b97f4a7c15u;

/* ---- guesses ----------------------------------------------------------------------------------- */

static uint32_t guess(const sq_lookup *lookup, const char *timeline, size_t n_max, char *found) {
    sq_token tokens[64], guessed[SQ_LOOKUP_TOKENS];
    size_t n_tokens = strlen(timeline);
    for (size_t i = 0; i < n_tokens; i++)
        tokens[i] = timeline[i];
    uint32_t n = sq_lookup_guess(lookup, tokens, n_tokens, n_max, guessed);
    for (uint32_t i = 0; i < n; i++)
        found[i] = (char)guessed[i];
    found[n] = '\0';
    return n;
}

static void test_guess(void) {
    static const struct {
        const char *timeline, *guess;
    } cases[] = {
        {"", ""},
        {"a", ""},
        {"abcdefgh", ""},
        {"abcda", ""},                   /* one token is no evidence */
        {"abcdab", "cda"},               /* no further than the timeline goes */
        {"abcdefghijklmabc", "defghij"}, /* as many as a run takes */
        {"xabcd yabef zab", "ef "},      /* the latest of equal matches */
        {"xabcd zabef xab", "cd zabe"},  /* the longest match */
        {"aaaaaa", "a"},                 /* a match may overlap itself */
        {"abababab", "a"},
    };
    char found[SQ_LOOKUP_TOKENS + 1];
    sq_lookup lookup;
    sq_lookup_init(&lookup);
    lookup.n_guess = SQ_LOOKUP_TOKENS;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        guess(&lookup, cases[i].timeline, 100, found);
        CHECK_STR(found, cases[i].guess);
    }
    CHECK_EQ(guess(&lookup, "abcdab", 2, found), 1);
    CHECK_EQ(guess(&lookup, "abcdab", 0, found), 0);
}

/* Right guesses make it bold, wrong ones careful again. */
static void test_learn(void) {
    const char *two = "abcdefghijab", *three = "abcdefghijabc"; /* tokens that are the same */
    char found[SQ_LOOKUP_TOKENS + 1];
    sq_lookup lookup;
    sq_lookup_init(&lookup);
    CHECK_EQ(guess(&lookup, two, 100, found), 1);
    sq_lookup_learn(&lookup, 1, 1);
    CHECK_EQ(guess(&lookup, two, 100, found), 3);
    sq_lookup_learn(&lookup, 3, 3);
    CHECK_EQ(guess(&lookup, two, 100, found), 7);
    sq_lookup_learn(&lookup, 7, 7);
    CHECK_EQ(guess(&lookup, two, 100, found), 7);
    sq_lookup_learn(&lookup, 7, 4);
    CHECK_EQ(guess(&lookup, two, 100, found), 3);
    sq_lookup_learn(&lookup, 3, 0);
    CHECK_EQ(guess(&lookup, two, 100, found), 0);
    CHECK_EQ(guess(&lookup, three, 100, found), 1);
    sq_lookup_learn(&lookup, 1, 1);
    CHECK_EQ(guess(&lookup, two, 100, found), 3);
    for (int i = 0; i < 100; i++)
        sq_lookup_learn(&lookup, 1, 0);
    CHECK_EQ(guess(&lookup, three, 100, found), 0);
    CHECK_EQ(guess(&lookup, "abcdefghijklmnopabcdefghijklmn", 100, found), 1);
}

/* ---- sessions ---------------------------------------------------------------------------------- */

enum { N_CTX = 48 };

typedef struct pair {
    sq_session *plain, *ahead;
} pair;

static void both_append(pair p, const sq_token *tokens, size_t n_tokens) {
    sq_error error;
    CHECK_OK(sq_session_append(p.plain, tokens, n_tokens, NULL, &error), &error);
    CHECK_OK(sq_session_append(p.ahead, tokens, n_tokens, NULL, &error), &error);
}

static void both_truncate(pair p, size_t n_tokens) {
    sq_session_truncate(p.plain, n_tokens);
    sq_session_truncate(p.ahead, n_tokens);
}

/* The same timeline, and logits that are the same to the last bit. */
static void check_same(pair p) {
    size_t n_plain, n_ahead;
    const sq_token *plain = sq_session_tokens(p.plain, &n_plain),
                   *ahead = sq_session_tokens(p.ahead, &n_ahead);
    const float *expected = sq_session_logits(p.plain), *found = sq_session_logits(p.ahead);
    CHECK_EQ(n_ahead, n_plain);
    CHECK(!memcmp(ahead, plain, n_plain * sizeof *plain));
    if (CHECK(!expected == !found) && expected)
        CHECK(!memcmp(found, expected, TINY_VOCAB * sizeof *found));
}

static double seconds_run(const sq_session *session) {
    size_t n;
    const sq_time *times = sq_session_times(session, &n);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += times[i].seconds;
    return sum;
}

/* Guesses are made often, and are right or wrong. Those that are right cost no run. */
static void random_walk(pair p) {
    int n_free = 0;
    for (int step = 0; step < 200; step++) {
        sq_token tokens[3];
        size_t n_tokens;
        sq_session_tokens(p.plain, &n_tokens);
        for (size_t i = 0; i < 3; i++) /* 0, 1, 2, 3, 4, 0, …, now and then something else */
            tokens[i] = (sq_token)(check_random(&seed) >> 40) % 8 ? (sq_token)((n_tokens + i) % 5) : 7;
        double before = seconds_run(p.ahead);
        if (n_tokens + 3 > N_CTX || step % 50 == 49)
            both_truncate(p, n_tokens / 2);
        else if (step % 17 == 16)
            both_append(p, tokens, 3);
        else
            both_append(p, tokens, 1);
        size_t n_after;
        sq_session_tokens(p.plain, &n_after);
        n_free += n_after > n_tokens && seconds_run(p.ahead) == before;
        check_same(p);
    }
    CHECK(n_free >= 10);
}

static void check_family(tiny_family family, const char *kv) {
    size_t n_bytes;
    void *file = tiny_file(family, &n_bytes);
    sq_model *model;
    sq_error error;
    sq_session_options options = {.n_ctx = N_CTX, .n_threads = 2, .kv = kv, .profile = true};
    pair p;
    if (!CHECK_OK(sq_model_open_memory(file, n_bytes, NULL, &model, &error), &error) ||
        !CHECK_OK(sq_session_create(model, &options, &p.plain, &error), &error) ||
        !CHECK_OK(sq_session_create(model, &options, &p.ahead, &error), &error))
        exit(check_report());
    sq_session_set_lookup(p.ahead, true);
    random_walk(p);
    sq_session_free(p.plain);
    sq_session_free(p.ahead);
    sq_model_close(model);
    free(file);
}

static void test_sessions_agree(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        check_family(family, "f16");
        check_family(family, "q8");
    }
}

int main(void) {
    RUN(test_guess);
    RUN(test_learn);
    RUN(test_sessions_agree);
    return check_report();
}
