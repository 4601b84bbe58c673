/* The decoder that all families here are: loading and forward pass, once. A family is a
 * declaration (sq_arch, model.h) of what its file leaves open, and a layer of it what sq_layer says:
 *
 *     h = attn_norm(x);  q, k, v = h·q, h·k, h·v;  q, k = q_norm(q), k_norm(k);  rotate q, k;  store k, v
 *     x += attn_out_norm(attn_output(attention(q)))
 *     x += ffn_out_norm(down(activation(gate(ffn_norm(x))) · up(ffn_norm(x))))
 *
 * What differs from layer to layer, or is a number, stands in the file; what a family does differently is
 * a field of sq_arch that the loader and the operations of backend.h look at. Where the next one goes:
 *
 *     another norm             norm_row (cpu.c) is the one place that calls it
 *     another activation       a row in sq_activation and in sq_kernels.gated
 *     another rope table       a row in sq_rope_table, its keys in rope_load, layers that name it
 *     scales, soft caps        a field of sq_hparams, used in embed, attend or logits
 */
#ifndef SQ_DECODER_H
#define SQ_DECODER_H

#include "backend.h"

/* sq_arch.load and sq_arch.forward of every family. */
sq_status sq_decoder_load(sq_model *model, sq_error *error);
void sq_decoder_forward(sq_run *run, uint32_t thread);

#endif
