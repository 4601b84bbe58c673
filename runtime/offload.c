#include "offload.h"

#include <stdio.h>
#include <string.h>

#include "kv.h"
#include "plugin.h"
#include "status.h"

/* What is to fit. */
typedef struct placement {
    const sq_device_api *api;
    sq_device_info info;
    uint32_t n_ctx; /* of the session beside the layers */
    sq_kv_type kv;
} placement;

/* Whether the plugin can run layers from `first` on, and has the memory for them and a session. */
static sq_status layers_check(const sq_model *model, const placement *p, uint32_t first, sq_error *error) {
    sq_status status = p->api->check(model, first, error);
    if (status)
        return status;
    uint64_t model_bytes = p->api->model_bytes(model, first),
             session_bytes = p->api->session_bytes(model, first, p->n_ctx, p->kv),
             n_bytes_free = p->info.n_bytes_free;
    if (model_bytes <= n_bytes_free && session_bytes <= n_bytes_free - model_bytes)
        return SQ_OK;
    return sq_fail(
        error, SQ_ERROR_UNSUPPORTED,
        "%s: %u of %u layers and a session need %.2f GB of its memory, %.2f GB are free; put fewer "
        "layers there, or run on the CPU",
        p->info.name, model->hparams.n_layers - first, model->hparams.n_layers,
        (double)model_bytes * 1e-9 + (double)session_bytes * 1e-9, (double)n_bytes_free * 1e-9);
}

/* The first layer that goes to the device. On failure the error is that of the fewest layers. */
static sq_status layers_choose(const sq_model *model, const placement *p, uint32_t n_asked, uint32_t *first,
                               sq_error *error) {
    uint32_t n_layers = model->hparams.n_layers;
    *first = n_asked ? n_layers - n_asked : 0;
    sq_status status = layers_check(model, p, *first, error);
    while (status && !n_asked && *first + 1 < n_layers)
        status = layers_check(model, p, ++*first, error);
    return status;
}

static sq_status device_open(sq_model *model, placement *p, uint32_t n_asked, sq_error *error) {
    sq_device *device;
    uint32_t first = 0;
    sq_status status = sq_plugin_load(&p->api, error);
    if (!status)
        status = p->api->find(&p->info, error);
    if (!status)
        status = layers_choose(model, p, n_asked, &first, error);
    if (!status)
        status = p->api->open(model, first, &device, error);
    if (status)
        return status;
    model->n_cpu_layers = first;
    model->offload = (sq_offload){.api = p->api, .device = device};
    snprintf(model->offload.name, sizeof model->offload.name, "%s", p->info.name);
    return SQ_OK;
}

sq_status sq_offload_open(sq_model *model, const sq_model_options *options, sq_error *error) {
    const sq_model_options asked = options ? *options : (sq_model_options){0};
    uint32_t n_layers = model->hparams.n_layers, n_asked = asked.gpu_layers;
    placement p = {.n_ctx = asked.n_ctx ? asked.n_ctx : sq_kv_default_tokens(&model->hparams)};
    const char *where = asked.device ? asked.device : "auto";
    bool any = !strcmp(where, "auto"), cpu = !strcmp(where, "cpu");
    model->n_cpu_layers = n_layers;
    if (!any && !cpu && strcmp(where, "cuda") != 0)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "device: expected auto, cpu or cuda, found \"%.32s\"",
                       where);
    if (n_asked > n_layers)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "GPU layers: expected at most %u, which the model has, found %u", n_layers, n_asked);
    sq_status status = sq_kv_parse(asked.kv, &p.kv, error);
    if (cpu || status)
        return status;
    sq_error reason;
    status = device_open(model, &p, n_asked, &reason);
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
