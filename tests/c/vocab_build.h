/* Files that hold a tokenizer and nothing else, from small vocabularies written by hand. */
#ifndef VOCAB_BUILD_H
#define VOCAB_BUILD_H

#include "chat.h"
#include "gguf_build.h"
#include "tokenizer/tokenizer.h"

/* Keys, counted; the header goes in front at the end. */
typedef struct vocab_build {
    gguf_build keys;
    uint64_t n_keys;
} vocab_build;

__attribute__((unused)) static void add_string(vocab_build *b, const char *key, const char *value) {
    put_key(&b->keys, key, SQ_KIND_STRING);
    put_string(&b->keys, value);
    b->n_keys++;
}

__attribute__((unused)) static void add_bool(vocab_build *b, const char *key, bool value) {
    put_key(&b->keys, key, SQ_KIND_BOOL);
    put_u8(&b->keys, value);
    b->n_keys++;
}

__attribute__((unused)) static void add_u32(vocab_build *b, const char *key, uint32_t value) {
    put_key(&b->keys, key, SQ_KIND_U32);
    put_u32(&b->keys, value);
    b->n_keys++;
}

/* `values` ends with NULL. */
__attribute__((unused)) static void add_strings(vocab_build *b, const char *key, const char *const *values) {
    uint64_t n = 0;
    while (values[n])
        n++;
    put_array(&b->keys, key, SQ_KIND_STRING, n);
    for (uint64_t i = 0; i < n; i++)
        put_string(&b->keys, values[i]);
    b->n_keys++;
}

__attribute__((unused)) static void add_i32s(vocab_build *b, const char *key, const int32_t *values,
                                             uint64_t n) {
    put_array(&b->keys, key, SQ_KIND_I32, n);
    put(&b->keys, values, n * sizeof *values);
    b->n_keys++;
}

__attribute__((unused)) static void add_f32s(vocab_build *b, const char *key, const float *values,
                                             uint64_t n) {
    put_array(&b->keys, key, SQ_KIND_F32, n);
    put(&b->keys, values, n * sizeof *values);
    b->n_keys++;
}

/* A file in memory with what reads it. */
typedef struct vocab_file {
    void *data;
    sq_gguf *file;
    sq_tokenizer *tokenizer;
    sq_chat *chat;
} vocab_file;

__attribute__((unused)) static void vocab_close(vocab_file *v) {
    sq_chat_free(v->chat);
    sq_tokenizer_free(v->tokenizer);
    sq_gguf_close(v->file);
    free(v->data);
    *v = (vocab_file){0};
}

/* Opens what was added; the keys are freed. On failure everything is closed. */
__attribute__((unused)) static sq_status vocab_open(vocab_build *b, vocab_file *v, sq_error *error) {
    gguf_build file = {0};
    put_header(&file, 0, b->n_keys);
    put(&file, b->keys.data, b->keys.n_bytes);
    *v = (vocab_file){.data = build_copy(&file, file.n_bytes)};
    sq_status status = sq_gguf_open_memory(v->data, file.n_bytes, &v->file, error);
    build_free(&file);
    build_free(&b->keys);
    b->n_keys = 0;
    if (!status)
        status = sq_tokenizer_load(v->file, 0, &v->tokenizer, error);
    if (!status)
        status = sq_chat_load(v->file, v->tokenizer, &v->chat, error);
    if (status)
        vocab_close(v);
    return status;
}

/* Tokens as "12 5 7"; for comparison with CHECK_STR. Lives until the next call. */
__attribute__((unused)) static const char *ids_text(const sq_token *tokens, size_t n) {
    static char text[4096];
    size_t end = 0;
    text[0] = 0;
    for (size_t i = 0; i < n && end < sizeof text - 16; i++)
        end += (size_t)snprintf(text + end, sizeof text - end, i ? " %d" : "%d", tokens[i]);
    return text;
}

#endif
