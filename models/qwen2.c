/* Qwen2 and 2.5: LLaMA with biases on q, k and v, and windows in the later layers where asked for; all of
 * that is in the file. */
#include "decoder.h"

const sq_arch sq_arch_qwen2 = {
    .name = "qwen2",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
};
