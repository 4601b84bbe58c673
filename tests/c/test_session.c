/* Sessions: a timeline computes the same however it is cut, kept, truncated, cancelled or shared. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "check.h"
#include "model.h"
#include "tiny_model.h"

enum { N_TOKENS = 12, N_CTX = 32, N_SESSIONS = 4 };

static const sq_token story[N_TOKENS] = {1, 17, 250, 3, 3, 99, 120, 41, 299, 0, 5, 77};

typedef struct fixture {
    void *file; /* 64-byte aligned */
    sq_model *model;
    sq_error error;
} fixture;

static void fixture_open(fixture *f, tiny_family family, const char *cpu) {
    tiny_model tiny;
    gguf_build bytes;
    tiny_create(&tiny, family);
    tiny_write(&tiny, &bytes);
    f->file = aligned_alloc(64, (bytes.n_bytes + 63) / 64 * 64);
    memcpy(f->file, bytes.data, bytes.n_bytes);
    sq_model_options options = {.cpu = cpu};
    if (!CHECK_OK(sq_model_open_memory(f->file, bytes.n_bytes, &options, &f->model, &f->error), &f->error))
        exit(check_report());
    build_free(&bytes);
    tiny_free(&tiny);
}

static void fixture_close(fixture *f) {
    sq_model_close(f->model);
    free(f->file);
}

static sq_session *session_open(const fixture *f, uint32_t n_threads, const char *kv) {
    sq_session_options options = {.n_ctx = N_CTX, .n_threads = n_threads, .kv = kv};
    sq_session *session;
    sq_error error;
    CHECK_OK(sq_session_create(f->model, &options, &session, &error), &error);
    return session;
}

/* Logits [N_TOKENS, TINY_VOCAB] of the story in one piece. */
static void story_logits(const fixture *f, uint32_t n_threads, const char *kv, float *logits) {
    sq_session *session = session_open(f, n_threads, kv);
    sq_error error;
    CHECK_OK(sq_session_append(session, story, N_TOKENS, logits, &error), &error);
    sq_session_free(session);
}

static bool near_all(const float *a, const float *b, size_t n, float tolerance) {
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= tolerance * (1 + fabsf(b[i]))))
            return false;
    return true;
}

static void check_instruction_sets(tiny_family family) {
    static float expected[N_TOKENS * TINY_VOCAB], found[N_TOKENS * TINY_VOCAB];
    fixture f;
    fixture_open(&f, family, "scalar");
    story_logits(&f, 1, "f32", expected);
    fixture_close(&f);
    const char *cpus[] = {"avx2", "avx512"};
    for (size_t i = 0; i < 2; i++) {
        const sq_kernels *kernels;
        if (sq_kernels_choose(cpus[i], &kernels, NULL))
            continue; /* not on this machine */
        fixture_open(&f, family, cpus[i]);
        story_logits(&f, 2, "f32", found);
        CHECK(near_all(found, expected, N_TOKENS * TINY_VOCAB, 1e-4f));
        fixture_close(&f);
    }
}

static void test_instruction_sets_agree(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++)
        check_instruction_sets(family);
}

/* The last token's logits do not depend on the pieces, though the timeline may pass from one rotation to
 * another between them. */
static void check_pieces(tiny_family family, const char *kv, float tolerance) {
    static float expected[N_TOKENS * TINY_VOCAB];
    const size_t pieces[][3] = {{12, 0, 0}, {1, 10, 1}, {5, 5, 2}};
    fixture f;
    fixture_open(&f, family, NULL);
    story_logits(&f, 1, kv, expected);
    for (size_t i = 0; i < 3; i++) {
        sq_session *session = session_open(&f, 2, kv);
        size_t at = 0;
        for (size_t p = 0; p < 3; at += pieces[i][p++])
            CHECK_OK(sq_session_append(session, story + at, pieces[i][p], NULL, &f.error), &f.error);
        CHECK(near_all(sq_session_logits(session), expected + (N_TOKENS - 1) * TINY_VOCAB, TINY_VOCAB,
                       tolerance));
        sq_session_free(session);
    }
    fixture_close(&f);
}

