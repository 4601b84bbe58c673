/* A reference: the tokens of a text and the probabilities that one model, usually not quantized, gave each
 * next token, to compare other models with. docs/FORMAT.md, section 6, describes the file. It is read and
 * written row by row, so that memory does not depend on its length, and it may be hostile. */
#ifndef TOOLS_EVAL_REFERENCE_H
#define TOOLS_EVAL_REFERENCE_H

#include "sq.h"

/* How a text is cut: windows of n_window tokens, each read from an empty context, in which the tokens
 * behind position n_first are predicted: positions n_first … n_window - 2 are scored. */
typedef struct reference_shape {
    uint32_t n_vocab, n_window, n_first, n_windows;
} reference_shape;

static inline size_t reference_n_scored(const reference_shape *s) { /* of one window */
    return (size_t)s->n_window - 1 - s->n_first;
}

/* A row is, for each token, how far its logit lies below the largest, in units of 1 / 2048 nat: 0 for the
 * token on top alone, 1 … 65535 for all others. More than 32 nats count as 32. */
enum { REFERENCE_UNITS = 2048, REFERENCE_LOWEST = 65535 };

typedef struct reference reference;

/* Whether the file begins as a reference does; false, too, where it cannot be read. */
bool reference_recognize(const char *path);

/* Opens for reading; the size of the file is checked against its header. */
sq_status reference_open(const char *path, reference **r, sq_error *error);
/* Begins a new file beside `path`, which takes its place in reference_commit. The space it needs is
 * taken now, so that a full disk is noticed before the work. A file that is no reference stays. */
sq_status reference_create(const char *path, const reference_shape *shape, reference **r, sq_error *error);
/* Closes; removes a new file that was not committed. NULL is fine. */
void reference_close(reference *r);

const reference_shape *reference_get_shape(const reference *r);
/* Where a new file lies until it is committed. */
const char *reference_partial(const reference *r);

/* In the order of the file, for each window: its tokens [n_window], each within the vocabulary, then
 * reference_n_scored rows [n_vocab]. */
sq_status reference_read_tokens(reference *r, sq_token *tokens, sq_error *error);
sq_status reference_read_row(reference *r, uint16_t *row, sq_error *error);

sq_status reference_write_tokens(reference *r, const sq_token *tokens, sq_error *error);
/* The row of these logits [n_vocab], of which the largest must be finite. */
sq_status reference_write_logits(reference *r, const float *logits, sq_error *error);
/* Everything was written: the file appears at its path, whole. */
sq_status reference_commit(reference *r, sq_error *error);

#endif
