/* Cuts text into pieces by the file's patterns, which PCRE2 runs: nothing merges across pieces.
 * Internal to the tokenizer. */
#ifndef SQ_SPLIT_H
#define SQ_SPLIT_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "../gguf.h"

enum { SQ_N_PATTERNS_MAX = 16 };

typedef struct sq_splitter {
    pcre2_code *patterns[SQ_N_PATTERNS_MAX]; /* never changed after loading: threads share them */
    size_t n;
} sq_splitter;

sq_status sq_splitter_load(const sq_gguf *file, sq_splitter *splitter, sq_error *error);
void sq_splitter_free(sq_splitter *splitter);

/* Room for one thread's matching. */
typedef struct sq_split_work {
    pcre2_match_data *data;
    pcre2_match_context *limits;
    pcre2_jit_stack *stack;
} sq_split_work;

bool sq_split_work_create(sq_split_work *work);
void sq_split_work_free(sq_split_work *work);

/* Receives the pieces, in order. */
typedef sq_status (*sq_piece_fn)(void *context, const char *piece, size_t n_bytes, sq_error *error);

/* Applies the patterns one after another, each to every piece the one before it made: a match is a piece
 * of its own, and so is what lies between two matches. Bytes that are no UTF-8 are never matched: each
 * run of them is a piece. No piece is empty. */
sq_status sq_split(const sq_splitter *splitter, const sq_split_work *work, const char *text, size_t n_bytes,
                   sq_piece_fn piece, void *context, sq_error *error);

#endif