static void test_pieces_agree(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        check_pieces(family, "f32", 1e-4f);
        check_pieces(family, "f16", 1e-4f);
        check_pieces(family, "q8", 2e-2f); /* what is rounded up in one may be rounded down in another */
    }
}

/* Every run of few tokens leaves the bits that its tokens leave one by one: each length, so that its tiles of
 * tokens are of all sizes. */
static void test_few_tokens_agree(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        fixture f;
        fixture_open(&f, family, NULL);
        for (size_t n = 2; n <= SQ_FEW_TOKENS; n++) {
            sq_token tokens[SQ_FEW_TOKENS];
            sq_session *whole = session_open(&f, 2, "f16"), *single = session_open(&f, 2, "f16");
            for (size_t i = 0; i < n; i++) {
                tokens[i] = story[i % N_TOKENS];
                CHECK_OK(sq_session_append(single, &tokens[i], 1, NULL, &f.error), &f.error);
            }
            CHECK_OK(sq_session_append(whole, tokens, n, NULL, &f.error), &f.error);
            CHECK(!memcmp(sq_session_logits(whole), sq_session_logits(single), TINY_VOCAB * sizeof(float)));
            sq_session_free(whole);
            sq_session_free(single);
        }
        fixture_close(&f);
    }
}

/* Up to TINY_CTX_SHORT tokens a timeline turns by the short factors, past them by the long ones, and back. */
static void test_long_rope(void) {
    static float brief[TINY_CTX_SHORT * TINY_VOCAB], whole[N_TOKENS * TINY_VOCAB];
    const size_t last = (TINY_CTX_SHORT - 1) * TINY_VOCAB;
    fixture f;
    fixture_open(&f, TINY_QWEN3, NULL);
    sq_session *session = session_open(&f, 1, "f32");
    CHECK_OK(sq_session_append(session, story, TINY_CTX_SHORT, brief, &f.error), &f.error);
    story_logits(&f, 1, "f32", whole);
    CHECK(!near_all(brief + last, whole + last, TINY_VOCAB, 1e-2f));
    CHECK_OK(sq_session_append(session, story + TINY_CTX_SHORT, N_TOKENS - TINY_CTX_SHORT, NULL, &f.error),
             &f.error);
    CHECK(near_all(sq_session_logits(session), whole + (N_TOKENS - 1) * TINY_VOCAB, TINY_VOCAB, 1e-4f));
    sq_session_truncate(session, TINY_CTX_SHORT - 1);
    CHECK_OK(sq_session_append(session, story + TINY_CTX_SHORT - 1, 1, NULL, &f.error), &f.error);
    CHECK(near_all(sq_session_logits(session), brief + last, TINY_VOCAB, 1e-4f));
    size_t n_tokens;
    CHECK_EQ(memcmp(sq_session_tokens(session, &n_tokens), story, TINY_CTX_SHORT * sizeof *story), 0);
    CHECK_EQ(n_tokens, TINY_CTX_SHORT);
    sq_session_free(session);
    fixture_close(&f);
}

static void test_sync_keeps_the_prefix(void) {
    static float expected[N_TOKENS * TINY_VOCAB];
    fixture f;
    fixture_open(&f, TINY_LLAMA, NULL);
    story_logits(&f, 1, NULL, expected);
    sq_session *session = session_open(&f, 1, NULL);
    sq_token other[N_TOKENS];
    memcpy(other, story, sizeof other);
    other[7] = 200;
    size_t n_kept = 99, n_tokens = 99;

    CHECK_OK(sq_session_sync(session, other, N_TOKENS, &n_kept, &f.error), &f.error);
    CHECK_EQ(n_kept, 0);
    CHECK_OK(sq_session_sync(session, story, N_TOKENS, &n_kept, &f.error), &f.error);
    CHECK_EQ(n_kept, 7);
    CHECK(near_all(sq_session_logits(session), expected + (N_TOKENS - 1) * TINY_VOCAB, TINY_VOCAB, 1e-4f));
    CHECK_OK(sq_session_sync(session, story, N_TOKENS, &n_kept, &f.error), &f.error);
    CHECK_EQ(n_kept, N_TOKENS); /* nothing to do */
    CHECK_OK(sq_session_sync(session, story, 5, &n_kept, &f.error), &f.error);
    CHECK_EQ(n_kept, 4); /* the last one again, for its logits */
    CHECK(near_all(sq_session_logits(session), expected + 4 * TINY_VOCAB, TINY_VOCAB, 1e-4f));
    CHECK_EQ(memcmp(sq_session_tokens(session, &n_tokens), story, 5 * sizeof *story), 0);
    CHECK_EQ(n_tokens, 5);

    sq_session_truncate(session, 9); /* more than there are */
    CHECK(sq_session_logits(session) != NULL);
    sq_session_truncate(session, 3);
    CHECK(sq_session_logits(session) == NULL);
    CHECK_OK(sq_session_append(session, story + 3, 2, NULL, &f.error), &f.error);
    CHECK(near_all(sq_session_logits(session), expected + 4 * TINY_VOCAB, TINY_VOCAB, 1e-4f));
    sq_session_free(session);
    fixture_close(&f);
}

