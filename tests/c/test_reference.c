/* sq-eval's references: what is written is read back, its rounding is harmless, damage is refused; and the
 * scores computed from them. */
#include "eval/reference.h"
#include "eval/scores.h"

#include "check.h"

#include <stdlib.h>
#include <unistd.h>

enum { N_VOCAB = 300, N_WINDOW = 9, N_FIRST = 4, N_WINDOWS = 3, HEADER_BYTES = 28 };

static const reference_shape shape = {N_VOCAB, N_WINDOW, N_FIRST, N_WINDOWS};
static const size_t window_bytes = N_WINDOW * 4 + (N_WINDOW - 1 - N_FIRST) * N_VOCAB * 2;
static char path[] = "/tmp/sq-test-reference-XXXXXX";
static uint64_t seed = 7;

/* Logits over `size` nats on both sides of zero. */
static void random_logits(float *logits, float size) {
    for (int i = 0; i < N_VOCAB; i++)
        logits[i] = check_random_float(&seed, size);
}

/* Writes the test's file; false, with the error, where that fails. */
static bool write_file(sq_error *error) {
    reference *r;
    sq_token tokens[N_WINDOW];
    float logits[N_VOCAB];
    if (reference_create(path, &shape, &r, error))
        return false;
    seed = 7;
    bool written = true;
    for (int w = 0; w < N_WINDOWS; w++) {
        for (int i = 0; i < N_WINDOW; i++)
            tokens[i] = (w * N_WINDOW + 31 * i) % N_VOCAB;
        written = written && !reference_write_tokens(r, tokens, error);
        for (size_t i = 0; i < reference_n_scored(&shape); i++) {
            random_logits(logits, 12);
            written = written && !reference_write_logits(r, logits, error);
        }
    }
    written = written && !reference_commit(r, error);
    reference_close(r);
    return written;
}

/* Reads all of the file; the status of what failed first. */
static sq_status read_file(sq_error *error) {
    reference *r;
    sq_status status = reference_open(path, &r, error);
    if (status)
        return status;
    const reference_shape *s = reference_get_shape(r);
    sq_token *tokens = malloc(s->n_window * sizeof *tokens);
    uint16_t *row = malloc(s->n_vocab * sizeof *row);
    for (uint32_t w = 0; !status && w < s->n_windows; w++) {
        status = reference_read_tokens(r, tokens, error);
        for (size_t i = 0; !status && i < reference_n_scored(s); i++)
            status = reference_read_row(r, row, error);
    }
    free(tokens);
    free(row);
    reference_close(r);
    return status;
}

static void overwrite(long offset, const void *bytes, size_t n) {
    FILE *file = fopen(path, "r+b");
    if (!CHECK(file && fseek(file, offset, SEEK_SET) == 0 && fwrite(bytes, n, 1, file) == 1))
        abort();
    fclose(file);
}

static void test_round_trip(void) {
    sq_error error;
    reference *r;
    sq_token tokens[N_WINDOW];
    float logits[N_VOCAB];
    uint16_t row[N_VOCAB];
    unlink(path);
    if (!CHECK_SAY(write_file(&error), "%s", error.message) ||
        !CHECK_OK(reference_open(path, &r, &error), &error))
        return;
    CHECK(memcmp(reference_get_shape(r), &shape, sizeof shape) == 0);
    seed = 7;
    for (int w = 0; w < N_WINDOWS; w++) {
        CHECK_OK(reference_read_tokens(r, tokens, &error), &error);
        CHECK_EQ(tokens[1], (w * N_WINDOW + 31) % N_VOCAB);
        for (size_t i = 0; i < reference_n_scored(&shape); i++) {
            random_logits(logits, 12);
            CHECK_OK(reference_read_row(r, row, &error), &error);
            int top = 0;
            for (int j = 1; j < N_VOCAB; j++)
                top = logits[j] > logits[top] ? j : top;
            CHECK_EQ(row[top], 0);
            for (int j = 0; j < N_VOCAB; j++)
                CHECK_NEAR(row[j] / (double)REFERENCE_UNITS, logits[top] - logits[j],
                           j == top ? 0 : 0.501 / REFERENCE_UNITS);
        }
    }
    CHECK_FAILS(reference_read_tokens(r, tokens, &error), &error, SQ_ERROR_FORMAT, "cut short");
    reference_close(r);
}

