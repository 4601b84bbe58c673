/* Gemma 2 (arXiv 2408.00118): norms before and behind every sublayer, GELU, soft caps, windows in every other
 * layer. The converter adds 1 to the weights of norms, which the checkpoint leaves out. */
#include "decoder.h"

const sq_arch sq_arch_gemma2 = {
    .name = "gemma2",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
    .out_norms = true,
    .activation = SQ_GELU,
};
