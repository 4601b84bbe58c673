#include "vocab.h"

#include <stdlib.h>
#include <string.h>

#include "../status.h"
#include "utf8.h"

static bool is_special(uint8_t type) {
    return type == SQ_TOKEN_CONTROL || type == SQ_TOKEN_USER || type == SQ_TOKEN_UNKNOWN;
}

static bool is_word(uint8_t type) {
    return type == SQ_TOKEN_NORMAL || type == SQ_TOKEN_USER;
}

/* ---- texts ----------------------------------------------------------------------------------- */

/* GPT-2's printable stand-ins (bytes_to_unicode): the byte a character stands for, or -1. Bytes that
 * Latin-1 prints stand for themselves; the other 68 are U+0100 … U+0143 in ascending order. */
static int byte_of_character(uint32_t point) {
    bool itself = (point >= 0x21 && point <= 0x7E) || (point >= 0xA1 && point <= 0xFF && point != 0xAD);
    if (itself)
        return (int)point;
    if (point >= 0x100 && point <= 0x120)
        return (int)point - 0x100; /* 00 … 20 */
    if (point >= 0x121 && point <= 0x142)
        return (int)point - 0x121 + 0x7F; /* 7F … A0 */
    return point == 0x143 ? 0xAD : -1;
}

/* A name with a character that stands for no byte is not in the alphabet: it is its own text. */
static size_t decode_byte_level(const char *name, size_t n_bytes, char *text) {
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        uint32_t point;
        size_t length = sq_utf8_read(name + i, n_bytes - i, &point);
        int byte = length ? byte_of_character(point) : -1;
        if (byte < 0) {
            memcpy(text, name, n_bytes);
            return n_bytes;
        }
        text[n++] = (char)byte;
        i += length;
    }
    return n;
}

size_t sq_vocab_decode_name(sq_vocab_kind kind, const char *name, size_t n_bytes, char *text) {
    if (kind == SQ_VOCAB_BPE)
        return decode_byte_level(name, n_bytes, text);
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        bool space = n_bytes - i >= 3 && memcmp(name + i, "\xE2\x96\x81", 3) == 0; /* U+2581 */
        text[n++] = space ? ' ' : name[i];
        i += space ? 3 : 1;
    }
    return n;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0x0A>" is 10; anything else -1. */
