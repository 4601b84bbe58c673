#include "encode.h"

sq_status sq_encode_bpe_piece(sq_encoder *encoder, const char *piece, size_t n_bytes, sq_error *error) {
    const sq_vocab *vocab = encoder->vocab;
    if (!sq_merger_start(&encoder->merger, n_bytes))
        return sq_encoder_no_memory(n_bytes, error);
    for (size_t i = 0; i < n_bytes; i++) {
        sq_token token = vocab->bytes[(uint8_t)piece[i]];
        if (token < 0)
            token = vocab->unknown;
        if (token >= 0) /* else the byte is left out, as the original tokenizers do */
            sq_merger_push(&encoder->merger, token);
    }
    return SQ_OK;
}
