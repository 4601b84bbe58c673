#include "encode.h"

/* A character that is a token; else its bytes' tokens; else the unknown token, once for a run of such
 * characters; else nothing. */
static void push_character(sq_encoder *encoder, const char *text, size_t n_bytes, bool *after_unknown) {
    const sq_vocab *vocab = encoder->vocab;
    sq_token token = sq_vocab_find(vocab, text, n_bytes);
    if (token >= 0) {
        sq_merger_push(&encoder->merger, token);
        *after_unknown = false;
        return;
    }
    bool has_bytes = true;
    for (size_t i = 0; i < n_bytes; i++)
        has_bytes = has_bytes && vocab->bytes[(uint8_t)text[i]] >= 0;
    for (size_t i = 0; i < n_bytes && has_bytes; i++)
        sq_merger_push(&encoder->merger, vocab->bytes[(uint8_t)text[i]]);
    if (!has_bytes && vocab->unknown >= 0 && !*after_unknown)
        sq_merger_push(&encoder->merger, vocab->unknown);
    *after_unknown = !has_bytes;
}

sq_status sq_encode_spm_piece(sq_encoder *encoder, const char *piece, size_t n_bytes, sq_error *error) {
    if (!sq_merger_start(&encoder->merger, n_bytes))
        return sq_encoder_no_memory(n_bytes, error);
    bool after_unknown = false;
    for (size_t i = 0, length; i < n_bytes; i += length) {
        length = sq_utf8_read(piece + i, n_bytes - i, NULL);
        length = length ? length : 1; /* invalid UTF-8: byte by byte */
        push_character(encoder, piece + i, length, &after_unknown);
    }
    return SQ_OK;
}

/* The space before a text, as the file's keys place it. */
static bool wants_prefix(const sq_encoder *encoder, const char *text, size_t n_bytes, bool at_start) {
    const sq_space_prefix *prefix = encoder->prefix;
    if (!prefix->add || n_bytes == 0 || (at_start && encoder->continues) || (prefix->at_start && !at_start))
        return false;
    bool has_space = text[0] == ' ' || (n_bytes >= 3 && memcmp(text, "\xE2\x96\x81", 3) == 0);
    return !(prefix->if_missing && has_space);
}

size_t sq_spm_normalize(const sq_encoder *encoder, const char *text, size_t n_bytes, bool at_start,
                        char *out) {
    size_t n = 0;
    if (wants_prefix(encoder, text, n_bytes, at_start))
        out[n++] = ' ';
    return n + sq_vocab_decode_name(SQ_VOCAB_SPM, text, n_bytes, out + n); /* U+2581 is a space, too */
}
