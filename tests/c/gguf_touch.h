/* Uses everything an opened file hands out, so that a sanitizer sees what is not there. For the tests and
 * the fuzzers. */
#ifndef GGUF_TOUCH_H
#define GGUF_TOUCH_H

#include <stdlib.h>
#include <string.h>

#include "gguf_file.h"

static volatile uint64_t gguf_touched; /* keeps the reads */

static void gguf_touch_bytes(const void *data, uint64_t n_bytes) {
    const uint8_t *bytes = data;
    if (n_bytes)
        gguf_touched += bytes[0] + bytes[n_bytes / 2] + bytes[n_bytes - 1];
}

static void gguf_touch_strings(const sq_gguf *file, const char *key, uint64_t n) {
    sq_gguf_string *strings = malloc(n * sizeof *strings + 1);
    if (!strings)
        return;
    sq_gguf_copy_strings(file, key, strings);
    for (uint64_t i = 0; i < n; i++)
        gguf_touch_bytes(strings[i].text, strings[i].n_bytes);
    free(strings);
    sq_gguf_string last = sq_gguf_string_at(file, key, n - 1), none = sq_gguf_string_at(file, key, n);
    gguf_touch_bytes(last.text, last.n_bytes);
    if (none.n_bytes != 0)
        abort();
}

/* One key through every function that reads keys. */
static void gguf_touch_key(const sq_gguf *file, const char *key) {
    uint32_t u32 = 0;
    int32_t i32 = 0;
    float f32 = 0;
    bool flag = false;
    uint64_t n;
    if (!sq_gguf_has(file, key))
        abort();
    gguf_touched += sq_gguf_get_u32(file, key, &u32) ? u32 : 0;
    gguf_touched += sq_gguf_get_i32(file, key, &i32) ? (uint64_t)i32 : 0;
    gguf_touched += sq_gguf_get_f32(file, key, &f32) && f32 > 0;
    gguf_touched += sq_gguf_get_bool(file, key, &flag) && flag;
    const char *text = sq_gguf_get_string(file, key);
    if (text)
        gguf_touched += strlen(text);
    if (sq_gguf_get_strings(file, key, &n))
        gguf_touch_strings(file, key, n);
    if (sq_gguf_count_i32(file, key, &n)) {
        int32_t *values = malloc(n * sizeof *values + 1);
        if (values)
            sq_gguf_copy_i32(file, key, values);
        gguf_touch_bytes(values, values ? n * sizeof *values : 0);
        free(values);
    }
    if (sq_gguf_count_f32(file, key, &n)) {
        float *values = malloc(n * sizeof *values + 1);
        if (values)
            sq_gguf_copy_f32(file, key, values);
        gguf_touch_bytes(values, values ? n * sizeof *values : 0);
        free(values);
    }
}

static void gguf_touch(const sq_gguf *file) {
    for (size_t i = 0; i < file->n_keys; i++)
        gguf_touch_key(file, file->keys[i].name);
    for (uint64_t i = 0; i < sq_gguf_n_tensors(file); i++) {
        const sq_gguf_tensor *tensor = sq_gguf_tensor_at(file, i);
        if (sq_gguf_find_tensor(file, tensor->name) != tensor)
            abort();
        if ((uintptr_t)tensor->data % 8)
            abort();
        gguf_touch_bytes(tensor->data, tensor->n_bytes);
    }
    if (sq_gguf_tensor_at(file, sq_gguf_n_tensors(file)))
        abort();
}

#endif
