/* Where a tool's model runs: the options that say it, and the words for what came of them. */
#ifndef TOOLS_PLACEMENT_H
#define TOOLS_PLACEMENT_H

#include "json.h"
#include "options.h"
#include "sq.h"

/* --device and --gpu-layers, into `options`. */
option placement_device(sq_model_options *options);
option placement_layers(sq_model_options *options);

/* "NVIDIA H200 for all 32 layers", "… for the last 20 of 32 layers"; nothing where there is no GPU. */
void placement_append_gpu(text *out, const sq_model_info *info);
/* All that computes: "NVIDIA H200 for the last 20 of 32 layers, CPU avx512, prompts in int16, 2 threads". */
void placement_append(text *out, const sq_model_info *info, uint32_t n_threads);
/* The same as members: device (null where there is no GPU), gpu_layers. */
void placement_write(json_writer *w, const sq_model_info *info);

#endif
