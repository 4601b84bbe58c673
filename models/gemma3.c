/* Gemma 3, the text part (arXiv 2503.19786): Gemma 2 with norms of queries and keys and a rotation of its own
 * in layers with a window. */
#include "decoder.h"

const sq_arch sq_arch_gemma3 = {
    .name = "gemma3",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
    .qk_norm = true,
    .out_norms = true,
    .activation = SQ_GELU,
};
