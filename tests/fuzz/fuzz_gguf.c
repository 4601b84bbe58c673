/* The file reader on any bytes: it refuses them, or all it hands out can be read. */
#include "gguf.h"

#include "../c/gguf_touch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    void *copy;
    sq_gguf *file;
    sq_error error;
    if (posix_memalign(&copy, 64, n_bytes ? n_bytes : 1))
        return 0;
    if (n_bytes)
        memcpy(copy, data, n_bytes);
    if (sq_gguf_open_memory(copy, n_bytes, &file, &error) == SQ_OK)
        gguf_touch(file);
    else if (!error.status || !error.message[0])
        abort();
    sq_gguf_close(file);
    free(copy);
    return 0;
}
