/* Whole tiny models of every family: the plugin's logits against the CPU's exact ones, however a prompt is
 * cut. */
#include <stdlib.h>

#include "device.h"
#include "tiny_model.h"

const sq_device_api *sq_device_api_get(void);
#ifdef SQ_EMULATED
void sq_emulator_reverse(bool reverse);
void sq_emulator_card(int result, int n_cards, int major, size_t n_bytes_free);
#endif
static const sq_device_api *api;

enum { N_TOKENS = 40 };

static void tokens_fill(sq_token *tokens) {
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (sq_token)((unsigned)i * 7919u % TINY_VOCAB);
}

/* What of `expected`'s distribution `found` misses, in nat. */
static double divergence(const float *expected, const float *found, uint32_t n) {
    double kl = 0;
    for (uint32_t i = 0; i < n; i++) {
        double p = sq_log_probability(expected, n, (sq_token)i),
               q = sq_log_probability(found, n, (sq_token)i);
        kl += exp(p) * (p - q);
    }
    return kl;
}

static sq_token largest(const float *logits, uint32_t n) {
    sq_token best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = (sq_token)i;
    return best;
}

static const char *const kv_names[SQ_N_KV_TYPES] = {"f16", "f32", "q8"};

/* The CPU's logits after each token; of pieces, as rotations of long timelines depend on them. */
static void cpu_logits(const sq_model *model, sq_kv_type kv, const sq_token *tokens, const uint32_t *pieces,
                       float *logits) {
    sq_session_options options = {.n_ctx = TINY_CTX, .n_threads = 1, .kv = kv_names[kv]};
    sq_session *session;
    sq_error error;
    if (!CHECK_OK(sq_session_create(model, &options, &session, &error), &error))
        return;
    for (uint32_t first = 0; *pieces; first += *pieces++)
        CHECK_OK(
            sq_session_append(session, tokens + first, *pieces, logits + (size_t)first * TINY_VOCAB, &error),
            &error);
    sq_session_free(session);
}

static void check_pieces(const sq_model *model, sq_device *device, sq_kv_type kv, const uint32_t *pieces,
                         double most) {
    static float expected[N_TOKENS * TINY_VOCAB], found[N_TOKENS * TINY_VOCAB];
    sq_token tokens[N_TOKENS], greedy[N_TOKENS];
    sq_device_session *session;
    sq_error error;
    tokens_fill(tokens);
    bool long_rope = model->hparams.n_ctx_short < N_TOKENS;
    if (long_rope) /* the session's task, and not the plugin's: here all of the timeline is long */
        cpu_logits(model, kv, tokens, (const uint32_t[]){N_TOKENS, 0}, expected);
    else
        cpu_logits(model, kv, tokens, pieces, expected);
    if (!CHECK_OK(api->session_create(device, TINY_CTX, kv, &session, &error), &error))
        return;
    for (uint32_t first = 0; *pieces; first += *pieces++) {
        sq_device_job job = {.tokens = tokens + first,
                             .n_tokens = *pieces,
                             .position = first,
                             .long_rope = long_rope,
                             .n_logits = *pieces};
        CHECK_OK(api->run(session, &job, greedy, &error), &error);
        CHECK_OK(api->read_logits(session, 0, *pieces, found + (size_t)first * TINY_VOCAB, &error), &error);
        for (uint32_t t = 0; t < *pieces; t++) {
            const float *row = found + (size_t)(first + t) * TINY_VOCAB;
            double kl = divergence(expected + (size_t)(first + t) * TINY_VOCAB, row, TINY_VOCAB);
            CHECK_SAY(kl < most, "%s, %s cache, token %u: KL divergence %g", model->arch->name, kv_names[kv],
                      first + t, kl);
            CHECK_EQ(greedy[t], largest(row, TINY_VOCAB));
        }
    }
    api->session_free(session);
}

static sq_model *model_open(const void *file, size_t n_bytes, bool exact) {
    sq_model_options options = {.cpu = "scalar", .exact = exact};
    sq_model *model = NULL;
    sq_error error;
    CHECK_OK(sq_model_open_memory(file, n_bytes, &options, &model, &error), &error);
    return model;
}

