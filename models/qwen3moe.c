/* Qwen3 with mixtures of experts (arXiv 2505.09388): which layers have one stands in the file. */
#include "decoder.h"

const sq_arch sq_arch_qwen3moe = {
    .name = "qwen3moe",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
    .qk_norm = true,
};
