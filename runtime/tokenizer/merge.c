#include "merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../status.h"

#define NO_SYMBOL UINT32_MAX

enum { N_MERGES_MAX = 1 << 28 };

/* ---- table ----------------------------------------------------------------------------------- */

static uint32_t pair_slot(sq_token left, sq_token right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9E3779B97F4A7C15u;
    return (uint32_t)(key >> 32 ^ key >> 15);
}

/* The slot of this pair, or the free one where it belongs. */
static uint32_t *find_slot(const sq_merges *merges, sq_token left, sq_token right) {
    uint32_t i = pair_slot(left, right) & merges->mask;
    for (; merges->slots[i]; i = (i + 1) & merges->mask) {
        const sq_merge *merge = &merges->items[merges->slots[i] - 1];
        if (merge->left == left && merge->right == right)
            break;
    }
    return &merges->slots[i];
}

static sq_status no_memory(sq_error *error) {
    return sq_fail(error, SQ_ERROR_MEMORY, "no memory for the tokenizer's merges");
}

static bool grow(sq_merges *merges, uint32_t capacity) {
    if (capacity > N_MERGES_MAX)
        return false;
    sq_merge *items = realloc(merges->items, capacity * sizeof *items);
    if (!items)
        return false;
    merges->items = items;
    merges->capacity = capacity;
    uint32_t n_slots = sq_hash_capacity(capacity);
    uint32_t *slots = calloc(n_slots, sizeof *slots);
    if (!slots)
        return false;
    free(merges->slots);
    merges->slots = slots;
    merges->mask = n_slots - 1;
    for (uint32_t i = 0; i < merges->n; i++)
        *find_slot(merges, items[i].left, items[i].right) = i + 1;
    return true;
}

/* A pair given twice keeps its last rank, as in Hugging Face's tokenizers. */
static sq_status add(sq_merges *merges, sq_merge merge, sq_error *error) {
    if (merges->n == merges->capacity && !grow(merges, merges->capacity ? 2 * merges->capacity : 256))
        return no_memory(error);
    uint32_t *slot = find_slot(merges, merge.left, merge.right);
    if (*slot) {
        merges->items[*slot - 1] = merge;
        return SQ_OK;
    }
    merges->items[merges->n++] = merge;
    *slot = merges->n;
    return SQ_OK;
}

/* ---- from a list of merges ------------------------------------------------------------------- */

/* "Ġt he": two names, a space between. */
static sq_status add_line(const sq_vocab *vocab, sq_gguf_string line, uint32_t rank, sq_merges *merges,
                          sq_error *error) {
    char text[2 * SQ_TOKEN_BYTES_MAX];
    const char *space = line.n_bytes > 2 ? memchr(line.text + 1, ' ', (size_t)line.n_bytes - 2) : NULL;
    if (!space || line.n_bytes > 2 * SQ_TOKEN_BYTES_MAX + 1)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.merges: entry %u is not two tokens with a space between; the file is "
                       "damaged",
                       rank);
    size_t left_bytes = (size_t)(space - line.text), right_bytes = (size_t)line.n_bytes - left_bytes - 1;
    size_t n_left = sq_vocab_decode_name(vocab->kind, line.text, left_bytes, text);
    size_t n_right = sq_vocab_decode_name(vocab->kind, space + 1, right_bytes, text + n_left);
    sq_merge merge = {.left = sq_vocab_find(vocab, text, n_left),
                      .right = sq_vocab_find(vocab, text + n_left, n_right),
                      .result = sq_vocab_find(vocab, text, n_left + n_right),
                      .rank = rank};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.merges: entry %u (\"%.*s\"): %s is not in the vocabulary; the file is "
                       "damaged",
                       rank, (int)(line.n_bytes < 80 ? line.n_bytes : 80), line.text,
                       merge.left < 0    ? "the left half"
                       : merge.right < 0 ? "the right half"
                                         : "the result");
    return add(merges, merge, error);
}

