/* Tokenizer and chat table of a file without the model around them. Not part of sq.h: the converter
 * checks a tokenizer with it, through the shared library, before any weight is written. */
#ifndef SQ_CODEC_H
#define SQ_CODEC_H

#include "../chat.h"

#define SQ_CODEC_API __attribute__((visibility("default")))

typedef struct sq_codec sq_codec;

/* `path` is a GGUF file with tokenizer keys; it may hold nothing else. */
SQ_CODEC_API sq_status sq_codec_open(const char *path, sq_codec **codec, sq_error *error);
SQ_CODEC_API void sq_codec_close(sq_codec *codec);

/* As sq_tokenize, sq_detokenize, sq_token_text, sq_chat_check and sq_chat_tokenize. */
SQ_CODEC_API sq_status sq_codec_encode(const sq_codec *codec, const char *text, size_t n_bytes, int flags,
                                       sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error);
SQ_CODEC_API sq_status sq_codec_decode(const sq_codec *codec, const sq_token *tokens, size_t n_tokens,
                                       bool special, char *text, size_t capacity, size_t *n_bytes,
                                       sq_error *error);
SQ_CODEC_API const char *sq_codec_text(const sq_codec *codec, sq_token token, bool special, size_t *n_bytes);
SQ_CODEC_API sq_status sq_codec_chat(const sq_codec *codec, const sq_message *messages, size_t n_messages,
                                     int flags, sq_token *tokens, size_t capacity, size_t *n_tokens,
                                     sq_error *error);

#endif
