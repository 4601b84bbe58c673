#include "tokenizer.h"

#include <stdlib.h>

#include "../status.h"
#include "encode.h"

struct sq_tokenizer {
    sq_vocab vocab;
    sq_merges merges;
    sq_splitter splitter;
    sq_space_prefix prefix;
    sq_nfc nfc;
    bool ignore_merges;
    bool add_bos;
    sq_token bos, eos;
    bool *stops;                      /* [n_tokens]: tokens that end an answer */
    bool *strips_left, *strips_right; /* [n_tokens]: special tokens that swallow white space beside them */
};

/* Positions in a text are 32 bits wide. */
#define TEXT_BYTES_MAX ((size_t)1 << 30)

/* ---- loading --------------------------------------------------------------------------------- */

static sq_status load_id(const sq_gguf *file, const char *key, const sq_vocab *vocab, sq_token *token,
                         sq_error *error) {
    *token = -1;
    if (!sq_gguf_has(file, key))
        return SQ_OK;
    uint32_t id;
    if (!sq_gguf_get_u32(file, key, &id) || id >= vocab->n_tokens)
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected the id of one of %u tokens; the file is damaged",
                       key, vocab->n_tokens);
    *token = (sq_token)id;
    return SQ_OK;
}

/* Sets those of flags [n_vocab] whose ids the file lists. */
static sq_status load_flagged(const sq_gguf *file, const char *key, uint32_t n_vocab, bool *flags,
                              sq_error *error) {
    if (!sq_gguf_has(file, key))
        return SQ_OK;
    uint64_t n;
    if (!sq_gguf_count_i32(file, key, &n) || n > n_vocab)
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected a list of token ids; the file is damaged", key);
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    if (!ids)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a vocabulary of %u tokens", n_vocab);
    sq_gguf_copy_i32(file, key, ids);
    sq_status status = SQ_OK;
    for (uint64_t i = 0; i < n && !status; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= n_vocab)
            status = sq_fail(error, SQ_ERROR_FORMAT, "%s: %d, but there are %u tokens; the file is damaged",
                             key, ids[i], n_vocab);
        else
            flags[ids[i]] = true;
    }
    free(ids);
    return status;
}

static sq_status load_token_flags(const sq_gguf *file, sq_tokenizer *tokenizer, sq_error *error) {
    uint32_t n_vocab = tokenizer->vocab.n_tokens;
    tokenizer->stops = calloc(n_vocab, sizeof *tokenizer->stops);
    tokenizer->strips_left = calloc(n_vocab, sizeof *tokenizer->strips_left);
    tokenizer->strips_right = calloc(n_vocab, sizeof *tokenizer->strips_right);
    if (!tokenizer->stops || !tokenizer->strips_left || !tokenizer->strips_right)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a vocabulary of %u tokens", n_vocab);
    if (tokenizer->eos >= 0)
        tokenizer->stops[tokenizer->eos] = true;
    const struct {
        const char *key;
        bool *flags;
    } lists[] = {{"squeezellm.stop_token_ids", tokenizer->stops},
                 {"squeezellm.tokenizer.strip_left_ids", tokenizer->strips_left},
                 {"squeezellm.tokenizer.strip_right_ids", tokenizer->strips_right}};
    sq_status status = SQ_OK;
    for (size_t i = 0; i < sizeof lists / sizeof *lists && !status; i++)
        status = load_flagged(file, lists[i].key, n_vocab, lists[i].flags, error);
    return status;
}

static void load_flags(const sq_gguf *file, sq_tokenizer *tokenizer) {
    tokenizer->prefix.add = tokenizer->vocab.kind == SQ_VOCAB_SPM; /* GGUF's default */
    sq_gguf_get_bool(file, "tokenizer.ggml.add_space_prefix", &tokenizer->prefix.add);
    if (tokenizer->vocab.kind == SQ_VOCAB_BPE)
        tokenizer->prefix.add = false;
    sq_gguf_get_bool(file, "squeezellm.tokenizer.prefix_at_start", &tokenizer->prefix.at_start);
    sq_gguf_get_bool(file, "squeezellm.tokenizer.prefix_if_missing", &tokenizer->prefix.if_missing);
    sq_gguf_get_bool(file, "squeezellm.tokenizer.ignore_merges", &tokenizer->ignore_merges);
    tokenizer->add_bos = tokenizer->vocab.kind == SQ_VOCAB_SPM;
    sq_gguf_get_bool(file, "tokenizer.ggml.add_bos_token", &tokenizer->add_bos);
}

