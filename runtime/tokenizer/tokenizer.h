/* Text to tokens and back, as the file's tokenizer keys say (docs/FORMAT.md, section 4). A tokenizer
 * never changes after loading; any number of threads may use it at once. It keeps views into the file,
 * which must stay open longer. */
#ifndef SQ_TOKENIZER_H
#define SQ_TOKENIZER_H

#include "../gguf.h"

typedef struct sq_tokenizer sq_tokenizer;

/* NULL and SQ_OK where the file holds no tokenizer. One with another number of tokens than n_vocab is
 * an error; n_vocab 0 takes any. */
sq_status sq_tokenizer_load(const sq_gguf *file, uint32_t n_vocab, sq_tokenizer **tokenizer, sq_error *error);
void sq_tokenizer_free(sq_tokenizer *tokenizer);

/* A stretch of text. Control tokens are recognised only inside stretches that are `special`; two
 * special stretches side by side count as one. */
typedef struct sq_text_part {
    const char *text;
    size_t n_bytes;
    bool special;
} sq_text_part;

/* The tokens of the parts' texts joined: what lies between two control tokens is split and merged as
 * one run, whichever parts it came from. `flags` as in sq_tokenize (SPECIAL has no meaning here);
 * `capacity` and `n_tokens` as there. */
sq_status sq_tokenizer_encode(const sq_tokenizer *tokenizer, const sq_text_part *parts, size_t n_parts,
                              int flags, sq_token *tokens, size_t capacity, size_t *n_tokens,
                              sq_error *error);

/* As sq_token_text and sq_detokenize (sq.h). */
const char *sq_tokenizer_text(const sq_tokenizer *tokenizer, sq_token token, bool special, size_t *n_bytes);
sq_status sq_tokenizer_decode(const sq_tokenizer *tokenizer, const sq_token *tokens, size_t n_tokens,
                              bool special, char *text, size_t capacity, size_t *n_bytes, sq_error *error);

uint32_t sq_tokenizer_n_vocab(const sq_tokenizer *tokenizer);
sq_token sq_tokenizer_bos(const sq_tokenizer *tokenizer); /* -1: none */
sq_token sq_tokenizer_eos(const sq_tokenizer *tokenizer); /* -1: none */
bool sq_tokenizer_is_stop(const sq_tokenizer *tokenizer, sq_token token);
bool sq_tokenizer_is_control(const sq_tokenizer *tokenizer, sq_token token);

#endif
