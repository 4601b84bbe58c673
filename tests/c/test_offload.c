/* Layers on an accelerator, with the plugin of fake_device.c: whoever runs them, the tokens and logits are
 * the same; what cannot be is a sentence, or with "auto" the CPU. */
#include <dlfcn.h>
#include <stdlib.h>

#include "fake_device.h"
#include "offload.h"
#include "tiny_model.h"

enum { N_TOKENS = 40, N_CTX = 48, RUN_TOKENS = 8, N_ANSWER = 12 };

static fake_device *fake;

/* A plugin that can do everything, with memory for all. */
static void fake_reset(void) {
    CHECK_EQ(fake->n_devices, 0);
    CHECK_EQ(fake->n_sessions, 0);
    *fake = (fake_device){.version = SQ_DEVICE_VERSION, .run_tokens = RUN_TOKENS, .n_bytes_free = 1u << 30};
}

typedef struct fixture {
    void *file; /* 64-byte aligned */
    size_t n_bytes;
    sq_model *model;
    sq_session *session;
    sq_error error;
} fixture;

static void file_create(fixture *f, tiny_family family) {
    tiny_model tiny;
    gguf_build bytes;
    tiny_create(&tiny, family);
    tiny_write(&tiny, &bytes);
    *f = (fixture){.file = aligned_alloc(64, (bytes.n_bytes + 63) / 64 * 64), .n_bytes = bytes.n_bytes};
    memcpy(f->file, bytes.data, bytes.n_bytes);
    build_free(&bytes);
    tiny_free(&tiny);
}

static sq_status model_open(fixture *f, const char *device, uint32_t gpu_layers) {
    sq_model_options options = {.device = device, .gpu_layers = gpu_layers};
    return sq_model_open_memory(f->file, f->n_bytes, &options, &f->model, &f->error);
}

static void fixture_open(fixture *f, tiny_family family, uint32_t gpu_layers, const char *kv) {
    const sq_session_options options = {.n_ctx = N_CTX, .n_threads = 2, .kv = kv, .profile = true};
    file_create(f, family);
    if (!CHECK_OK(model_open(f, gpu_layers ? "cuda" : "cpu", gpu_layers), &f->error) ||
        !CHECK_OK(sq_session_create(f->model, &options, &f->session, &f->error), &f->error))
        exit(check_report());
}

static void fixture_close(fixture *f) {
    sq_session_free(f->session);
    sq_model_close(f->model);
    free(f->file);
}

static void tokens_fill(sq_token *tokens) {
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (sq_token)((unsigned)i * 7919u % TINY_VOCAB);
}

/* ---- the same results ------------------------------------------------------------------------- */

/* What a session makes of a prompt: logits of its tokens, and the answer that `temperature` draws. */
typedef struct results {
    float logits[N_TOKENS * TINY_VOCAB];
    sq_token answer[N_ANSWER];
} results;

static void answer_draw(fixture *f, float temperature, bool lookup, sq_token *answer) {
    sq_token prompt[N_TOKENS];
    sq_sampler_options options;
    sq_sampler *sampler;
    tokens_fill(prompt);
    sq_sampler_defaults(&options);
    options.temperature = temperature;
    CHECK_OK(sq_sampler_create(f->model, &options, &sampler, &f->error), &f->error);
    sq_session_set_lookup(f->session, lookup);
    CHECK_OK(sq_session_sync(f->session, prompt, 20, NULL, &f->error), &f->error);
    for (int i = 0; i < N_ANSWER; i++) {
        CHECK_OK(sq_session_sample(f->session, sampler, &answer[i], &f->error), &f->error);
        CHECK_OK(sq_session_append(f->session, &answer[i], 1, NULL, &f->error), &f->error);
    }
    sq_sampler_free(sampler);
}

/* The prompt in appends of n_append tokens, with logits or without. */
static void logits_compute(fixture *f, size_t n_append, bool with, float *logits) {
    sq_token prompt[N_TOKENS];
    tokens_fill(prompt);
    sq_session_truncate(f->session, 0);
    for (size_t at = 0; at < N_TOKENS; at += n_append) {
        float *rows = logits + at * TINY_VOCAB;
        CHECK_OK(sq_session_append(f->session, prompt + at, n_append, with ? rows : NULL, &f->error),
                 &f->error);
        const float *last = sq_session_logits(f->session), *row = rows + (n_append - 1) * TINY_VOCAB;
        if (!CHECK(last != NULL))
            return;
        if (with)
            CHECK(!memcmp(last, row, TINY_VOCAB * sizeof *last));
        else
            memcpy(rows + (n_append - 1) * TINY_VOCAB, last, TINY_VOCAB * sizeof *last);
    }
}