static sq_status load_list(const sq_gguf *file, const sq_vocab *vocab, sq_merges *merges, sq_error *error) {
    uint64_t n;
    if (!sq_gguf_get_strings(file, "tokenizer.ggml.merges", &n) || n > SQ_N_TOKENS_MAX)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.merges: expected a list of at most %d strings; the file is damaged",
                       SQ_N_TOKENS_MAX);
    sq_gguf_string *lines = malloc((n + 1) * sizeof *lines);
    if (!lines || !grow(merges, (uint32_t)n + 1)) {
        free(lines);
        return no_memory(error);
    }
    sq_gguf_copy_strings(file, "tokenizer.ggml.merges", lines);
    sq_status status = SQ_OK;
    for (uint32_t rank = 0; rank < n && !status; rank++)
        status = add_line(vocab, lines[rank], rank, merges, error);
    free(lines);
    return status;
}

/* ---- from scores ----------------------------------------------------------------------------- */

typedef struct scored_token {
    float score;
    uint32_t id;
} scored_token;

static int by_falling_score(const void *a, const void *b) {
    float left = ((const scored_token *)a)->score, right = ((const scored_token *)b)->score;
    return (left < right) - (left > right);
}

static sq_status read_scores(const sq_gguf *file, const sq_vocab *vocab, scored_token *tokens, float *scores,
                             sq_error *error) {
    sq_gguf_copy_f32(file, "tokenizer.ggml.scores", scores);
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        if (isnan(scores[i]))
            return sq_fail(error, SQ_ERROR_FORMAT,
                           "tokenizer.ggml.scores: the score of token %u is no number; the file is damaged",
                           i);
        tokens[i] = (scored_token){scores[i], i};
    }
    qsort(tokens, vocab->n_tokens, sizeof *tokens, by_falling_score);
    return SQ_OK;
}

/* Every way to cut the token in two tokens is a merge. */
static sq_status add_splits(const sq_vocab *vocab, uint32_t id, uint32_t rank, sq_merges *merges,
                            sq_error *error) {
    const sq_vocab_token *token = &vocab->tokens[id];
    if (token->type != SQ_TOKEN_NORMAL && token->type != SQ_TOKEN_USER)
        return SQ_OK;
    for (size_t cut = 1; cut < token->text_bytes; cut++) {
        if (((uint8_t)token->text[cut] & 0xC0) == 0x80)
            continue; /* inside a character */
        sq_merge merge = {.result = (sq_token)id, .rank = rank};
        merge.left = sq_vocab_find(vocab, token->text, cut);
        if (merge.left >= 0)
            merge.right = sq_vocab_find(vocab, token->text + cut, token->text_bytes - cut);
        if (merge.left >= 0 && merge.right >= 0 && add(merges, merge, error))
            return SQ_ERROR_MEMORY;
    }
    return SQ_OK;
}

static sq_status load_scores(const sq_gguf *file, const sq_vocab *vocab, sq_merges *merges, sq_error *error) {
    uint64_t n;
    if (!sq_gguf_count_f32(file, "tokenizer.ggml.scores", &n) || n != vocab->n_tokens)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.scores: expected %u numbers, one for each token, as there is no "
                       "tokenizer.ggml.merges; the file is damaged",
                       vocab->n_tokens);
    scored_token *tokens = malloc(n * sizeof *tokens);
    float *scores = malloc(n * sizeof *scores);
    sq_status status = tokens && scores && grow(merges, vocab->n_tokens) ? SQ_OK : no_memory(error);
    if (!status)
        status = read_scores(file, vocab, tokens, scores, error);
    uint32_t rank = 0; /* equal scores have equal rank, so that the leftmost goes first */
    for (uint32_t i = 0; i < n && !status; i++) {
        rank += i > 0 && tokens[i].score < tokens[i - 1].score;
        status = add_splits(vocab, tokens[i].id, rank, merges, error);
    }
    free(tokens);
    free(scores);
    return status;
}

