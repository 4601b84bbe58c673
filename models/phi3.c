/* Phi-3, 3.5 and 4-mini: LLaMA with a rotation for short and one for long timelines (LongRoPE), of part of a
 * head. The converter splits the matrices that the checkpoint fuses. */
#include "decoder.h"

const sq_arch sq_arch_phi3 = {
    .name = "phi3",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
};