/* On the device exactly, and with the products of prompts that it uses otherwise. These make some elements of
 * Q8 round the other way than the CPU's. `mixed`: of the cache for pieces of all sizes. */
static void check_family(const sq_model *model, const sq_model *reference, sq_kv_type mixed) {
    double most = model->exact ? 1e-7 : 1e-4;
    sq_device *device;
    sq_error error;
    if (!CHECK_OK(api->open(model, 0, &device, &error), &error))
        return;
    check_pieces(reference, device, mixed, (const uint32_t[]){17, 1, 10, 12, 0},
                 mixed == SQ_KV_Q8 ? 25 * most : most);
    check_pieces(reference, device, SQ_KV_F16, (const uint32_t[]){N_TOKENS, 0}, most);
    check_pieces(reference, device, SQ_KV_Q8, (const uint32_t[]){1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1, 0},
                 most);
    api->close(device);
}

static void test_families(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        size_t n_bytes;
        void *file = tiny_file(family, &n_bytes);
        sq_model *exact = model_open(file, n_bytes, true), *fast = model_open(file, n_bytes, false);
        check_family(exact, exact, (sq_kv_type)(family % SQ_N_KV_TYPES));
#ifdef SQ_EMULATED
        sq_emulator_reverse(true); /* blocks, warps and lanes run the other way: what depends on it shows */
#endif
        check_family(fast, exact, (sq_kv_type)((family + 2) % SQ_N_KV_TYPES));
#ifdef SQ_EMULATED
        sq_emulator_reverse(false);
#endif
        sq_model_close(exact);
        sq_model_close(fast);
        free(file);
    }
}

#ifdef SQ_EMULATED
/* No driver, no card, an old one: a sentence each. The numbers are cudaError_t's. */
static void test_cards_that_will_not_do(void) {
    static const struct {
        int result, n_cards, major;
        const char *words;
    } cases[] = {
        {35, 0, 9, "driver is missing or too old"},
        {100, 0, 9, "no NVIDIA GPU"},
        {0, 0, 9, "no NVIDIA GPU"},
        {0, 1, 7, "expected compute capability 8.0 or newer, found 7.0"},
        {1, 1, 9, "looking for a GPU failed"},
    };
    sq_device_info info;
    sq_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sq_emulator_card(cases[i].result, cases[i].n_cards, cases[i].major, 1 << 30);
        CHECK_FAILS(api->find(&info, &error), &error, SQ_ERROR_UNSUPPORTED, cases[i].words);
    }
    sq_emulator_card(0, 1, 9, 1 << 30);
}

static void test_memory_that_is_not_there(void) {
    size_t n_bytes;
    void *file = tiny_file(TINY_LLAMA, &n_bytes);
    sq_model *model = model_open(file, n_bytes, true);
    sq_device *device;
    sq_device_session *session;
    sq_error error;
    size_t model_bytes = api->model_bytes(model, 0);
    sq_emulator_card(0, 1, 9, model_bytes - 1);
    CHECK_FAILS(api->open(model, 0, &device, &error), &error, SQ_ERROR_MEMORY, "for the weights");
    sq_emulator_card(0, 1, 9, model_bytes);
    if (CHECK_OK(api->open(model, 0, &device, &error), &error)) {
        CHECK_FAILS(api->session_create(device, 1 << 20, SQ_KV_F16, &session, &error), &error,
                    SQ_ERROR_MEMORY, "for a session of 1048576 tokens");
        api->close(device);
    }
    sq_emulator_card(0, 1, 9, 1 << 30);
    sq_model_close(model);
    free(file);
}
#endif

int main(void) {
    sq_device_info info;
    sq_error error;
    api = sq_device_api_get();
    if (api->find(&info, &error)) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    printf("%s\n", info.name);
    RUN(test_families);
#ifdef SQ_EMULATED
    RUN(test_cards_that_will_not_do);
    RUN(test_memory_that_is_not_there);
#endif
    return check_report();
}
