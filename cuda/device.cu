/* The plugin: sq_device_api of runtime/device.h on CUDA. */
#include "session.h"

#include <stdarg.h>
#include <stdio.h>

#include <new>

/* ---- errors ------------------------------------------------------------------------------------ */

sq_status gpu_fail(sq_error *error, sq_status status, const char *format, ...) {
    if (!error)
        return status;
    error->status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return status;
}

sq_status gpu_check(cudaError_t result, const char *what, sq_error *error) {
    if (result == cudaSuccess)
        return SQ_OK;
    cudaGetLastError(); /* it is told, and need not be found again */
    return gpu_fail(error, result == cudaErrorMemoryAllocation ? SQ_ERROR_MEMORY : SQ_ERROR_UNSUPPORTED,
                    "%s failed: %s; run on the CPU with --device cpu", what, cudaGetErrorString(result));
}

/* ---- the card ---------------------------------------------------------------------------------- */

enum { OLDEST_MAJOR = 8 };

sq_status gpu_card_open(gpu_card *card, sq_device_info *info, sq_error *error) {
    int n = 0;
    cudaError_t result = cudaGetDeviceCount(&n);
    if (result == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return gpu_fail(
            error, SQ_ERROR_UNSUPPORTED,
            "the NVIDIA driver is missing or too old for this build of libsq_cuda; install a newer one, "
            "or run on the CPU");
    }
    if (result == cudaErrorNoDevice || (!result && !n)) {
        cudaGetLastError();
        return gpu_fail(error, SQ_ERROR_UNSUPPORTED, "no NVIDIA GPU is there; run on the CPU");
    }
    cudaDeviceProp properties;
    sq_status status = gpu_check(result, "looking for a GPU", error);
    if (!status)
        status = gpu_check(cudaGetDeviceProperties(&properties, 0), "looking at the GPU", error);
    if (status)
        return status;
    if (properties.major < OLDEST_MAJOR)
        return gpu_fail(error, SQ_ERROR_UNSUPPORTED,
                        "%s: expected compute capability %d.0 or newer, found %d.%d; run on the CPU",
                        properties.name, OLDEST_MAJOR, properties.major, properties.minor);
    card->n_processors = properties.multiProcessorCount;
    card->dependent_launch = properties.major >= 9;
    status =
        gpu_check(cudaDeviceGetAttribute(&card->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
                  "looking at the GPU", error);
    size_t n_free = 0, n_total = 0;
    if (!status)
        status = gpu_check(cudaMemGetInfo(&n_free, &n_total), "looking at the GPU's memory", error);
    if (!status && info) {
        snprintf(info->name, sizeof info->name, "%.127s", properties.name);
        info->n_bytes = n_total;
        info->n_bytes_free = n_free;
    }
    return status;
}

static sq_status find(sq_device_info *info, sq_error *error) {
    gpu_card card;
    return gpu_card_open(&card, info, error);
}

/* ---- models ------------------------------------------------------------------------------------ */

/* Wider ones have no room in the shared memory of the kernels that take whole tokens, or for 16-bit columns.
 */
enum { MAX_EMBD = 16384, MAX_INPUTS = 65536 };
/* Of a token. More make more jobs of a run than a launch has blocks. */
enum { MAX_EXPERTS_USED = 64 };

static sq_status linear_check(const sq_linear *linear, sq_error *error) {
    const sq_matrix *w = &linear->w;
    if (!w->data)
        return SQ_OK;
    if (w->type == SQ_TYPE_F32)
        return gpu_fail(
            error, SQ_ERROR_UNSUPPORTED,
            "%s: the GPU has no kernels for F32 matrices; run on the CPU, or convert with --bits 16",
            w->name);
    if (w->n_in > MAX_INPUTS)
        return gpu_fail(error, SQ_ERROR_UNSUPPORTED,
                        "%s: the GPU takes at most %d inputs, found %u; run on the CPU", w->name, MAX_INPUTS,
                        w->n_in);
    return SQ_OK;
}

static sq_status layer_check(const sq_model *m, uint32_t index, sq_error *error) {
    const sq_layer *l = &m->layers[index];
    const sq_linear *linears[] = {&l->q,    &l->k,  &l->v,    &l->attn_output,
                                  &l->gate, &l->up, &l->down, &l->router};
    sq_status status = SQ_OK;
    for (const sq_linear *linear : linears)
        status = status ? status : linear_check(linear, error);
    for (uint32_t e = 0; l->experts && e < m->hparams.n_experts; e++)
        for (const sq_linear *linear : {&l->experts[e].gate, &l->experts[e].up, &l->experts[e].down})
            status = status ? status : linear_check(linear, error);
    return status;
}

static sq_status check(const sq_model *m, uint32_t first_layer, sq_error *error) {
    const sq_hparams *h = &m->hparams;
    if (h->head_dim > GPU_HEAD_DIM)
        return gpu_fail(error, SQ_ERROR_UNSUPPORTED,
                        "the GPU takes heads of at most %d, found %u; run on the CPU", GPU_HEAD_DIM,
                        h->head_dim);
    if (h->n_embd > MAX_EMBD || h->n_token_embd > MAX_EMBD)
        return gpu_fail(error, SQ_ERROR_UNSUPPORTED,
                        "the GPU takes an n_embd of at most %d, found %u; run on the CPU", MAX_EMBD,
                        h->n_embd > h->n_token_embd ? h->n_embd : h->n_token_embd);
    if (h->n_experts_used > MAX_EXPERTS_USED)
        return gpu_fail(error, SQ_ERROR_UNSUPPORTED,
                        "the GPU takes at most %d experts a token, found %u; run on the CPU",
                        MAX_EXPERTS_USED, h->n_experts_used);
    sq_status status = SQ_OK;
    const sq_linear *linears[] = {&m->embedding, &m->embd_in, &m->positions, &m->embd_out, &m->head};
    for (const sq_linear *linear : linears)
        status = status ? status : linear_check(linear, error);
    for (uint32_t i = first_layer; !status && i < h->n_layers; i++)
        status = layer_check(m, i, error);
    return status;
}

static uint64_t session_bytes(const sq_model *model, uint32_t first_layer, uint32_t n_ctx, sq_kv_type kv) {
    gpu_card card;
    return gpu_card_open(&card, NULL, NULL) ? UINT64_MAX
                                            : gpu_session_bytes(model, first_layer, &card, n_ctx, kv);
}

static sq_status device_create(sq_device *d, sq_error *error) {
    sq_status status = gpu_card_open(&d->card, NULL, error);
    if (!status)
        status = gpu_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking),
                           "creating a CUDA stream", error);
    if (!status)
        status = gpu_check(gpu_gemv_prepare(&d->card), "loading the kernels", error);
    if (!status)
        status = gpu_check(gpu_gemm_prepare(&d->card), "loading the kernels", error);
    if (!status)
        status = gpu_check(gpu_residual_prepare(&d->card), "loading the kernels", error);
    if (!status)
        status = gpu_check(gpu_attention_prepare(&d->card), "loading the kernels", error);
    if (!status)
        status = gpu_check(gpu_experts_prepare(&d->card), "loading the kernels", error);
    return status ? status : gpu_weights_upload(d, error);
}

static void device_close(sq_device *d) {
    if (!d)
        return;
    gpu_weights_free(d);
    if (d->stream)
        cudaStreamDestroy(d->stream);
    delete d;
}

static sq_status device_open(const sq_model *model, uint32_t first_layer, sq_device **out, sq_error *error) {
    *out = NULL;
    sq_status status = check(model, first_layer, error);
    if (status)
        return status;
    sq_device *d = new (std::nothrow) sq_device();
    if (!d)
        return gpu_fail(error, SQ_ERROR_MEMORY, "no memory for a device");
    d->model = model;
    d->first_layer = first_layer;
    status = device_create(d, error);
    if (status) {
        device_close(d);
        return status;
    }
    *out = d;
    return SQ_OK;
}

/* ---- the table --------------------------------------------------------------------------------- */

extern "C" __attribute__((visibility("default"))) const sq_device_api *sq_device_api_get(void) {
    static const sq_device_api api = {
        SQ_DEVICE_VERSION,
        "cuda",
        GPU_RUN_TOKENS,
        find,
        check,
        gpu_weights_bytes,
        session_bytes,
        device_open,
        device_close,
        gpu_session_create,
        gpu_session_free,
        gpu_session_run,
        gpu_session_read_logits,
    };
    return &api;
}
