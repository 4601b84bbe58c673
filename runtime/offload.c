#include "offload.h"

#include <stdio.h>
#include <string.h>

#include "kv.h"
#include "plugin.h"
#include "status.h"

/* Whether the plugin can run layers from `first` on, and has the memory for them and a session. */
static sq_status layers_check(const sq_model *model, const sq_device_api *api, const sq_device_info *info,
                              uint32_t first, sq_error *error) {
    sq_status status = api->check(model, first, error);
    if (status)
        return status;
    uint64_t model_bytes = api->model_bytes(model, first),
             session_bytes =
                 api->session_bytes(model, first, sq_kv_default_tokens(&model->hparams), SQ_KV_F16);
    if (model_bytes <= info->n_bytes_free && session_bytes <= info->n_bytes_free - model_bytes)
        return SQ_OK;
    return sq_fail(
        error, SQ_ERROR_UNSUPPORTED,
        "%s: %u of %u layers and a session need %.2f GB of its memory, %.2f GB are free; put fewer "
        "layers there, or run on the CPU",
        info->name, model->hparams.n_layers - first, model->hparams.n_layers,
        (double)model_bytes * 1e-9 + (double)session_bytes * 1e-9, (double)info->n_bytes_free * 1e-9);
}

/* The first layer that goes to the device. On failure the error is that of the fewest layers. */
static sq_status layers_choose(const sq_model *model, const sq_device_api *api, const sq_device_info *info,
                               uint32_t n_asked, uint32_t *first, sq_error *error) {
    uint32_t n_layers = model->hparams.n_layers;
    *first = n_asked ? n_layers - n_asked : 0;
    sq_status status = layers_check(model, api, info, *first, error);
    while (status && !n_asked && *first + 1 < n_layers)
        status = layers_check(model, api, info, ++*first, error);
    return status;
}

static sq_status device_open(sq_model *model, uint32_t n_asked, sq_error *error) {
    const sq_device_api *api;
    sq_device_info info;
    sq_device *device;
    uint32_t first = 0;
    sq_status status = sq_plugin_load(&api, error);
    if (!status)
        status = api->find(&info, error);
    if (!status)
        status = layers_choose(model, api, &info, n_asked, &first, error);
    if (!status)
        status = api->open(model, first, &device, error);
    if (status)
        return status;
    model->n_cpu_layers = first;
    model->offload = (sq_offload){.api = api, .device = device};
    snprintf(model->offload.name, sizeof model->offload.name, "%s", info.name);
    return SQ_OK;
}

sq_status sq_offload_open(sq_model *model, const sq_model_options *options, sq_error *error) {
    uint32_t n_layers = model->hparams.n_layers, n_asked = options ? options->gpu_layers : 0;
    const char *where = options && options->device ? options->device : "auto";
    bool any = !strcmp(where, "auto"), cpu = !strcmp(where, "cpu");
    model->n_cpu_layers = n_layers;
    if (!any && !cpu && strcmp(where, "cuda") != 0)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "device: expected auto, cpu or cuda, found \"%.32s\"",
                       where);
    if (n_asked > n_layers)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "GPU layers: expected at most %u, which the model has, found %u", n_layers, n_asked);
    if (cpu)
        return SQ_OK;
    sq_error reason;
    sq_status status = device_open(model, n_asked, &reason);
    if (!status)
        return SQ_OK;
    if (!any)
        return sq_fail(error, status, "%s", reason.message);
    snprintf(model->offload.absent, sizeof model->offload.absent, "%s", reason.message);
    return SQ_OK;
}

void sq_offload_close(sq_model *model) {
    if (model->offload.device)
        model->offload.api->close(model->offload.device);
}
