/* Whole tiny models of every family: the plugin's logits against the CPU's exact ones, however a prompt is
 * cut. */
#include <stdlib.h>

#include "device.h"
#include "tiny_model.h"

const sq_device_api *sq_device_api_get(void);
#ifdef SQ_EMULATED
void sq_emulator_reverse(bool reverse);
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
    double most = model->exact ? 1e-7 : 2e-4;
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
        tiny_model tiny;
        gguf_build bytes;
        tiny_create(&tiny, family);
        tiny_write(&tiny, &bytes);
        void *file = aligned_alloc(64, (bytes.n_bytes + 63) / 64 * 64);
        memcpy(file, bytes.data, bytes.n_bytes);
        sq_model *exact = model_open(file, bytes.n_bytes, true),
                 *fast = model_open(file, bytes.n_bytes, false);
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
        build_free(&bytes);
        tiny_free(&tiny);
    }
}

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
    return check_report();
}
