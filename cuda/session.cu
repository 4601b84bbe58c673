#include "session.h"

#include <stdlib.h>
#include <string.h>

#include <new>

/* ---- memory ------------------------------------------------------------------------------------ */

namespace {

/* Hands out pieces of one allocation; with base NULL it only counts. */
struct arena {
    uint8_t *base;
    uint64_t used;

    template <typename T> T *take(uint64_t n) {
        T *piece = base ? (T *)(base + used) : nullptr;
        used += gpu_round_up(n * sizeof(T), 256);
        return piece;
    }
    gpu_operand operand(uint32_t width, uint64_t n_rows = GPU_RUN_TOKENS) {
        uint32_t stride = (uint32_t)gpu_round_up(width, SQ_OPERAND_PAD);
        return {take<uint16_t>(2 * n_rows * stride), stride};
    }
};

void experts_layout(sq_device_session *s, const sq_hparams *h, bool apart, arena *a) {
    uint64_t n_places = (uint64_t)GPU_RUN_TOKENS * h->n_experts_used;
    s->routes.n_experts = h->n_experts;
    s->routes.n_used = h->n_experts_used;
    s->routes.experts = a->take<uint32_t>(n_places);
    s->routes.weights = a->take<float>(n_places);
    s->routes.places = a->take<uint32_t>(n_places);
    s->routes.tokens = a->take<uint32_t>(n_places);
    s->routes.jobs = a->take<gpu_job>(gpu_n_jobs(&s->routes, GPU_RUN_TOKENS));
    s->router_stride = gpu_padded(h->n_experts);
    s->router = a->take<float>((uint64_t)GPU_RUN_TOKENS * s->router_stride);
    s->expert_stride = gpu_padded(h->n_ff_expert);
    s->expert_gate = apart ? a->take<float>(n_places * s->expert_stride) : nullptr;
    s->expert_up = apart ? a->take<float>(n_places * s->expert_stride) : nullptr;
    s->expert_ff = a->operand(h->n_ff_expert, n_places);
    s->routed = a->take<float>(n_places * s->x_stride);
}

/* The cache comes first: it is the one part that need not be zero. */
void layout(sq_device_session *s, const sq_model *m, uint32_t first_layer, const gpu_card *card, arena *a) {
    const sq_hparams *h = &m->hparams;
    uint32_t n_q = h->n_heads * h->head_dim, n_kv = h->n_kv_heads * h->head_dim;
    bool apart = false;
    for (uint32_t i = first_layer; i < h->n_layers; i++)
        apart |= !m->arch->plain_ffn && !gpu_interleaves(m, &m->layers[i]);
    s->key_bytes = gpu_row_bytes(s->kv, h->head_dim, true);
    s->value_bytes = gpu_row_bytes(s->kv, h->head_dim, false);
    s->x_stride = gpu_padded(h->n_embd);
    s->qkv_stride = gpu_padded(n_q) + 2 * gpu_padded(n_kv);
    s->ff_stride = gpu_padded(h->n_ff);
    s->logits_stride = gpu_padded(h->n_vocab);
    s->cache_keys = (size_t)h->n_kv_heads * s->n_ctx * s->key_bytes;
    s->cache_values = (size_t)h->n_kv_heads * s->n_ctx * s->value_bytes;
    s->cache = a->take<uint8_t>((h->n_layers - first_layer) * (uint64_t)(s->cache_keys + s->cache_values));
    s->step = a->take<gpu_step>(1);
    s->given = first_layer ? a->take<float>((uint64_t)GPU_RUN_TOKENS * h->n_embd) : nullptr;
    s->x = a->take<float>((uint64_t)GPU_RUN_TOKENS * s->x_stride);
    s->h = a->take<float>((uint64_t)GPU_RUN_TOKENS * s->x_stride);
    s->qkv = a->take<float>((uint64_t)GPU_RUN_TOKENS * s->qkv_stride);
    s->gate = apart ? a->take<float>((uint64_t)GPU_RUN_TOKENS * s->ff_stride) : nullptr;
    s->up = apart ? a->take<float>((uint64_t)GPU_RUN_TOKENS * s->ff_stride) : nullptr;
    s->squares = a->take<float>((uint64_t)GPU_RUN_TOKENS * (s->x_stride / SQ_TILE));
    s->angles = a->take<float2>((uint64_t)SQ_N_ROPES * GPU_RUN_TOKENS * (h->n_rot / 2));
    s->normed = a->operand(h->n_embd);
    s->attended = a->operand(n_q);
    s->ff = a->operand(h->n_ff);
    if (h->n_token_embd != h->n_embd)
        s->token_embd = a->operand(h->n_token_embd);
    if (h->n_experts)
        experts_layout(s, h, apart, a);
    s->logits = a->take<float>((uint64_t)GPU_LOGITS * s->logits_stride);
    s->greedy = a->take<sq_token>(GPU_LOGITS);
    s->partial =
        a->take<float>((uint64_t)gpu_attention_blocks(card) * GPU_ATTENTION_ROWS * (h->head_dim + 2));
    s->arrivals = a->take<uint32_t>(gpu_attention_blocks(card));
}

} // namespace

