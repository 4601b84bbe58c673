#include "placement.h"

option placement_device(sq_model_options *options) {
    return (option){"--device",
                    OPTION_CHOICE,
                    &options->device,
                    0,
                    0,
                    "auto|cpu|cuda",
                    "where layers run: on an NVIDIA GPU where that can be (auto), or must"};
}

option placement_layers(sq_model_options *options) {
    return (option){"--gpu-layers",
                    OPTION_U32_AUTO,
                    &options->gpu_layers,
                    1,
                    INT32_MAX,
                    "NUMBER|auto",
                    "layers of the GPU, counted from the last; default: as many as fit"};
}

void placement_append_gpu(text *out, const sq_model_info *info) {
    if (info->gpu_layers == info->n_layers) {
        text_printf(out, "%s for all %u layers", info->device, info->n_layers);
    } else if (info->gpu_layers) {
        text_printf(out, "%s for the last %u of %u layers", info->device, info->gpu_layers, info->n_layers);
    }
}

void placement_append(text *out, const sq_model_info *info, uint32_t n_threads) {
    placement_append_gpu(out, info);
    if (info->gpu_layers < info->n_layers) {
        text_printf(out, "%sCPU %s, prompts in %s, %u thread%s", info->gpu_layers ? ", " : "", info->cpu,
                    info->prompt, n_threads, n_threads == 1 ? "" : "s");
    }
}

void placement_write(json_writer *w, const sq_model_info *info) {
    json_string(w, "device", info->device[0] ? info->device : NULL);
    json_u64(w, "gpu_layers", info->gpu_layers);
}