static void test_refusals(void) {
    fixture f;
    fixture_open(&f, TINY_LLAMA, NULL);
    sq_session *session;
    const sq_session_options wrong[] = {
        {.n_ctx = 1 << 25},
        {.n_threads = 100000},
        {.kv = "f64"},
    };
    const char *parts[] = {"context", "threads", "f64"};
    for (size_t i = 0; i < 3; i++) {
        CHECK_FAILS(sq_session_create(f.model, &wrong[i], &session, &f.error), &f.error, SQ_ERROR_ARGUMENT,
                    parts[i]);
        CHECK(session == NULL);
    }
    session = session_open(&f, 1, NULL);
    sq_token many[N_CTX + 1] = {0}, alien[] = {1, TINY_VOCAB}, negative[] = {-1};
    CHECK_FAILS(sq_session_sync(session, many, 0, NULL, &f.error), &f.error, SQ_ERROR_ARGUMENT,
                "at least one");
    CHECK_FAILS(sq_session_append(session, many, N_CTX + 1, NULL, &f.error), &f.error, SQ_ERROR_CONTEXT,
                "full");
    CHECK_FAILS(sq_session_append(session, alien, 2, NULL, &f.error), &f.error, SQ_ERROR_ARGUMENT, "token 1");
    CHECK_FAILS(sq_session_append(session, negative, 1, NULL, &f.error), &f.error, SQ_ERROR_ARGUMENT,
                "token 0");
    CHECK_OK(sq_session_append(session, many, N_CTX, NULL, &f.error), &f.error);
    CHECK_FAILS(sq_session_append(session, many, 1, NULL, &f.error), &f.error, SQ_ERROR_CONTEXT, "32");
    CHECK(sq_session_logits(session) != NULL); /* a refusal changes nothing */
    sq_session_free(session);
    fixture_close(&f);
}

/* Beside the C tests lies no plugin for GPUs. */
static void test_no_plugin(void) {
    fixture f;
    sq_model *model;
    sq_model_info info;
    fixture_open(&f, TINY_LLAMA, NULL);
    const sq_gguf *file = f.model->file;
    sq_model_options options = {.device = "cuda"};
    CHECK_FAILS(sq_model_open_memory(f.file, sq_gguf_n_bytes(file), &options, &model, &f.error), &f.error,
                SQ_ERROR_UNSUPPORTED, "libsq_cuda.so");
    CHECK(model == NULL);
    sq_model_get_info(f.model, &info); /* opened with "auto" */
    CHECK_STR(info.device, "");
    CHECK(strstr(info.device_absent, "libsq_cuda.so") != NULL);
    CHECK_EQ(info.gpu_layers, 0);
    fixture_close(&f);
}

typedef struct canceller {
    sq_session *session;
    atomic_bool done;
} canceller;

static void *cancel_until_done(void *argument) {
    canceller *me = argument;
    while (!atomic_load(&me->done))
        sq_session_cancel(me->session);
    return NULL;
}