static sq_status load(const sq_gguf *file, uint32_t n_vocab, sq_tokenizer *tokenizer, sq_error *error) {
    sq_status status = sq_vocab_load(file, &tokenizer->vocab, error);
    if (!status && n_vocab && tokenizer->vocab.n_tokens != n_vocab)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tokenizer.ggml.tokens: %u tokens, but the model has %u; the file is damaged",
                       tokenizer->vocab.n_tokens, n_vocab);
    if (!status)
        status = sq_merges_load(file, &tokenizer->vocab, &tokenizer->merges, error);
    if (!status)
        status = sq_splitter_load(file, &tokenizer->splitter, error);
    if (!status)
        status = sq_nfc_load(file, &tokenizer->nfc, error);
    if (!status)
        status = load_id(file, "tokenizer.ggml.bos_token_id", &tokenizer->vocab, &tokenizer->bos, error);
    if (!status)
        status = load_id(file, "tokenizer.ggml.eos_token_id", &tokenizer->vocab, &tokenizer->eos, error);
    if (!status)
        status = load_token_flags(file, tokenizer, error);
    load_flags(file, tokenizer);
    return status;
}

sq_status sq_tokenizer_load(const sq_gguf *file, uint32_t n_vocab, sq_tokenizer **out, sq_error *error) {
    *out = NULL;
    if (!sq_gguf_has(file, "tokenizer.ggml.model"))
        return SQ_OK;
    sq_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a tokenizer");
    sq_status status = load(file, n_vocab, tokenizer, error);
    if (status) {
        sq_tokenizer_free(tokenizer);
        return status;
    }
    *out = tokenizer;
    return SQ_OK;
}

void sq_tokenizer_free(sq_tokenizer *tokenizer) {
    if (!tokenizer)
        return;
    sq_splitter_free(&tokenizer->splitter);
    sq_merges_free(&tokenizer->merges);
    sq_nfc_free(&tokenizer->nfc);
    sq_vocab_free(&tokenizer->vocab);
    free(tokenizer->stops);
    free(tokenizer->strips_left);
    free(tokenizer->strips_right);
    free(tokenizer);
}

/* ---- encoding -------------------------------------------------------------------------------- */

sq_status sq_encoder_no_memory(size_t n_bytes, sq_error *error) {
    return sq_fail(error, SQ_ERROR_MEMORY, "no memory to tokenize %zu bytes of text", n_bytes);
}

sq_status sq_encoder_reserve(sq_encoder *encoder, size_t n_bytes, sq_error *error) {
    if (n_bytes <= encoder->run_capacity)
        return SQ_OK;
    size_t capacity = n_bytes + n_bytes / 2;
    char *run = realloc(encoder->run, capacity);
    if (!run)
        return sq_encoder_no_memory(n_bytes, error);
    encoder->run = run;
    encoder->run_capacity = capacity;
    return SQ_OK;
}

static void emit(sq_encoder *encoder, sq_token token) {
    if (encoder->n_tokens < encoder->capacity)
        encoder->tokens[encoder->n_tokens] = token;
    encoder->n_tokens++;
}

static sq_status encode_piece(void *context, const char *piece, size_t n_bytes, sq_error *error) {
    sq_encoder *encoder = context;
    sq_token whole = encoder->ignore_merges ? sq_vocab_find(encoder->vocab, piece, n_bytes) : -1;
    if (whole >= 0) {
        emit(encoder, whole);
        return SQ_OK;
    }
    sq_status status = encoder->vocab->kind == SQ_VOCAB_BPE
                           ? sq_encode_bpe_piece(encoder, piece, n_bytes, error)
                           : sq_encode_spm_piece(encoder, piece, n_bytes, error);
    if (status)
        return status;
    sq_merger_run(&encoder->merger, encoder->merges);
    for (size_t i = 0; i < encoder->merger.n_symbols; i++)
        emit(encoder, encoder->merger.symbols[i].token);
    return SQ_OK;
}