static int byte_of_name(const sq_vocab_token *token) {
    const char *name = token->name;
    if (token->name_bytes != 6 || memcmp(name, "<0x", 3) != 0 || name[5] != '>')
        return -1;
    int high = hex_digit(name[3]), low = hex_digit(name[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* ---- finding --------------------------------------------------------------------------------- */

static uint32_t hash_text(const char *text, size_t n_bytes) {
    uint64_t hash = sq_hash_start();
    for (size_t i = 0; i < n_bytes; i++)
        hash = sq_hash_byte(hash, text[i]);
    return sq_hash_end(hash);
}

typedef enum map_key { BY_TEXT, BY_NAME } map_key;

/* The slot that holds the token with this key, or the free one where it belongs. */
static sq_vocab_slot *map_slot(const sq_vocab *vocab, const sq_vocab_map *map, map_key by, const char *key,
                               size_t n_bytes, uint32_t hash) {
    uint32_t i = hash & map->mask;
    for (; map->slots[i].id; i = (i + 1) & map->mask) {
        if (map->slots[i].hash != hash)
            continue;
        const sq_vocab_token *token = &vocab->tokens[map->slots[i].id - 1];
        size_t length = by == BY_NAME ? token->name_bytes : token->text_bytes;
        if (length == n_bytes && memcmp(by == BY_NAME ? token->name : token->text, key, n_bytes) == 0)
            break;
    }
    return &map->slots[i];
}

sq_token sq_vocab_find(const sq_vocab *vocab, const char *text, size_t n_bytes) {
    uint32_t hash = hash_text(text, n_bytes);
    return (sq_token)map_slot(vocab, &vocab->words, BY_TEXT, text, n_bytes, hash)->id - 1;
}

sq_token sq_vocab_match_special(const sq_vocab *vocab, const char *text, size_t n_bytes,
                                size_t trusted_bytes) {
    sq_token best = -1;
    if (n_bytes == 0 || !vocab->special_starts[(uint8_t)text[0]])
        return best;
    size_t limit = n_bytes < vocab->special_bytes_max ? n_bytes : vocab->special_bytes_max;
    uint64_t hash = sq_hash_start();
    for (size_t length = 1; length <= limit; length++) {
        hash = sq_hash_byte(hash, text[length - 1]);
        if (!vocab->special_lengths[length])
            continue;
        const sq_vocab_slot *slot =
            map_slot(vocab, &vocab->specials, BY_NAME, text, length, sq_hash_end(hash));
        sq_token token = (sq_token)slot->id - 1;
        if (token >= 0 && (length <= trusted_bytes || vocab->tokens[token].type == SQ_TOKEN_USER))
            best = token;
    }
    return best;
}

/* ---- loading --------------------------------------------------------------------------------- */

static sq_status load_names(const sq_gguf *file, sq_vocab *vocab, sq_error *error) {
    uint64_t n;
    if (!sq_gguf_get_strings(file, "tokenizer.ggml.tokens", &n) || n == 0)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.tokens: no list of tokens; the file is damaged");
    if (n > SQ_N_TOKENS_MAX)
        return sq_fail(error, SQ_ERROR_FORMAT, "tokenizer.ggml.tokens: %llu tokens, at most %d can be used",
                       (unsigned long long)n, SQ_N_TOKENS_MAX);
    vocab->n_tokens = (uint32_t)n;
    vocab->tokens = calloc(n, sizeof *vocab->tokens);
    sq_gguf_string *names = calloc(n, sizeof *names);
    if (!vocab->tokens || !names) {
        free(names);
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a vocabulary of %u tokens", vocab->n_tokens);
    }
    sq_gguf_copy_strings(file, "tokenizer.ggml.tokens", names);
    sq_status status = SQ_OK;
    for (uint32_t i = 0; i < n && !status; i++) {
        if (names[i].n_bytes == 0 || names[i].n_bytes > SQ_TOKEN_BYTES_MAX)
            status = sq_fail(error, SQ_ERROR_FORMAT,
                             "tokenizer.ggml.tokens: token %u has %llu bytes, expected 1 to %d; the file is "
                             "damaged",
                             i, (unsigned long long)names[i].n_bytes, SQ_TOKEN_BYTES_MAX);
        vocab->tokens[i].name = names[i].text;
        vocab->tokens[i].name_bytes = (uint16_t)names[i].n_bytes;
    }
    free(names);
    return status;
}

static sq_status load_types(const sq_gguf *file, sq_vocab *vocab, sq_error *error) {
    uint64_t n;
    if (!sq_gguf_has(file, "tokenizer.ggml.token_type")) {
        for (uint32_t i = 0; i < vocab->n_tokens; i++)
            vocab->tokens[i].type = SQ_TOKEN_NORMAL;
        return SQ_OK;
    }
    if (!sq_gguf_count_i32(file, "tokenizer.ggml.token_type", &n) || n != vocab->n_tokens)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.token_type: expected %u numbers, one for each token; the file is "
                       "damaged",
                       vocab->n_tokens);
    int32_t *types = malloc(n * sizeof *types);
    if (!types)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a vocabulary of %u tokens", vocab->n_tokens);
    sq_gguf_copy_i32(file, "tokenizer.ggml.token_type", types);
    sq_status status = SQ_OK;
    for (uint32_t i = 0; i < n && !status; i++) {
        if (types[i] < SQ_TOKEN_NORMAL || types[i] > SQ_TOKEN_BYTE)
            status = sq_fail(error, SQ_ERROR_FORMAT,
                             "tokenizer.ggml.token_type: token %u has type %d, expected 1 to 6; the file is "
                             "damaged",
                             i, types[i]);
        vocab->tokens[i].type = (uint8_t)types[i];
    }
    free(types);
    return status;
}

static sq_status load_texts(sq_vocab *vocab, sq_error *error) {
    size_t n_bytes = 0;
    for (uint32_t i = 0; i < vocab->n_tokens; i++)
        n_bytes += vocab->tokens[i].name_bytes;
    char *text = vocab->texts = malloc(n_bytes);
    if (!text)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a vocabulary of %u tokens", vocab->n_tokens);
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        sq_vocab_token *token = &vocab->tokens[i];
        token->text = text;
        int byte = token->type == SQ_TOKEN_BYTE ? byte_of_name(token) : -1;
        if (token->type == SQ_TOKEN_BYTE && byte < 0)
            return sq_fail(error, SQ_ERROR_FORMAT,
                           "tokenizer.ggml.tokens: token %u is a byte, but its name is not like <0x0A>; the "
                           "file is damaged",
                           i);
        /* Byte-level vocabularies spell special tokens plainly. */
        if (byte >= 0) {
            *text = (char)byte;
            token->text_bytes = 1;
        } else if (vocab->kind == SQ_VOCAB_BPE && is_special(token->type)) {
            memcpy(text, token->name, token->name_bytes);
            token->text_bytes = token->name_bytes;
        } else {
            token->text_bytes =
                (uint16_t)sq_vocab_decode_name(vocab->kind, token->name, token->name_bytes, text);
        }
        text += token->text_bytes;
    }
    return SQ_OK;
}

static sq_status map_alloc(const sq_vocab *vocab, sq_vocab_map *map, sq_error *error) {
    uint32_t capacity = sq_hash_capacity(vocab->n_tokens);
    map->mask = capacity - 1;
    map->slots = calloc(capacity, sizeof *map->slots);
    return map->slots
               ? SQ_OK
               : sq_fail(error, SQ_ERROR_MEMORY, "no memory for a vocabulary of %u tokens", vocab->n_tokens);
}

static sq_status duplicate(uint32_t first, uint32_t second, sq_error *error) {
    return sq_fail(error, SQ_ERROR_FORMAT,
                   "tokenizer.ggml.tokens: tokens %u and %u are the same text; the file is damaged", first,
                   second);
}

static sq_status map_words(sq_vocab *vocab, sq_error *error) {
    if (map_alloc(vocab, &vocab->words, error))
        return SQ_ERROR_MEMORY;
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        const sq_vocab_token *token = &vocab->tokens[i];
        if (!is_word(token->type))
            continue;
        uint32_t hash = hash_text(token->text, token->text_bytes);
        sq_vocab_slot *slot = map_slot(vocab, &vocab->words, BY_TEXT, token->text, token->text_bytes, hash);
        if (!slot->id) {
            *slot = (sq_vocab_slot){i + 1, hash};
            continue;
        }
        const sq_vocab_token *other = &vocab->tokens[slot->id - 1];
        /* Two names may read as one text ("é" plain and as the byte E9): then the normal token is the
         * word. One name twice is damage. */
        if (other->name_bytes == token->name_bytes && !memcmp(other->name, token->name, token->name_bytes))
            return duplicate(slot->id - 1, i, error);
        if (token->type == SQ_TOKEN_NORMAL && other->type != SQ_TOKEN_NORMAL)
            slot->id = i + 1;
    }
    return SQ_OK;
}

