/* A plugin as device.h has it that runs its layers on the CPU, with the model's own kernels: what a session
 * computes through it is what it computes without, to the last bit. It fails where the test says so. */
#include "fake_device.h"

#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "status.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT fake_device fake_device_state;

struct sq_device {
    sq_model model; /* of the device's layers alone */
    uint32_t first_layer;
};

struct sq_device_session {
    sq_device *device;
    sq_pool *pool;
    sq_kv kv;
    sq_run run;
    void *run_memory, *kv_memory;
    float *logits; /* [run_tokens, n_vocab] */
    atomic_bool cancel;
    sq_device_job job; /* the last */
};

static sq_status find(sq_device_info *info, sq_error *error) {
    const fake_device *f = &fake_device_state;
    if (f->no_device)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED, "%s", f->no_device);
    *info = (sq_device_info){.name = "Fake 1", .n_bytes = 1u << 30, .n_bytes_free = f->n_bytes_free};
    return SQ_OK;
}

static sq_status check(const sq_model *model, uint32_t first_layer, sq_error *error) {
    (void)model;
    const fake_device *f = &fake_device_state;
    if (f->cannot_run || first_layer < f->first_able)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED, "%s", f->cannot_run ? f->cannot_run : "an early layer");
    return SQ_OK;
}

static uint64_t model_bytes(const sq_model *model, uint32_t first_layer) {
    return (uint64_t)(model->hparams.n_layers - first_layer) * FAKE_LAYER_BYTES;
}

static uint64_t session_bytes(const sq_model *model, uint32_t first_layer, uint32_t n_ctx, sq_kv_type kv) {
    (void)model, (void)first_layer;
    return (uint64_t)n_ctx * FAKE_TOKEN_BYTES * (kv == SQ_KV_F32 ? 2 : 1);
}

static sq_status device_open(const sq_model *model, uint32_t first_layer, sq_device **device,
                             sq_error *error) {
    if (fake_device_state.cannot_open)
        return sq_fail(error, SQ_ERROR_MEMORY, "%s", fake_device_state.cannot_open);
    sq_device *d = calloc(1, sizeof *d);
    if (!d)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a device");
    d->model = *model;
    d->model.layers += first_layer;
    d->model.hparams.n_layers -= first_layer;
    d->model.n_cpu_layers = d->model.hparams.n_layers;
    d->first_layer = first_layer;
    fake_device_state.n_devices++;
    *device = d;
    return SQ_OK;
}

static void device_close(sq_device *device) {
    fake_device_state.n_devices--;
    free(device);
}

/* The CPU's backend with other tokens' x, where earlier layers ran elsewhere. */
static sq_backend backend;

static void embed(sq_run *run, uint32_t thread) {
    sq_backend_cpu.embed(run, thread);
    const sq_device_session *s = (const sq_device_session *)((char *)run - offsetof(sq_device_session, run));
    for (uint32_t t = 0; s->job.x && t < run->n_tokens; t++)
        memcpy(run->x.data + t * run->x.stride, s->job.x + t * s->job.stride,
               run->model->hparams.n_embd * sizeof(float));
}

static void *memory_create(size_t n_bytes) {
    size_t n = (n_bytes + 63) / 64 * 64 + 64;
    void *memory = aligned_alloc(64, n);
    return memory ? memset(memory, 0, n) : NULL;
}

static void session_free(sq_device_session *s) {
    fake_device_state.n_sessions--;
    sq_pool_free(s->pool);
    free(s->run_memory);
    free(s->kv_memory);
    free(s->logits);
    free(s);
}

static sq_status session_create(sq_device *device, uint32_t n_ctx, sq_kv_type kv, sq_device_session **session,
                                sq_error *error) {
    *session = NULL;
    if (fake_device_state.cannot_create)
        return sq_fail(error, SQ_ERROR_MEMORY, "%s", fake_device_state.cannot_create);
    sq_device_session *s = calloc(1, sizeof *s);
    if (!s)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a session");
    const sq_hparams *h = &device->model.hparams;
    s->device = device;
    s->run_memory = memory_create(sq_cpu_run_bytes(&device->model, 1));
    s->kv_memory = memory_create(sq_kv_bytes(h, h->n_layers, kv, n_ctx));
    s->logits = calloc((size_t)fake_device_state.run_tokens * h->n_vocab, sizeof *s->logits);
    fake_device_state.n_sessions++;
    sq_status status = sq_pool_create(1, &s->pool, error);
    if (status || !s->run_memory || !s->kv_memory || !s->logits) {
        session_free(s);
        return SQ_ERROR_MEMORY;
    }
    sq_kv_init(&s->kv, h, kv, n_ctx, s->kv_memory);
    sq_cpu_run_init(&s->run, &device->model, 1, s->run_memory);
    s->run.backend = &backend;
    s->run.pool = s->pool;
    s->run.kv = &s->kv;
    s->run.cancel = &s->cancel;
    *session = s;
    return SQ_OK;
}

static void run_task(void *context, uint32_t thread) {
    sq_run *run = context;
    run->model->arch->forward(run, thread);
}

static sq_status run(sq_device_session *s, const sq_device_job *job, sq_token *greedy, sq_error *error) {
    fake_device *f = &fake_device_state;
    uint32_t n_vocab = s->device->model.hparams.n_vocab;
    if (f->on_run)
        f->on_run(f->context);
    if (!job->n_tokens || job->n_tokens > f->run_tokens || !job->x != !s->device->first_layer)
        abort(); /* a session that breaks the contract */
    f->n_tokens_most = job->n_tokens > f->n_tokens_most ? job->n_tokens : f->n_tokens_most;
    f->n_runs++;
    f->got_x = job->x != NULL;
    if (f->failing_run && !--f->failing_run)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED, "the fake fell off the bus");
    s->job = *job;
    s->run.tokens = job->tokens;
    s->run.n_tokens = job->n_tokens;
    s->run.position = job->position;
    s->run.long_rope = job->long_rope;
    s->run.logits = s->logits;
    s->run.n_logits = job->n_logits;
    sq_pool_run(s->pool, run_task, &s->run);
    for (uint32_t i = 0; greedy && i < job->n_logits; i++) {
        const float *row = s->logits + (size_t)i * n_vocab;
        greedy[i] = 0;
        for (uint32_t t = 1; t < n_vocab; t++)
            greedy[i] = row[t] > row[greedy[i]] ? (sq_token)t : greedy[i];
    }
    return SQ_OK;
}

static sq_status read_logits(sq_device_session *s, uint32_t first, uint32_t n, float *logits,
                             sq_error *error) {
    uint32_t n_vocab = s->device->model.hparams.n_vocab;
    if (fake_device_state.no_device)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED, "%s", fake_device_state.no_device);
    if (n > s->job.n_logits || first > s->job.n_logits - n)
        abort();
    fake_device_state.n_reads += n;
    memcpy(logits, s->logits + (size_t)first * n_vocab, (size_t)n * n_vocab * sizeof *logits);
    return SQ_OK;
}

EXPORT const sq_device_api *sq_device_api_get(void) {
    static sq_device_api api;
    backend = sq_backend_cpu;
    backend.embed = embed;
    api = (sq_device_api){
        .version = fake_device_state.version,
        .name = "fake",
        .run_tokens = fake_device_state.run_tokens,
        .find = find,
        .check = check,
        .model_bytes = model_bytes,
        .session_bytes = session_bytes,
        .open = device_open,
        .close = device_close,
        .session_create = session_create,
        .session_free = session_free,
        .run = run,
        .read_logits = read_logits,
    };
    return &api;
}
