/* Qwen3: LLaMA with RMS norms on every query and key head. */
#include "decoder.h"

const sq_arch sq_arch_qwen3 = {
    .name = "qwen3",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
    .qk_norm = true,
};
