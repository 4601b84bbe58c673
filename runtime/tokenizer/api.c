/* The token and chat functions of sq.h. */
#include "../chat.h"
#include "../model.h"
#include "../status.h"

static sq_status no_tokenizer(sq_error *error) {
    return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                   "the file holds no tokenizer; convert the model again with its tokenizer files beside it");
}

sq_status sq_tokenize(const sq_model *model, const char *text, size_t n_bytes, int flags, sq_token *tokens,
                      size_t capacity, size_t *n_tokens, sq_error *error) {
    const sq_tokenizer *tokenizer = sq_model_tokenizer(model);
    if (!tokenizer)
        return no_tokenizer(error);
    sq_text_part part = {text, n_bytes, flags & SQ_TOKENIZE_SPECIAL};
    return sq_tokenizer_encode(tokenizer, &part, 1, flags, tokens, capacity, n_tokens, error);
}

const char *sq_token_text(const sq_model *model, sq_token token, bool special, size_t *n_bytes) {
    const sq_tokenizer *tokenizer = sq_model_tokenizer(model);
    *n_bytes = 0;
    return tokenizer ? sq_tokenizer_text(tokenizer, token, special, n_bytes) : NULL;
}

sq_status sq_detokenize(const sq_model *model, const sq_token *tokens, size_t n_tokens, bool special,
                        char *text, size_t capacity, size_t *n_bytes, sq_error *error) {
    const sq_tokenizer *tokenizer = sq_model_tokenizer(model);
    if (!tokenizer)
        return no_tokenizer(error);
    return sq_tokenizer_decode(tokenizer, tokens, n_tokens, special, text, capacity, n_bytes, error);
}

sq_token sq_token_bos(const sq_model *model) {
    const sq_tokenizer *tokenizer = sq_model_tokenizer(model);
    return tokenizer ? sq_tokenizer_bos(tokenizer) : -1;
}

sq_token sq_token_eos(const sq_model *model) {
    const sq_tokenizer *tokenizer = sq_model_tokenizer(model);
    return tokenizer ? sq_tokenizer_eos(tokenizer) : -1;
}

bool sq_token_is_stop(const sq_model *model, sq_token token) {
    const sq_tokenizer *tokenizer = sq_model_tokenizer(model);
    return tokenizer && sq_tokenizer_is_stop(tokenizer, token);
}

bool sq_token_is_control(const sq_model *model, sq_token token) {
    const sq_tokenizer *tokenizer = sq_model_tokenizer(model);
    return tokenizer && sq_tokenizer_is_control(tokenizer, token);
}

sq_status sq_chat_check(const sq_model *model, sq_error *error) {
    return sq_chat_available(sq_model_chat(model), error);
}

sq_status sq_chat_tokenize(const sq_model *model, const sq_message *messages, size_t n_messages, int flags,
                           sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error) {
    return sq_chat_encode(sq_model_chat(model), messages, n_messages, flags, tokens, capacity, n_tokens,
                          error);
}