/* Text without control tokens. */
static sq_status encode_run(sq_encoder *encoder, const char *text, size_t n_bytes, bool at_start,
                            sq_error *error) {
    if (n_bytes == 0)
        return SQ_OK;
    sq_status status = SQ_OK;
    if (encoder->vocab->kind == SQ_VOCAB_BPE && encoder->nfc->n > 0) {
        status = sq_encode_nfc(encoder, text, n_bytes, &n_bytes, error);
        text = encoder->run;
    } else if (encoder->vocab->kind == SQ_VOCAB_SPM) {
        status = sq_encoder_reserve(encoder, n_bytes + 1, error);
        if (!status)
            n_bytes = sq_spm_normalize(encoder, text, n_bytes, at_start, encoder->run);
        text = encoder->run;
    }
    if (status)
        return status;
    if (encoder->splitter->n == 0)
        return encode_piece(encoder, text, n_bytes, error);
    return sq_split(encoder->splitter, &encoder->work, text, n_bytes, encode_piece, encoder, error);
}

/* Which bytes of the joined text may form control tokens. */
typedef struct trust {
    const sq_text_part *parts;
    size_t n_parts, part; /* `part` is the one that holds `pos` or a later one */
    size_t part_start;
} trust;

/* Bytes from `pos` on, which never falls, that belong to special parts without a break. */
static size_t trusted_bytes(trust *trust, size_t pos) {
    while (trust->part < trust->n_parts && trust->part_start + trust->parts[trust->part].n_bytes <= pos)
        trust->part_start += trust->parts[trust->part++].n_bytes;
    size_t end = trust->part_start;
    for (size_t i = trust->part; i < trust->n_parts && trust->parts[i].special; i++) {
        end += trust->parts[i].n_bytes;
        if (end - pos > SQ_TOKEN_BYTES_MAX)
            break;
    }
    return end > pos ? end - pos : 0;
}

static size_t leading_space(const char *text, size_t n_bytes) {
    size_t n = 0, length;
    for (uint32_t point; (length = sq_utf8_read(text + n, n_bytes - n, &point)) && sq_is_white_space(point);)
        n += length;
    return n;
}

static size_t trailing_space(const char *text, size_t n_bytes) {
    size_t n = 0, length;
    for (uint32_t point; (length = sq_utf8_read_last(text, n_bytes - n, &point)) && sq_is_white_space(point);)
        n += length;
    return n;
}

static sq_status encode_joined(sq_encoder *encoder, const sq_tokenizer *tokenizer, const char *text,
                               size_t n_bytes, trust trust, sq_error *error) {
    const sq_vocab *vocab = encoder->vocab;
    size_t run = 0;
    for (size_t pos = 0; pos < n_bytes;) {
        if (!vocab->special_starts[(uint8_t)text[pos]]) {
            pos++;
            continue;
        }
        sq_token token = sq_vocab_match_special(vocab, text + pos, n_bytes - pos, trusted_bytes(&trust, pos));
        if (token < 0) {
            pos++;
            continue;
        }
        size_t left = tokenizer->strips_left[token] ? trailing_space(text + run, pos - run) : 0;
        sq_status status = encode_run(encoder, text + run, pos - run - left, run == 0, error);
        if (status)
            return status;
        emit(encoder, token);
        pos += vocab->tokens[token].name_bytes;
        pos += tokenizer->strips_right[token] ? leading_space(text + pos, n_bytes - pos) : 0;
        run = pos;
    }
    return encode_run(encoder, text + run, n_bytes - run, run == 0, error);
}

static sq_status join(const sq_text_part *parts, size_t n_parts, char **text, size_t *n_bytes,
                      sq_error *error) {
    size_t total = 0;
    for (size_t i = 0; i < n_parts; i++) {
        if (parts[i].n_bytes > TEXT_BYTES_MAX - total)
            return sq_fail(error, SQ_ERROR_ARGUMENT,
                           "the text has more than %zu bytes; tokenize it in smaller pieces", TEXT_BYTES_MAX);
        total += parts[i].n_bytes;
    }
    *n_bytes = total;
    *text = malloc(total + 1);
    if (!*text)
        return sq_encoder_no_memory(total, error);
    char *end = *text;
    for (size_t i = 0; i < n_parts; i++) {
        if (parts[i].n_bytes)
            memcpy(end, parts[i].text, parts[i].n_bytes);
        end += parts[i].n_bytes;
    }
    return SQ_OK;
}