static void results_compute(fixture *f, results *r, bool with) {
    memset(r, 0, sizeof *r);
    logits_compute(f, RUN_TOKENS, with, r->logits);
}

static void check_family(tiny_family family, const char *kv) {
    static results expected, found;
    fixture f;
    sq_token greedy[N_ANSWER], drawn[N_ANSWER];
    fixture_open(&f, family, 0, kv);
    sq_model_info info;
    sq_model_get_info(f.model, &info);
    CHECK_STR(info.device, "");
    CHECK_STR(info.device_absent, "");
    CHECK_EQ(info.gpu_layers, 0);
    answer_draw(&f, 0, false, greedy);
    answer_draw(&f, 1, false, drawn);
    for (uint32_t n = 1; n <= TINY_LAYERS; n++) {
        fixture g;
        fixture_open(&g, family, n, kv);
        sq_model_get_info(g.model, &info);
        CHECK_STR(info.device, "Fake 1");
        CHECK_EQ(info.gpu_layers, n);
        for (int with = 0; with < 2; with++) {
            results_compute(&f, &expected, with);
            results_compute(&g, &found, with);
            CHECK_SAY(!memcmp(&found, &expected, sizeof found), "%s, %u layers", info.architecture, n);
        }
        CHECK_EQ(fake->got_x, n < TINY_LAYERS);
        for (int lookup = 0; lookup < 2; lookup++) {
            answer_draw(&g, 0, lookup, found.answer);
            CHECK(!memcmp(found.answer, greedy, sizeof greedy));
            answer_draw(&g, 1, lookup, found.answer);
            CHECK(!memcmp(found.answer, drawn, sizeof drawn));
        }
        fixture_close(&g);
    }
    fixture_close(&f);
}

static void test_same_results_wherever_layers_run(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        fake_reset();
        check_family(family, "f16");
        CHECK_EQ(fake->n_tokens_most, RUN_TOKENS);
    }
    fake_reset();
    check_family(TINY_LLAMA, "q8");
}

/* Greedy answers leave the logits where they are, others fetch one row a token. */
static void test_logits_stay_until_they_are_asked_for(void) {
    fixture f;
    sq_token answer[N_ANSWER];
    fake_reset();
    fixture_open(&f, TINY_LLAMA, TINY_LAYERS, NULL);
    answer_draw(&f, 0, true, answer);
    CHECK_EQ(fake->n_reads, 0);
    const float *logits = sq_session_logits(f.session);
    CHECK(logits != NULL && logits == sq_session_logits(f.session));
    CHECK_EQ(fake->n_reads, 1);
    answer_draw(&f, 1, false, answer);
    CHECK_EQ(fake->n_reads, 1 + N_ANSWER);

    sq_sampler_options options;
    sq_sampler *sampler;
    sq_sampler_defaults(&options);
    options.temperature = 0;
    options.biases = (const sq_logit_bias[]){{answer[0], -INFINITY}};
    options.n_biases = 1;
    CHECK_OK(sq_sampler_create(f.model, &options, &sampler, &f.error), &f.error);
    CHECK_OK(sq_session_sample(f.session, sampler, answer, &f.error), &f.error);
    CHECK_EQ(fake->n_reads, 2 + N_ANSWER);
    sq_session_truncate(f.session, 1);
    CHECK_FAILS(sq_session_sample(f.session, sampler, answer, &f.error), &f.error, SQ_ERROR_ARGUMENT,
                "append");
    sq_sampler_free(sampler);
    fixture_close(&f);
}

/* ---- what cannot be ---------------------------------------------------------------------------- */

/* Fails with "cuda"; with "auto" it is the reason to run on the CPU. */
static void check_absent(uint32_t gpu_layers, sq_status status, const char *part) {
    fixture f;
    sq_model_info info;
    file_create(&f, TINY_LLAMA);
    CHECK_FAILS(model_open(&f, "cuda", gpu_layers), &f.error, status, part);
    CHECK(f.model == NULL);
    if (CHECK_OK(model_open(&f, gpu_layers ? "auto" : NULL, gpu_layers), &f.error)) {
        sq_model_get_info(f.model, &info);
        CHECK_STR(info.device, "");
        CHECK_SAY(strstr(info.device_absent, part), "\"%s\" lacks \"%s\"", info.device_absent, part);
        CHECK_EQ(info.gpu_layers, 0);
        CHECK_OK(sq_session_create(f.model, NULL, &f.session, &f.error), &f.error);
    }
    fixture_close(&f);
}