uint64_t gpu_session_bytes(const sq_model *model, uint32_t first_layer, const gpu_card *card, uint32_t n_ctx,
                           sq_kv_type kv) {
    sq_device_session s = {};
    arena counter = {};
    s.n_ctx = n_ctx;
    s.kv = kv;
    layout(&s, model, first_layer, card, &counter);
    return counter.used;
}

static sq_status memory_create(sq_device_session *s, sq_error *error) {
    sq_device *d = s->device;
    uint64_t n_bytes = gpu_session_bytes(d->model, d->first_layer, &d->card, s->n_ctx, s->kv);
    if (cudaMalloc((uint8_t **)&s->memory, n_bytes) ||
        cudaMallocHost((uint8_t **)&s->host, sizeof *s->host + GPU_RUN_TOKENS * sizeof *s->host_greedy)) {
        cudaGetLastError();
        return gpu_fail(
            error, SQ_ERROR_MEMORY,
            "%.2f GB of GPU memory for a session of %u tokens are not to be had; use a smaller context, "
            "or put fewer layers there",
            (double)n_bytes * 1e-9, s->n_ctx);
    }
    s->host_greedy = (sq_token *)(s->host + 1);
    arena a = {(uint8_t *)s->memory, 0};
    layout(s, d->model, d->first_layer, &d->card, &a);
    size_t cache_bytes = (size_t)((uint8_t *)s->step - (uint8_t *)s->memory);
    sq_status status = gpu_check(cudaMemsetAsync(s->step, 0, n_bytes - cache_bytes, s->stream),
                                 "clearing the GPU's memory", error);
    return status ? status : gpu_check(cudaStreamSynchronize(s->stream), "clearing the GPU's memory", error);
}

sq_status gpu_session_create(sq_device *device, uint32_t n_ctx, sq_kv_type kv, sq_device_session **out,
                             sq_error *error) {
    *out = NULL;
    sq_device_session *s = new (std::nothrow) sq_device_session();
    if (!s)
        return gpu_fail(error, SQ_ERROR_MEMORY, "no memory for a session");
    s->device = device;
    s->n_ctx = n_ctx;
    s->kv = kv;
    sq_status status = gpu_check(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking),
                                 "creating a CUDA stream", error);
    if (!status)
        status = memory_create(s, error);
    if (status) {
        gpu_session_free(s);
        return status;
    }
    *out = s;
    return SQ_OK;
}

void gpu_session_free(sq_device_session *s) {
    if (!s)
        return;
    for (auto &by_logits : s->graphs)
        for (cudaGraphExec_t graph : by_logits)
            if (graph)
                cudaGraphExecDestroy(graph);
    if (s->stream)
        cudaStreamDestroy(s->stream);
    cudaFree(s->memory);
    cudaFreeHost(s->host);
    delete s;
}

/* ---- running ----------------------------------------------------------------------------------- */

static gpu_launch launch_of(sq_device_session *s) {
    gpu_launch l = {&s->device->card, s->stream, cudaSuccess};
    return l;
}

static void note(gpu_launch *l, cudaError_t result) {
    if (l->result == cudaSuccess)
        l->result = result;
}

/* All of a run of few tokens but for what comes from outside: what a graph holds. */
static void step_launch(sq_device_session *s, gpu_launch *l, uint32_t n_tokens, uint32_t n_logits) {
    size_t n_bytes = offsetof(gpu_step, tokens) + n_tokens * sizeof(sq_token);
    note(l, cudaMemcpyAsync(s->step, s->host, n_bytes, cudaMemcpyHostToDevice, s->stream));
    gpu_forward(s, l, n_tokens);
    if (n_logits) {
        gpu_logits(s, l, n_tokens - n_logits, n_logits);
        note(l, cudaMemcpyAsync(s->host_greedy, s->greedy, n_logits * sizeof(sq_token),
                                cudaMemcpyDeviceToHost, s->stream));
    }
}

static void graph_create(sq_device_session *s, gpu_launch *l, uint32_t n_tokens, uint32_t n_logits,
                         cudaGraphExec_t *exec) {
    cudaGraph_t graph = nullptr;
    note(l, cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal));
    step_launch(s, l, n_tokens, n_logits);
    note(l, cudaStreamEndCapture(s->stream, &graph));
    if (l->result == cudaSuccess)
        note(l, cudaGraphInstantiate(exec, graph, 0));
    if (graph)
        cudaGraphDestroy(graph);
}