/* Cancelled from another thread until a call says so; the timeline stays usable. */
/* A tensor's bytes are those of all its parts in the file. */
static void check_bytes(tiny_family family) {
    tiny_model tiny;
    fixture f;
    tiny_create(&tiny, family);
    fixture_open(&f, family, "scalar");
    CHECK(sq_model_n_tensors(f.model) > 0);
    for (size_t i = 0; i < sq_model_n_tensors(f.model); i++) {
        sq_tensor_info info;
        CHECK_OK(sq_model_get_tensor(f.model, i, &info, &f.error), &f.error);
        size_t n_bytes = 0, length = strlen(info.name);
        for (size_t k = 0; k < tiny.n_tensors; k++) {
            const char *name = tiny.tensors[k].name;
            bool part = !strncmp(name, info.name, length) && (name[length] == '.' || !name[length]);
            n_bytes += part ? tiny.tensors[k].n_bytes : 0;
        }
        CHECK_SAY(info.bytes == n_bytes, "%s: %s: %zu bytes, found %zu", tiny_families[family].arch,
                  info.name, n_bytes, (size_t)info.bytes);
    }
    fixture_close(&f);
    tiny_free(&tiny);
}

static void test_bytes(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++)
        check_bytes(family);
}

static void test_cancel(void) {
    static float expected[N_TOKENS * TINY_VOCAB];
    fixture f;
    fixture_open(&f, TINY_LLAMA, NULL);
    story_logits(&f, 1, NULL, expected);
    sq_session *session = session_open(&f, 2, NULL);
    sq_session_cancel(session); /* nothing runs: no effect */
    CHECK_OK(sq_session_append(session, story, 3, NULL, &f.error), &f.error);

    pthread_t thread;
    canceller other = {.session = session};
    CHECK_EQ(pthread_create(&thread, NULL, cancel_until_done, &other), 0);
    sq_status status = SQ_OK;
    for (int i = 0; i < 100000 && status == SQ_OK; i++) {
        sq_session_truncate(session, 3);
        status = sq_session_append(session, story + 3, N_TOKENS - 3, NULL, &f.error);
    }
    atomic_store(&other.done, true);
    pthread_join(thread, NULL);
    CHECK_EQ(status, SQ_ERROR_CANCELLED);
    size_t n_tokens;
    sq_session_tokens(session, &n_tokens);
    CHECK_EQ(n_tokens, 3);
    CHECK_OK(sq_session_append(session, story + 3, N_TOKENS - 3, NULL, &f.error), &f.error);
    CHECK(near_all(sq_session_logits(session), expected + (N_TOKENS - 1) * TINY_VOCAB, TINY_VOCAB, 1e-4f));
    sq_session_free(session);
    fixture_close(&f);
}

typedef struct neighbour {
    const fixture *fixture;
    const float *expected;
    bool equal;
} neighbour;

static void *neighbour_run(void *argument) {
    neighbour *me = argument;
    float *found = malloc(N_TOKENS * TINY_VOCAB * sizeof *found);
    me->equal = true;
    for (int i = 0; i < 20; i++) {
        story_logits(me->fixture, 2, NULL, found);
        me->equal &= !memcmp(found, me->expected, N_TOKENS * TINY_VOCAB * sizeof *found);
    }
    free(found);
    return NULL;
}

/* One model, several sessions, each on a thread and with threads of its own: the same bits everywhere. */
static void test_sessions_side_by_side(void) {
    static float expected[N_TOKENS * TINY_VOCAB];
    fixture f;
    fixture_open(&f, TINY_LLAMA, NULL);
    story_logits(&f, 1, NULL, expected);
    pthread_t threads[N_SESSIONS];
    neighbour neighbours[N_SESSIONS];
    for (int i = 0; i < N_SESSIONS; i++) {
        neighbours[i] = (neighbour){&f, expected, false};
        CHECK_EQ(pthread_create(&threads[i], NULL, neighbour_run, &neighbours[i]), 0);
    }
    for (int i = 0; i < N_SESSIONS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(neighbours[i].equal);
    }
    fixture_close(&f);
}

int main(void) {
    RUN(test_instruction_sets_agree);
    RUN(test_pieces_agree);
    RUN(test_few_tokens_agree);
    RUN(test_long_rope);
    RUN(test_sync_keeps_the_prefix);
    RUN(test_refusals);
    RUN(test_no_plugin);
    RUN(test_bytes);
    RUN(test_cancel);
    RUN(test_sessions_side_by_side);
    return check_report();
}
