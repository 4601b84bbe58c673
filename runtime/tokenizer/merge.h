/* Byte-pair merging: joins neighbouring tokens, best rank first, leftmost at ties, until no two
 * neighbours have a merge. O(n log n) with a heap. Internal to the tokenizer. */
#ifndef SQ_MERGE_H
#define SQ_MERGE_H

#include "vocab.h"

typedef struct sq_merge {
    sq_token left, right, result;
    uint32_t rank; /* the smallest is done first */
} sq_merge;

typedef struct sq_merges {
    sq_merge *items;
    uint32_t *slots; /* open addressing: index + 1, or 0 */
    uint32_t n, mask, capacity;
} sq_merges;

/* From tokenizer.ggml.merges; where that is absent, from tokenizer.ggml.scores: any two tokens that are
 * a token together may merge, the higher its score the earlier. */
sq_status sq_merges_load(const sq_gguf *file, const sq_vocab *vocab, sq_merges *merges, sq_error *error);
void sq_merges_free(sq_merges *merges);

/* A row of tokens as a linked list, and the merges waiting in a heap. Reused from piece to piece. */
typedef struct sq_symbol {
    sq_token token;
    uint32_t prev, next; /* UINT32_MAX at the ends */
} sq_symbol;

typedef struct sq_candidate {
    uint64_t key; /* rank, then position: the smallest is done first */
    uint32_t merge;
} sq_candidate;

typedef struct sq_merger {
    sq_symbol *symbols;
    sq_candidate *heap;
    size_t n_symbols, n_heap, capacity;
} sq_merger;

/* Makes room for n symbols and forgets those there. False: no memory. */
bool sq_merger_start(sq_merger *merger, size_t n);
static inline void sq_merger_push(sq_merger *merger, sq_token token) {
    merger->symbols[merger->n_symbols++].token = token;
}
/* Merges, and leaves the resulting tokens in symbols[0 … n_symbols). */
void sq_merger_run(sq_merger *merger, const sq_merges *merges);
void sq_merger_free(sq_merger *merger);

#endif