static void test_extreme_logits(void) {
    static const reference_shape one = {4, 2, 0, 1};
    const float infinity = INFINITY;
    const float rows[][4] = {{1, 1, 1, -infinity}, {-3e38f, 3e38f, 0, NAN}};
    const uint16_t expected[][4] = {{0, 1, 1, 65535}, {65535, 0, 65535, 65535}};
    sq_error error;
    reference *r;
    for (int i = 0; i < 2; i++) {
        uint16_t row[4];
        sq_token tokens[2] = {0, 3};
        CHECK_OK(reference_create(path, &one, &r, &error), &error);
        CHECK_OK(reference_write_tokens(r, tokens, &error), &error);
        CHECK_OK(reference_write_logits(r, rows[i], &error), &error);
        CHECK_OK(reference_commit(r, &error), &error);
        reference_close(r);
        CHECK_OK(reference_open(path, &r, &error), &error);
        CHECK_OK(reference_read_tokens(r, tokens, &error), &error);
        CHECK_OK(reference_read_row(r, row, &error), &error);
        CHECK(memcmp(row, expected[i], sizeof row) == 0);
        reference_close(r);
    }
    CHECK_OK(reference_create(path, &one, &r, &error), &error);
    const float broken[] = {NAN, NAN, NAN, NAN}, endless[] = {0, infinity, 0, 0};
    CHECK_FAILS(reference_write_logits(r, broken, &error), &error, SQ_ERROR_ARGUMENT, "finite");
    CHECK_FAILS(reference_write_logits(r, endless, &error), &error, SQ_ERROR_ARGUMENT, "finite");
    reference_close(r);
}

/* Against KL divergences in double precision from the logits themselves. */
static void test_rounding_is_harmless(void) {
    sq_error error;
    reference *r;
    const reference_shape one = {N_VOCAB, 65, 0, 1};
    float p[64][N_VOCAB], q[N_VOCAB];
    sq_token tokens[65] = {0};
    CHECK_OK(reference_create(path, &one, &r, &error), &error);
    CHECK_OK(reference_write_tokens(r, tokens, &error), &error);
    for (int i = 0; i < 64; i++) {
        random_logits(p[i], 10);
        CHECK_OK(reference_write_logits(r, p[i], &error), &error);
    }
    CHECK_OK(reference_commit(r, &error), &error);
    reference_close(r);
    CHECK_OK(reference_open(path, &r, &error), &error);
    CHECK_OK(reference_read_tokens(r, tokens, &error), &error);
    scores s = {0};
    double sum = 0, nats = 0;
    size_t n_same = 0;
    for (int i = 0; i < 64; i++) {
        uint16_t row[N_VOCAB];
        sq_token next = i % N_VOCAB, top_p = 0, top_q = 0;
        double kl = 0;
        for (int j = 0; j < N_VOCAB; j++) {
            q[j] = p[i][j] + check_random_float(&seed, 0.5f);
            top_p = p[i][j] > p[i][top_p] ? j : top_p;
            top_q = q[j] > q[top_q] ? j : top_q;
        }
        for (int j = 0; j < N_VOCAB; j++) {
            double log_p = sq_log_probability(p[i], N_VOCAB, j);
            kl += exp(log_p) * (log_p - sq_log_probability(q, N_VOCAB, j));
        }
        CHECK_OK(reference_read_row(r, row, &error), &error);
        scores_add(&s, q, row, N_VOCAB, next);
        CHECK_NEAR((double)s.divergences[i], kl, 1e-4);
        sum += kl;
        nats -= sq_log_probability(p[i], N_VOCAB, next);
        n_same += top_p == top_q;
    }
    reference_close(r);
    CHECK_NEAR(moments_mean(&s.divergence), sum / 64, 1e-5);
    CHECK_NEAR(moments_mean(&s.reference_nats), nats / 64, 1e-4);
    CHECK_NEAR(moments_mean(&s.top), (double)n_same / 64, 1e-9);
    CHECK(n_same > 0 && n_same < 64);
    scores_free(&s);
}