static void test_devices_that_are_not_to_be_had(void) {
    fake_reset();
    fake->version = SQ_DEVICE_VERSION + 1;
    check_absent(0, SQ_ERROR_UNSUPPORTED, "same sources");
    fake_reset();
    fake->no_device = "no card is in this machine";
    check_absent(0, SQ_ERROR_UNSUPPORTED, fake->no_device);
    fake_reset();
    fake->cannot_run = "no kernels for this";
    check_absent(0, SQ_ERROR_UNSUPPORTED, fake->cannot_run);
    fake_reset();
    fake->n_bytes_free = 100;
    check_absent(0, SQ_ERROR_UNSUPPORTED, "1 of 2 layers");
    check_absent(2, SQ_ERROR_UNSUPPORTED, "2 of 2 layers");
    fake_reset();
    fake->cannot_open = "the upload ran out of memory";
    check_absent(0, SQ_ERROR_MEMORY, fake->cannot_open);
    fake_reset();
}

static void test_wrong_options(void) {
    fixture f;
    fake_reset();
    file_create(&f, TINY_LLAMA);
    CHECK_FAILS(model_open(&f, "gpu", 0), &f.error, SQ_ERROR_ARGUMENT, "\"gpu\"");
    CHECK_FAILS(model_open(&f, "auto", TINY_LAYERS + 1), &f.error, SQ_ERROR_ARGUMENT, "at most 2");
    CHECK(f.model == NULL);
    CHECK_FAILS(sq_model_open_memory(f.file, f.n_bytes, &(sq_model_options){.kv = "q4"}, &f.model, &f.error),
                &f.error, SQ_ERROR_ARGUMENT, "\"q4\"");
    free(f.file);
}

