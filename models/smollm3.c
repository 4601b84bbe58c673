/* SmolLM3: LLaMA with layers that do not rotate (NoPE); the file says which. */
#include "decoder.h"

const sq_arch sq_arch_smollm3 = {
    .name = "smollm3",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
};
