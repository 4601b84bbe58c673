/* Writes GGUF files into memory, sound ones and others: nothing is checked. */
#ifndef GGUF_BUILD_H
#define GGUF_BUILD_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_file.h"

/* A growing block of bytes. */
typedef struct gguf_build {
    uint8_t *data;
    size_t n_bytes, capacity;
} gguf_build;

__attribute__((unused)) static void put(gguf_build *b, const void *bytes, size_t n_bytes) {
    if (b->n_bytes + n_bytes > b->capacity) {
        b->capacity = 2 * (b->n_bytes + n_bytes);
        b->data = realloc(b->data, b->capacity);
        if (!b->data)
            abort();
    }
    if (n_bytes)
        memcpy(b->data + b->n_bytes, bytes, n_bytes);
    b->n_bytes += n_bytes;
}

__attribute__((unused)) static void put_u8(gguf_build *b, uint8_t value) {
    put(b, &value, 1);
}
__attribute__((unused)) static void put_u32(gguf_build *b, uint32_t value) {
    put(b, &value, 4);
}
__attribute__((unused)) static void put_u64(gguf_build *b, uint64_t value) {
    put(b, &value, 8);
}
__attribute__((unused)) static void put_f32(gguf_build *b, float value) {
    put(b, &value, 4);
}
__attribute__((unused)) static void put_f64(gguf_build *b, double value) {
    put(b, &value, 8);
}

__attribute__((unused)) static void put_string(gguf_build *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

__attribute__((unused)) static void put_header(gguf_build *b, uint64_t n_tensors, uint64_t n_keys) {
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_keys);
}

/* A key up to its value. */
__attribute__((unused)) static void put_key(gguf_build *b, const char *name, sq_kind kind) {
    put_string(b, name);
    put_u32(b, kind);
}

/* A key up to the array's elements. */
__attribute__((unused)) static void put_array(gguf_build *b, const char *name, sq_kind element, uint64_t n) {
    put_key(b, name, SQ_KIND_ARRAY);
    put_u32(b, element);
    put_u64(b, n);
}

__attribute__((unused)) static void put_tensor(gguf_build *b, const char *name, uint32_t n_dims,
                                               const uint64_t *dims, uint32_t type, uint64_t offset) {
    put_string(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(b, dims[i]);
    put_u32(b, type);
    put_u64(b, offset);
}

__attribute__((unused)) static void put_padding(gguf_build *b, size_t alignment) {
    while (b->n_bytes % alignment)
        put_u8(b, 0);
}

/* The first n_bytes in a block of their own, 64-byte aligned, so that a sanitizer sees a byte too many. */
__attribute__((unused)) static void *build_copy(const gguf_build *b, size_t n_bytes) {
    void *copy;
    if (posix_memalign(&copy, 64, n_bytes ? n_bytes : 1))
        abort();
    if (n_bytes)
        memcpy(copy, b->data, n_bytes);
    return copy;
}

__attribute__((unused)) static void build_free(gguf_build *b) {
    free(b->data);
    *b = (gguf_build){0};
}

#endif