sq_status sq_merges_load(const sq_gguf *file, const sq_vocab *vocab, sq_merges *merges, sq_error *error) {
    if (sq_gguf_has(file, "tokenizer.ggml.merges"))
        return load_list(file, vocab, merges, error);
    if (vocab->kind == SQ_VOCAB_BPE)
        return sq_fail(error, SQ_ERROR_FORMAT, "tokenizer.ggml.merges: missing; the file is damaged");
    return load_scores(file, vocab, merges, error);
}

void sq_merges_free(sq_merges *merges) {
    free(merges->items);
    free(merges->slots);
}

/* ---- merging --------------------------------------------------------------------------------- */

bool sq_merger_start(sq_merger *merger, size_t n) {
    merger->n_symbols = merger->n_heap = 0;
    if (n <= merger->capacity)
        return true;
    size_t capacity = n + n / 2 + 64;
    sq_symbol *symbols = realloc(merger->symbols, capacity * sizeof *symbols);
    if (symbols)
        merger->symbols = symbols;
    /* n - 1 pairs at the start; each merge takes one out and puts at most two in. */
    sq_candidate *heap = realloc(merger->heap, 2 * capacity * sizeof *heap);
    if (heap)
        merger->heap = heap;
    if (!symbols || !heap)
        return false;
    merger->capacity = capacity;
    return true;
}

void sq_merger_free(sq_merger *merger) {
    free(merger->symbols);
    free(merger->heap);
}

static void heap_push(sq_merger *merger, sq_candidate item) {
    sq_candidate *heap = merger->heap;
    size_t i = merger->n_heap++;
    for (; i > 0 && item.key < heap[(i - 1) / 2].key; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
}

static sq_candidate heap_pop(sq_merger *merger) {
    sq_candidate *heap = merger->heap, top = heap[0], last = heap[--merger->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < merger->n_heap; i = child) {
        if (child + 1 < merger->n_heap && heap[child + 1].key < heap[child].key)
            child++;
        if (last.key <= heap[child].key)
            break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Puts the merge of symbol `left` and its successor, if there is one, on the heap. */
static void consider(sq_merger *merger, const sq_merges *merges, uint32_t left) {
    const sq_symbol *symbols = merger->symbols;
    if (left == NO_SYMBOL || symbols[left].next == NO_SYMBOL)
        return;
    uint32_t index = *find_slot(merges, symbols[left].token, symbols[symbols[left].next].token);
    if (index)
        heap_push(merger, (sq_candidate){(uint64_t)merges->items[index - 1].rank << 32 | left, index - 1});
}

void sq_merger_run(sq_merger *merger, const sq_merges *merges) {
    sq_symbol *symbols = merger->symbols;
    size_t n = merger->n_symbols;
    for (size_t i = 0; i < n; i++) {
        symbols[i].prev = i > 0 ? (uint32_t)i - 1 : NO_SYMBOL;
        symbols[i].next = i + 1 < n ? (uint32_t)i + 1 : NO_SYMBOL;
    }
    for (size_t i = 0; i + 1 < n; i++)
        consider(merger, merges, (uint32_t)i);
    while (merger->n_heap > 0) {
        sq_candidate candidate = heap_pop(merger);
        const sq_merge *merge = &merges->items[candidate.merge];
        uint32_t left = (uint32_t)candidate.key, right = symbols[left].next;
        /* Out of date: one of the two has merged with another neighbour since. */
        if (symbols[left].token != merge->left || right == NO_SYMBOL || symbols[right].token != merge->right)
            continue;
        symbols[left].token = merge->result;
        symbols[left].next = symbols[right].next;
        if (symbols[right].next != NO_SYMBOL)
            symbols[symbols[right].next].prev = left;
        symbols[right].token = -1;
        consider(merger, merges, symbols[left].prev);
        consider(merger, merges, left);
    }
    size_t kept = 0;
    for (uint32_t i = n ? 0 : NO_SYMBOL; i != NO_SYMBOL;) {
        uint32_t next = symbols[i].next;
        symbols[kept++].token = symbols[i].token;
        i = next;
    }
    merger->n_symbols = kept;
}
