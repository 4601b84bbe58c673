/* The vocabulary: tokens, their texts, and how to find them. Internal to the tokenizer. */
#ifndef SQ_VOCAB_H
#define SQ_VOCAB_H

#include "../gguf.h"

/* GGUF's token types. */
enum {
    SQ_TOKEN_NORMAL = 1,
    SQ_TOKEN_UNKNOWN = 2,
    SQ_TOKEN_CONTROL = 3,
    SQ_TOKEN_USER = 4,
    SQ_TOKEN_UNUSED = 5,
    SQ_TOKEN_BYTE = 6
};

enum { SQ_TOKEN_BYTES_MAX = 1024, SQ_N_TOKENS_MAX = 1 << 24 };

typedef enum sq_vocab_kind {
    SQ_VOCAB_SPM, /* SentencePiece BPE: characters, U+2581 for a space, <0xXX> for bytes */
    SQ_VOCAB_BPE  /* byte-level BPE: bytes, written as GPT-2's printable characters */
} sq_vocab_kind;

typedef struct sq_vocab_token {
    const char *name; /* as the file spells it; a view into the file */
    const char *text; /* as it appears in running text; in sq_vocab.texts */
    uint16_t name_bytes;
    uint16_t text_bytes;
    uint8_t type;
} sq_vocab_token;

/* Open addressing. The hash beside the id spares most looks at other tokens. */
typedef struct sq_vocab_slot {
    uint32_t id; /* the token's + 1; 0: free */
    uint32_t hash;
} sq_vocab_slot;

typedef struct sq_vocab_map {
    sq_vocab_slot *slots;
    uint32_t mask;
} sq_vocab_map;

typedef struct sq_vocab {
    sq_vocab_kind kind;
    uint32_t n_tokens;
    sq_vocab_token *tokens;
    char *texts;
    sq_vocab_map words;                           /* by text: what merging may produce */
    sq_vocab_map specials;                        /* by name: control, unknown and user-defined tokens */
    bool special_starts[256];                     /* first bytes of their names */
    bool special_lengths[SQ_TOKEN_BYTES_MAX + 1]; /* in bytes, of their names */
    size_t special_bytes_max;
    sq_token bytes[256]; /* the token of a single byte, or -1 */
    sq_token unknown;    /* what stands for text that has no token, or -1: it is left out */
} sq_vocab;

sq_status sq_vocab_load(const sq_gguf *file, sq_vocab *vocab, sq_error *error);
void sq_vocab_free(sq_vocab *vocab);

/* The token with this text that merging may use, or -1. */
sq_token sq_vocab_find(const sq_vocab *vocab, const char *text, size_t n_bytes);
/* The longest control (where it fits in `trusted_bytes`) or user-defined token that `text` starts with,
 * or -1. */
sq_token sq_vocab_match_special(const sq_vocab *vocab, const char *text, size_t n_bytes,
                                size_t trusted_bytes);
/* Writes the running text of a token's name, at most n_bytes, to `text`; returns its length. */
size_t sq_vocab_decode_name(sq_vocab_kind kind, const char *name, size_t n_bytes, char *text);

/* FNV-1a, a byte at a time. */
static inline uint64_t sq_hash_byte(uint64_t hash, char byte) {
    return (hash ^ (uint8_t)byte) * 0x100000001B3u;
}
static inline uint64_t sq_hash_start(void) {
    return 0xCBF29CE484222325u;
}
static inline uint32_t sq_hash_end(uint64_t hash) {
    return (uint32_t)(hash ^ hash >> 32);
}

/* Slots of a hash table for n entries: a power of two, at most half full. */
static inline uint32_t sq_hash_capacity(uint32_t n) {
    uint32_t capacity = 16;
    while (capacity < 2 * n)
        capacity *= 2;
    return capacity;
}

#endif