/* One launch for all of the step. */
static void step_run(sq_device_session *s, gpu_launch *l, uint32_t n_tokens, uint32_t n_logits) {
    if (n_logits > 1 && n_logits != n_tokens) {
        step_launch(s, l, n_tokens, n_logits);
        return;
    }
    cudaGraphExec_t *exec = &s->graphs[n_tokens][n_logits < 2 ? n_logits : 2];
    if (!*exec)
        graph_create(s, l, n_tokens, n_logits, exec);
    if (l->result == cudaSuccess)
        note(l, cudaGraphLaunch(*exec, s->stream));
}

/* Logits [first, first + n) of the last n_logits of the run, n <= GPU_LOGITS, are in s->logits afterwards. */
static void logits_provide(sq_device_session *s, gpu_launch *l, uint32_t first, uint32_t n) {
    if (first >= s->logits_first && first + n <= s->logits_first + s->logits_n)
        return;
    gpu_logits(s, l, s->n_tokens - s->n_logits + first, n);
    s->logits_first = first;
    s->logits_n = n;
}

static sq_status job_check(const sq_device_session *s, const sq_device_job *job, sq_error *error) {
    uint32_t n = job->n_tokens;
    if (!n || n > GPU_RUN_TOKENS || job->n_logits > n || n > s->n_ctx || job->position > s->n_ctx - n ||
        (s->given != NULL) != (job->x != NULL))
        return gpu_fail(error, SQ_ERROR_ARGUMENT, "%u tokens at %u of %u, %u logits: no run of this session",
                        n, job->position, s->n_ctx, job->n_logits);
    return SQ_OK;
}

sq_status gpu_session_run(sq_device_session *s, const sq_device_job *job, sq_token *greedy, sq_error *error) {
    sq_status status = job_check(s, job, error);
    if (status)
        return status;
    uint32_t n = job->n_tokens, n_logits = job->n_logits;
    gpu_launch l = launch_of(s);
    s->host->position = job->position;
    s->host->long_rope = job->long_rope;
    memcpy(s->host->tokens, job->tokens, n * sizeof *job->tokens);
    if (s->given) {
        size_t width = s->device->model->hparams.n_embd * sizeof(float);
        note(&l, cudaMemcpy2DAsync(s->given, width, job->x, job->stride * sizeof(float), width, n,
                                   cudaMemcpyHostToDevice, s->stream));
    }
    s->n_tokens = n;
    s->n_logits = n_logits;
    s->logits_first = s->logits_n = 0;
    if (n <= GPU_FEW_TOKENS) {
        step_run(s, &l, n, n_logits);
        s->logits_n = n_logits;
    } else {
        step_launch(s, &l, n, 0);
        for (uint32_t first = 0; first < n_logits && (greedy || n_logits <= GPU_LOGITS);
             first += GPU_LOGITS) {
            uint32_t n_piece = min(n_logits - first, (uint32_t)GPU_LOGITS);
            logits_provide(s, &l, first, n_piece);
            note(&l, cudaMemcpyAsync(s->host_greedy + first, s->greedy, n_piece * sizeof *greedy,
                                     cudaMemcpyDeviceToHost, s->stream));
        }
    }
    note(&l, cudaStreamSynchronize(s->stream));
    status = gpu_check(l.result, "running the model on the GPU", error);
    if (!status && greedy)
        memcpy(greedy, s->host_greedy, n_logits * sizeof *greedy);
    return status;
}

sq_status gpu_session_read_logits(sq_device_session *s, uint32_t first, uint32_t n, float *logits,
                                  sq_error *error) {
    if (n > s->n_logits || first > s->n_logits - n)
        return gpu_fail(error, SQ_ERROR_ARGUMENT, "logits %u to %u: the last run has %u", first, first + n,
                        s->n_logits);
    gpu_launch l = launch_of(s);
    uint32_t n_vocab = s->device->model->hparams.n_vocab;
    for (uint32_t done = 0, n_piece; done < n; done += n_piece) {
        n_piece = min(n - done, (uint32_t)GPU_LOGITS);
        logits_provide(s, &l, first + done, n_piece);
        note(&l, cudaMemcpy2DAsync(logits + (size_t)done * n_vocab, n_vocab * sizeof(float),
                                   s->logits + (size_t)(first + done - s->logits_first) * s->logits_stride,
                                   s->logits_stride * sizeof(float), n_vocab * sizeof(float), n_piece,
                                   cudaMemcpyDeviceToHost, s->stream));
    }
    note(&l, cudaStreamSynchronize(s->stream));
    return gpu_check(l.result, "reading logits from the GPU", error);
}
