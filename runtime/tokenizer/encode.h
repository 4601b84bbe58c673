/* One call of encode at work: scratch memory and where the tokens go. Internal to the tokenizer. */
#ifndef SQ_ENCODE_H
#define SQ_ENCODE_H

#include <string.h>

#include "merge.h"
#include "nfc.h"
#include "split.h"
#include "utf8.h"
#include "vocab.h"

/* The space that SentencePiece puts before a text. */
typedef struct sq_space_prefix {
    bool add;        /* at all: before each run of text between control tokens */
    bool at_start;   /* only before a run at the very start */
    bool if_missing; /* only where the run does not start with a space */
} sq_space_prefix;

typedef struct sq_encoder {
    const sq_vocab *vocab;
    const sq_merges *merges;
    const sq_splitter *splitter;
    const sq_nfc *nfc;
    const sq_space_prefix *prefix;
    bool ignore_merges; /* a piece that is a token is taken as it is */
    bool continues;     /* the text continues earlier text */

    sq_merger merger;
    sq_split_work work;
    char *run; /* normalized text of a run */
    size_t run_capacity;

    sq_token *tokens; /* [capacity] */
    size_t capacity, n_tokens;
} sq_encoder;

sq_status sq_encoder_no_memory(size_t n_bytes, sq_error *error);

/* Makes room for n bytes in encoder->run, which keeps its contents. */
sq_status sq_encoder_reserve(sq_encoder *encoder, size_t n_bytes, sq_error *error);

/* Writes the text in form NFC to encoder->run; bytes that are no UTF-8 stay as they are. */
sq_status sq_encode_nfc(sq_encoder *encoder, const char *text, size_t n_bytes, size_t *n_written,
                        sq_error *error);

/* Fill encoder->merger with the symbols that the merging of a piece starts from. */
sq_status sq_encode_bpe_piece(sq_encoder *encoder, const char *piece, size_t n_bytes, sq_error *error);
sq_status sq_encode_spm_piece(sq_encoder *encoder, const char *piece, size_t n_bytes, sq_error *error);

/* Writes the run with its prefix and plain spaces to `out` [n_bytes + 1]; returns its length. */
size_t sq_spm_normalize(const sq_encoder *encoder, const char *text, size_t n_bytes, bool at_start,
                        char *out);

#endif
