/* Opens a model in memory and uses all of it a little: for the tests with damaged files and the fuzzer. */
#ifndef MODEL_USE_H
#define MODEL_USE_H

#include <stdlib.h>
#include <string.h>

#include "model.h"

/* More than this and a hostile file keeps a test busy for no gain; a real session would be refused memory
 * or run. */
enum { MODEL_USE_WORK = 1 << 22 };

static bool model_is_small(const sq_model_info *info) {
    uint64_t width = (uint64_t)info->n_heads * info->head_dim + info->n_embd + info->n_ff;
    return info->n_params <= MODEL_USE_WORK && info->n_layers * width <= MODEL_USE_WORK;
}

static void model_use_tokenizer(const sq_model *model, uint32_t n_vocab) {
    static const char text[] = "on an ear, tests \xe6\x97\xa5 \xf0\x9f\x98\x80\xff\n  it's 123<s><|end|>";
    sq_token tokens[128];
    size_t n_tokens, n_bytes;
    char back[2048];
    for (int flags = 0; flags < 8; flags++) {
        if (sq_tokenize(model, text, sizeof text - 1, flags, tokens, 128, &n_tokens, NULL))
            continue;
        if (n_tokens > 128)
            continue;
        for (size_t i = 0; i < n_tokens; i++)
            if (tokens[i] < 0 || (uint32_t)tokens[i] >= n_vocab)
                abort();
        sq_detokenize(model, tokens, n_tokens, flags & 1, back, sizeof back, &n_bytes, NULL);
    }
    for (sq_token token = -1; token <= (sq_token)n_vocab; token += 1 + (sq_token)n_vocab / 50) {
        const char *part = sq_token_text(model, token, true, &n_bytes);
        if (part && n_bytes)
            memcpy(back, part, n_bytes < sizeof back ? n_bytes : sizeof back);
        sq_token_is_stop(model, token);
        sq_token_is_control(model, token);
    }
    const sq_message messages[] = {{"system", "be"}, {"user", "<s> a"}, {"assistant", ""}, {"user", "b"}};
    sq_chat_check(model, NULL);
    sq_chat_tokenize(model, messages, 4, SQ_CHAT_GENERATE, tokens, 128, &n_tokens, NULL);
    sq_chat_tokenize(model, messages + 1, 1, SQ_CHAT_NO_THINKING, tokens, 128, &n_tokens, NULL);
}

/* A prompt in one piece and two tokens one by one. */
static sq_status model_use_session(const sq_model *model, uint32_t n_vocab, const char *kv, sq_error *error) {
    sq_session_options options = {.n_ctx = 16, .n_threads = 1, .kv = kv};
    sq_session *session;
    sq_sampler *sampler = NULL;
    sq_status status = sq_session_create(model, &options, &session, error);
    if (status)
        return status;
    status = sq_sampler_create(model, NULL, &sampler, error);
    sq_token prompt[] = {0, (sq_token)n_vocab - 1, (sq_token)n_vocab / 2};
    if (!status)
        status = sq_session_sync(session, prompt, 3, NULL, error);
    for (int i = 0; i < 2 && !status; i++) {
        sq_token token = sq_sampler_sample(sampler, sq_session_logits(session));
        if (token < 0 || (uint32_t)token >= n_vocab)
            abort();
        status = sq_session_append(session, &token, 1, NULL, error);
    }
    sq_sampler_free(sampler);
    sq_session_free(session);
    return status;
}

static void model_use_rows(const sq_model *model) {
    for (size_t i = 0; i < sq_model_n_tensors(model); i++) {
        sq_tensor_info info;
        if (sq_model_get_tensor(model, i, &info, NULL))
            abort();
        float *row = malloc(info.n_in * sizeof *row);
        if (row)
            sq_model_read_row(model, i, info.n_out - 1, row, NULL);
        free(row);
    }
}

/* SQ_OK where the model opened and ran; `data` is 64-byte aligned. */
static sq_status model_use_memory(const void *data, size_t n_bytes, sq_error *error) {
    sq_model *model;
    sq_model_info info;
    const sq_model_options options = {.device = "cpu"};
    sq_status status = sq_model_open_memory(data, n_bytes, &options, &model, error);
    if (status) {
        if (model || status != error->status)
            abort();
        return status;
    }
    sq_model_get_info(model, &info);
    model_use_tokenizer(model, info.n_vocab);
    if (model_is_small(&info)) {
        model_use_rows(model);
        static const char *const kvs[] = {"f16", "q8", "f32"};
        for (int i = 0; i < 3 && !status; i++)
            status = model_use_session(model, info.n_vocab, kvs[i], error);
    }
    sq_model_close(model);
    return status;
}

#endif
