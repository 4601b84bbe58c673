/* A whole model on any bytes: it is refused, or it takes text apart, runs, samples and shows itself. */
#include "../c/model_use.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    void *copy;
    sq_error error;
    if (posix_memalign(&copy, 64, n_bytes ? n_bytes : 1))
        return 0;
    if (n_bytes)
        memcpy(copy, data, n_bytes);
    if (model_use_memory(copy, n_bytes, &error) && !error.message[0])
        abort();
    free(copy);
    return 0;
}
