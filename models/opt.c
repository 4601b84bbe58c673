/* OPT (S. Zhang et al., arXiv 2205.01068): layer norms and biases, learned positions, ReLU. The 350M one has
 * its norms behind the sublayers, and an embedding of another width. */
#include "decoder.h"

const sq_arch sq_arch_opt = {
    .name = "opt",
    .load = sq_decoder_load,
    .forward = sq_decoder_forward,
    .layer_norm = true,
    .learned_positions = true,
    .plain_ffn = true,
};