static sq_status map_specials(sq_vocab *vocab, sq_error *error) {
    if (map_alloc(vocab, &vocab->specials, error))
        return SQ_ERROR_MEMORY;
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        const sq_vocab_token *token = &vocab->tokens[i];
        if (!is_special(token->type))
            continue;
        uint32_t hash = hash_text(token->name, token->name_bytes);
        sq_vocab_slot *slot =
            map_slot(vocab, &vocab->specials, BY_NAME, token->name, token->name_bytes, hash);
        if (slot->id)
            return duplicate(slot->id - 1, i, error);
        *slot = (sq_vocab_slot){i + 1, hash};
        vocab->special_starts[(uint8_t)token->name[0]] = true;
        vocab->special_lengths[token->name_bytes] = true;
        if (token->name_bytes > vocab->special_bytes_max)
            vocab->special_bytes_max = token->name_bytes;
    }
    return SQ_OK;
}

static sq_status load_unknown(const sq_gguf *file, sq_vocab *vocab, sq_error *error) {
    vocab->unknown = -1;
    uint32_t id;
    if (!sq_gguf_get_u32(file, "tokenizer.ggml.unknown_token_id", &id))
        return SQ_OK;
    if (id >= vocab->n_tokens)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.unknown_token_id: %u, but there are %u tokens; the file is damaged",
                       id, vocab->n_tokens);
    vocab->unknown = (sq_token)id;
    return SQ_OK;
}

static sq_status map_bytes(sq_vocab *vocab, sq_error *error) {
    for (int byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        vocab->bytes[byte] = vocab->kind == SQ_VOCAB_BPE ? sq_vocab_find(vocab, &text, 1) : -1;
    }
    int n_found = 0;
    for (uint32_t i = 0; i < vocab->n_tokens; i++) {
        if (vocab->tokens[i].type != SQ_TOKEN_BYTE || vocab->kind == SQ_VOCAB_BPE)
            continue;
        sq_token *byte = &vocab->bytes[(uint8_t)vocab->tokens[i].text[0]];
        if (*byte >= 0)
            return duplicate((uint32_t)*byte, i, error);
        *byte = (sq_token)i;
        n_found++;
    }
    if (vocab->kind == SQ_VOCAB_SPM && n_found < 256 && vocab->unknown < 0)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.tokens: %d of the 256 byte tokens <0x00> … <0xFF>, and no "
                       "tokenizer.ggml.unknown_token_id; the file is damaged",
                       n_found);
    return SQ_OK;
}

sq_status sq_vocab_load(const sq_gguf *file, sq_vocab *vocab, sq_error *error) {
    const char *model = sq_gguf_get_string(file, "tokenizer.ggml.model");
    if (!model)
        return sq_fail(error, SQ_ERROR_FORMAT, "tokenizer.ggml.model: no string; the file is damaged");
    if (strcmp(model, "llama") != 0 && strcmp(model, "gpt2") != 0)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                       "tokenizer.ggml.model: \"%.40s\"; this version knows \"llama\" (SentencePiece BPE) "
                       "and \"gpt2\" (byte-level BPE)",
                       model);
    vocab->kind = strcmp(model, "gpt2") == 0 ? SQ_VOCAB_BPE : SQ_VOCAB_SPM;
    sq_status status = load_names(file, vocab, error);
    if (!status)
        status = load_types(file, vocab, error);
    if (!status)
        status = load_texts(vocab, error);
    if (!status)
        status = map_words(vocab, error);
    if (!status)
        status = map_specials(vocab, error);
    if (!status)
        status = load_unknown(file, vocab, error);
    if (!status)
        status = map_bytes(vocab, error);
    return status;
}

void sq_vocab_free(sq_vocab *vocab) {
    free(vocab->tokens);
    free(vocab->texts);
    free(vocab->words.slots);
    free(vocab->specials.slots);
}
