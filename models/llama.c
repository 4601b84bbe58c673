/* LLaMA (arXiv 2302.13971) and what computes like it: LLaMA 1-3, Vicuna, XGen, Mistral, SmolLM2. */
#include "decoder.h"

const sq_arch sq_arch_llama = {
    .name = "llama",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
};