sq_status sq_tokenizer_encode(const sq_tokenizer *tokenizer, const sq_text_part *parts, size_t n_parts,
                              int flags, sq_token *tokens, size_t capacity, size_t *n_tokens,
                              sq_error *error) {
    char *text = NULL;
    size_t n_bytes = 0;
    sq_status status = join(parts, n_parts, &text, &n_bytes, error);
    if (status)
        return status;
    sq_encoder encoder = {.vocab = &tokenizer->vocab,
                          .merges = &tokenizer->merges,
                          .splitter = &tokenizer->splitter,
                          .prefix = &tokenizer->prefix,
                          .nfc = &tokenizer->nfc,
                          .ignore_merges = tokenizer->ignore_merges,
                          .continues = flags & SQ_TOKENIZE_CONTINUE,
                          .tokens = tokens,
                          .capacity = capacity};
    if (!sq_split_work_create(&encoder.work))
        status = sq_encoder_no_memory(n_bytes, error);
    if (!status && (flags & SQ_TOKENIZE_BOS) && tokenizer->add_bos && tokenizer->bos >= 0)
        emit(&encoder, tokenizer->bos);
    if (!status)
        status = encode_joined(&encoder, tokenizer, text, n_bytes,
                               (trust){.parts = parts, .n_parts = n_parts}, error);
    if (!status)
        *n_tokens = encoder.n_tokens;
    sq_split_work_free(&encoder.work);
    sq_merger_free(&encoder.merger);
    free(encoder.run);
    free(text);
    return status;
}

/* ---- decoding -------------------------------------------------------------------------------- */

static bool is_hidden(const sq_vocab_token *token) {
    return token->type == SQ_TOKEN_CONTROL || token->type == SQ_TOKEN_UNKNOWN ||
           token->type == SQ_TOKEN_UNUSED;
}

const char *sq_tokenizer_text(const sq_tokenizer *tokenizer, sq_token token, bool special, size_t *n_bytes) {
    *n_bytes = 0;
    if (token < 0 || (uint32_t)token >= tokenizer->vocab.n_tokens)
        return NULL;
    const sq_vocab_token *entry = &tokenizer->vocab.tokens[token];
    if (special || !is_hidden(entry))
        *n_bytes = entry->text_bytes;
    return entry->text;
}

sq_status sq_tokenizer_decode(const sq_tokenizer *tokenizer, const sq_token *tokens, size_t n_tokens,
                              bool special, char *text, size_t capacity, size_t *n_bytes, sq_error *error) {
    size_t n = 0;
    bool at_start = tokenizer->prefix.add; /* the space put before a text goes away again */
    for (size_t i = 0; i < n_tokens; i++) {
        size_t length;
        const char *piece = sq_tokenizer_text(tokenizer, tokens[i], special, &length);
        if (!piece)
            return sq_fail(error, SQ_ERROR_ARGUMENT, "token %d at position %zu: expected an id from 0 to %u",
                           tokens[i], i, tokenizer->vocab.n_tokens - 1);
        if (at_start && length > 0) {
            at_start = false;
            if (*piece == ' ')
                piece++, length--;
        }
        if (n < capacity && length > 0)
            memcpy(text + n, piece, length < capacity - n ? length : capacity - n);
        n += length;
    }
    *n_bytes = n;
    return SQ_OK;
}

/* ---- what tokens are ------------------------------------------------------------------------- */

uint32_t sq_tokenizer_n_vocab(const sq_tokenizer *tokenizer) {
    return tokenizer->vocab.n_tokens;
}

sq_token sq_tokenizer_bos(const sq_tokenizer *tokenizer) {
    return tokenizer->bos;
}

sq_token sq_tokenizer_eos(const sq_tokenizer *tokenizer) {
    return tokenizer->eos;
}

bool sq_tokenizer_is_stop(const sq_tokenizer *tokenizer, sq_token token) {
    return token >= 0 && (uint32_t)token < tokenizer->vocab.n_tokens && tokenizer->stops[token];
}

bool sq_tokenizer_is_control(const sq_tokenizer *tokenizer, sq_token token) {
    return token >= 0 && (uint32_t)token < tokenizer->vocab.n_tokens &&
           is_hidden(&tokenizer->vocab.tokens[token]);
}
