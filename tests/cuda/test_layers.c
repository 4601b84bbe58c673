/* The library with the plugin: some or all layers of tiny models on the device, the others on the CPU,
 * against the CPU alone, on timelines that grow, shrink and pass from short rotations to long ones. */
#include <stdlib.h>

#include "model.h"
#include "tiny_model.h"

static sq_session *session_open(const void *file, size_t n_bytes, const char *device, uint32_t gpu_layers,
                                sq_model **model) {
    sq_model_options options = {.cpu = "scalar", .exact = true, .device = device, .gpu_layers = gpu_layers};
    sq_session_options small = {.n_threads = 1};
    sq_session *session = NULL;
    sq_error error;
    if (CHECK_OK(sq_model_open_memory(file, n_bytes, &options, model, &error), &error))
        CHECK_OK(sq_session_create(*model, &small, &session, &error), &error);
    return session;
}

static void check_layers(tiny_family family, uint32_t gpu_layers) {
    static const size_t lengths[] = {1, 2, 12, 9, 10, 3, 4, 5, 30, 31, 29};
    sq_token tokens[32];
    sq_model *here, *there;
    sq_model_info info;
    sq_error error;
    size_t n_bytes;
    void *file = tiny_file(family, &n_bytes);
    sq_session *expected = session_open(file, n_bytes, "cpu", 0, &here);
    sq_session *found = session_open(file, n_bytes, "cuda", gpu_layers, &there);
    if (!expected || !found)
        return;
    sq_model_get_info(there, &info);
    CHECK_EQ(info.gpu_layers, gpu_layers);
    for (unsigned i = 0; i < 32; i++)
        tokens[i] = (sq_token)(i * 7919u % TINY_VOCAB);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        CHECK_OK(sq_session_sync(expected, tokens, lengths[i], NULL, &error), &error);
        CHECK_OK(sq_session_sync(found, tokens, lengths[i], NULL, &error), &error);
        const float *a = sq_session_logits(expected), *b = sq_session_logits(found);
        for (int t = 0; t < TINY_VOCAB; t++)
            CHECK_SAY(fabsf(a[t] - b[t]) <= 5e-3f,
                      "%s, %u layers, %zu tokens: logit %d: found %g, expected %g", here->arch->name,
                      gpu_layers, lengths[i], t, b[t], a[t]);
    }
    sq_session_free(expected);
    sq_session_free(found);
    sq_model_close(here);
    sq_model_close(there);
    free(file);
}

static void test_layers(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++)
        for (uint32_t gpu_layers = 1; gpu_layers <= TINY_LAYERS; gpu_layers++)
            check_layers(family, gpu_layers);
}

int main(void) {
    size_t n_bytes;
    void *file = tiny_file(TINY_LLAMA, &n_bytes);
    sq_model_options options = {.device = "cuda", .gpu_layers = 1};
    sq_model *model;
    sq_error error;
    sq_status status = sq_model_open_memory(file, n_bytes, &options, &model, &error);
    sq_model_close(model);
    free(file);
    if (status == SQ_ERROR_UNSUPPORTED) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    RUN(test_layers);
    return check_report();
}