static void test_statistics(void) {
    scores s = {0};
    const uint16_t even[] = {0, 1}, sure[] = {0, 65535};
    const float logits[] = {0, 0};
    for (int i = 0; i < 4; i++)
        scores_add(&s, logits, i < 3 ? sure : even, 2, 0);
    double mean = 0.75 * log(2), error = log(2) * sqrt(0.75 * 0.25 / 3);
    CHECK_NEAR(moments_mean(&s.divergence), mean, 1e-6);
    CHECK_NEAR(moments_standard_error(&s.divergence), error, 1e-6);
    CHECK_NEAR(scores_quantile(&s, 0), 0, 1e-6);
    CHECK_NEAR(scores_quantile(&s, 1.0 / 6), log(2) / 2, 1e-6);
    CHECK_NEAR(scores_quantile(&s, 1), log(2), 1e-6);
    CHECK_NEAR(scores_perplexity(&s.nats), 2, 1e-9);
    scores_free(&s);
}

static void test_damage(void) {
    const struct {
        long offset;
        uint32_t value;
        const char *part;
    } damages[] = {
        {0, 0, "no reference"},
        {8, 2, "version 2"},
        {12, N_VOCAB + 1, "damaged"},
        {12, 0, "damaged"},
        {12, UINT32_MAX, "damaged"},
        {16, UINT32_MAX, "damaged"},
        {16, 1, "damaged"},
        {20, N_WINDOW - 1, "damaged"},
        {20, UINT32_MAX, "damaged"},
        {24, 0, "damaged"},
        {24, UINT32_MAX, "damaged"},
        {HEADER_BYTES, N_VOCAB, "token 300"},
        {HEADER_BYTES + 4, UINT32_MAX, "token -1"},
        {HEADER_BYTES + N_WINDOW * 4, 0, "tokens on top"},
    };
    sq_error error;
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        unlink(path);
        CHECK_SAY(write_file(&error), "%s", error.message);
        overwrite(damages[i].offset, &damages[i].value, sizeof damages[i].value);
        CHECK(read_file(&error) != SQ_OK);
        CHECK_SAY(strstr(error.message, damages[i].part) && strstr(error.message, path), "damage %zu: %s", i,
                  error.message);
    }
    for (long n_bytes = 0; n_bytes < (long)(HEADER_BYTES + N_WINDOWS * window_bytes); n_bytes += 17) {
        unlink(path);
        CHECK_SAY(write_file(&error), "%s", error.message);
        CHECK_EQ(truncate(path, n_bytes), 0);
        CHECK_EQ(read_file(&error), SQ_ERROR_FORMAT);
    }
}

static void test_files_that_stay(void) {
    sq_error error;
    reference *r;
    char partial[sizeof path + 8];
    snprintf(partial, sizeof partial, "%s.partial", path);
    unlink(path);
    CHECK_OK(reference_create(path, &shape, &r, &error), &error);
    CHECK_STR(reference_partial(r), partial);
    CHECK_EQ(access(partial, F_OK), 0);
    CHECK_FAILS(reference_commit(r, &error), &error, SQ_ERROR_ARGUMENT, "28 bytes were written");
    reference_close(r);
    CHECK_SAY(access(partial, F_OK) != 0 && access(path, F_OK) != 0, "an unfinished file is removed");
    FILE *file = fopen(path, "wb");
    CHECK(file && fputs("something else", file) >= 0);
    fclose(file);
    CHECK_FAILS(reference_create(path, &shape, &r, &error), &error, SQ_ERROR_ARGUMENT, "exists");
    CHECK(!reference_recognize(path) && r == NULL);
    CHECK_FAILS(reference_open("/nonexistent", &r, &error), &error, SQ_ERROR_IO, "/nonexistent");
    const reference_shape impossible = {N_VOCAB, 2, 1, 1};
    unlink(path);
    CHECK_FAILS(reference_create(path, &impossible, &r, &error), &error, SQ_ERROR_ARGUMENT, "shape");
}

int main(void) {
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    unlink(path);
    RUN(test_round_trip);
    RUN(test_extreme_logits);
    RUN(test_rounding_is_harmless);
    RUN(test_statistics);
    RUN(test_damage);
    RUN(test_files_that_stay);
    unlink(path);
    return check_report();
}
