#include "codec.h"

#include <stdlib.h>

#include "../status.h"

struct sq_codec {
    sq_gguf *file;
    sq_tokenizer *tokenizer;
    sq_chat *chat;
};

sq_status sq_codec_open(const char *path, sq_codec **out, sq_error *error) {
    *out = NULL;
    sq_codec *codec = calloc(1, sizeof *codec);
    if (!codec)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a tokenizer");
    sq_status status = sq_gguf_open(path, &codec->file, error);
    if (!status)
        status = sq_tokenizer_load(codec->file, 0, &codec->tokenizer, error);
    if (!status && !codec->tokenizer)
        status = sq_fail(error, SQ_ERROR_FORMAT, "%s: the file holds no tokenizer", path);
    if (!status)
        status = sq_chat_load(codec->file, codec->tokenizer, &codec->chat, error);
    if (status) {
        sq_codec_close(codec);
        return status;
    }
    *out = codec;
    return SQ_OK;
}

void sq_codec_close(sq_codec *codec) {
    if (!codec)
        return;
    sq_chat_free(codec->chat);
    sq_tokenizer_free(codec->tokenizer);
    sq_gguf_close(codec->file);
    free(codec);
}

sq_status sq_codec_encode(const sq_codec *codec, const char *text, size_t n_bytes, int flags,
                          sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error) {
    sq_text_part part = {text, n_bytes, flags & SQ_TOKENIZE_SPECIAL};
    return sq_tokenizer_encode(codec->tokenizer, &part, 1, flags, tokens, capacity, n_tokens, error);
}

sq_status sq_codec_decode(const sq_codec *codec, const sq_token *tokens, size_t n_tokens, bool special,
                          char *text, size_t capacity, size_t *n_bytes, sq_error *error) {
    return sq_tokenizer_decode(codec->tokenizer, tokens, n_tokens, special, text, capacity, n_bytes, error);
}

const char *sq_codec_text(const sq_codec *codec, sq_token token, bool special, size_t *n_bytes) {
    return sq_tokenizer_text(codec->tokenizer, token, special, n_bytes);
}

sq_status sq_codec_chat(const sq_codec *codec, const sq_message *messages, size_t n_messages, int flags,
                        sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error) {
    return sq_chat_encode(codec->chat, messages, n_messages, flags, tokens, capacity, n_tokens, error);
}