/* As many layers as fit beside a session, and as the plugin can run. */
static void test_layers_that_fit(void) {
    const uint64_t session = (uint64_t)TINY_CTX * FAKE_TOKEN_BYTES;
    const struct {
        uint64_t n_bytes;
        uint32_t first_able, n_layers;
        uint32_t n_ctx;
        const char *kv;
    } cases[] = {
        {session + 2 * FAKE_LAYER_BYTES, 0, 2, 0, NULL},
        {session + 2 * FAKE_LAYER_BYTES - 1, 0, 1, 0, NULL},
        {session + FAKE_LAYER_BYTES, 0, 1, 0, NULL},
        {session + 2 * FAKE_LAYER_BYTES, 1, 1, 0, NULL},
        {session / 2 + 2 * FAKE_LAYER_BYTES, 0, 2, TINY_CTX / 2, "q8"},
        {session + 2 * FAKE_LAYER_BYTES, 0, 2, TINY_CTX / 2, "f32"},
        {2 * session + 2 * FAKE_LAYER_BYTES - 1, 0, 1, 0, "f32"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture f;
        sq_model_info info;
        fake_reset();
        fake->n_bytes_free = cases[i].n_bytes;
        fake->first_able = cases[i].first_able;
        file_create(&f, TINY_LLAMA);
        sq_model_options options = {.n_ctx = cases[i].n_ctx, .kv = cases[i].kv};
        CHECK_OK(sq_model_open_memory(f.file, f.n_bytes, &options, &f.model, &f.error), &f.error);
        sq_model_get_info(f.model, &info);
        CHECK_EQ(info.gpu_layers, cases[i].n_layers);
        fixture_close(&f);
    }
}

/* ---- what goes wrong on the way --------------------------------------------------------------- */

static void test_sessions_that_do_not_fit(void) {
    fixture f;
    fake_reset();
    file_create(&f, TINY_LLAMA);
    CHECK_OK(model_open(&f, "cuda", 1), &f.error);
    fake->cannot_create = "no room for the cache";
    CHECK_FAILS(sq_session_create(f.model, NULL, &f.session, &f.error), &f.error, SQ_ERROR_MEMORY,
                fake->cannot_create);
    CHECK(f.session == NULL);
    fixture_close(&f);
}

/* The second piece fails: the timeline is what came before, and goes on from there. */
static void test_failing_runs(void) {
    for (uint32_t n = 1; n <= TINY_LAYERS; n++) {
        static float expected[N_TOKENS * TINY_VOCAB], found[N_TOKENS * TINY_VOCAB];
        sq_token tokens[N_TOKENS];
        fixture f;
        size_t n_tokens;
        tokens_fill(tokens);
        fake_reset();
        fixture_open(&f, TINY_LLAMA, n, NULL);
        logits_compute(&f, N_TOKENS, true, expected);
        sq_session_truncate(f.session, 0);
        fake->failing_run = 2;
        CHECK_FAILS(sq_session_append(f.session, tokens, N_TOKENS, NULL, &f.error), &f.error,
                    SQ_ERROR_UNSUPPORTED, "fell off");
        sq_session_tokens(f.session, &n_tokens);
        CHECK_EQ(n_tokens, RUN_TOKENS);
        CHECK(sq_session_logits(f.session) == NULL);
        CHECK_OK(sq_session_append(f.session, tokens + RUN_TOKENS, N_TOKENS - RUN_TOKENS,
                                   found + RUN_TOKENS * TINY_VOCAB, &f.error),
                 &f.error);
        CHECK(!memcmp(found + RUN_TOKENS * TINY_VOCAB, expected + RUN_TOKENS * TINY_VOCAB,
                      (N_TOKENS - RUN_TOKENS) * TINY_VOCAB * sizeof *found));
        CHECK_OK(sq_session_append(f.session, tokens, 1, NULL, &f.error), &f.error);
        fake->no_device = "the card went away";
        CHECK(sq_session_logits(f.session) == NULL);
        fixture_close(&f);
    }
}

static void cancel_session(void *session) {
    sq_session_cancel(session);
}

/* Between two pieces. */
static void test_cancel(void) {
    sq_token tokens[N_TOKENS];
    fixture f;
    size_t n_tokens;
    tokens_fill(tokens);
    fake_reset();
    fixture_open(&f, TINY_LLAMA, TINY_LAYERS, NULL);
    fake->on_run = cancel_session;
    fake->context = f.session;
    CHECK_FAILS(sq_session_append(f.session, tokens, N_TOKENS, NULL, &f.error), &f.error, SQ_ERROR_CANCELLED,
                "after 8 tokens");
    sq_session_tokens(f.session, &n_tokens);
    CHECK_EQ(n_tokens, RUN_TOKENS);
    fake->on_run = NULL;
    CHECK_OK(sq_session_append(f.session, tokens, RUN_TOKENS, NULL, &f.error), &f.error);
    fixture_close(&f);
}

/* A timeline that grows past the short rotations runs again, on both sides. */
static void test_long_rope_and_truncation(void) {
    for (uint32_t n = 1; n <= TINY_LAYERS; n++) {
        sq_token tokens[N_TOKENS];
        fixture f, g;
        tokens_fill(tokens);
        fake_reset();
        fixture_open(&f, TINY_QWEN3, 0, NULL);
        fixture_open(&g, TINY_QWEN3, n, NULL);
        for (size_t length = 1; length < N_TOKENS / 2; length = length % 3 ? length + 4 : length - 2) {
            CHECK_OK(sq_session_sync(f.session, tokens, length, NULL, &f.error), &f.error);
            CHECK_OK(sq_session_sync(g.session, tokens, length, NULL, &g.error), &g.error);
            CHECK_SAY(!memcmp(sq_session_logits(g.session), sq_session_logits(f.session),
                              TINY_VOCAB * sizeof(float)),
                      "%zu tokens, %u layers", length, n);
        }
        fixture_close(&f);
        fixture_close(&g);
    }
}

static void test_times_have_a_row_for_the_device(void) {
    fixture f;
    sq_token answer[N_ANSWER];
    size_t n;
    double device = 0, others = 0;
    fake_reset();
    fixture_open(&f, TINY_LLAMA, TINY_LAYERS, NULL);
    answer_draw(&f, 0, false, answer);
    const sq_time *times = sq_session_times(f.session, &n);
    for (size_t i = 0; i < n; i++)
        *(strcmp(times[i].kind, "GPU") ? &others : &device) += times[i].seconds;
    CHECK(device > 0 && others == 0);
    fixture_close(&f);
}

int main(void) {
    void *plugin = dlopen("libsq_cuda.so", RTLD_NOW | RTLD_LOCAL);
    fake = plugin ? dlsym(plugin, "fake_device_state") : NULL;
    if (!CHECK_SAY(fake != NULL, "the plugin of this test: %s", dlerror()))
        return check_report();
    RUN(test_same_results_wherever_layers_run);
    RUN(test_logits_stay_until_they_are_asked_for);
    RUN(test_devices_that_are_not_to_be_had);
    RUN(test_wrong_options);
    RUN(test_layers_that_fit);
    RUN(test_sessions_that_do_not_fit);
    RUN(test_failing_runs);
    RUN(test_cancel);
    RUN(test_long_rope_and_truncation);
    RUN(test_times_have_a_row_for_the_device);
    return check_report();
}
