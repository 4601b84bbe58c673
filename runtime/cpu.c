/* The CPU backend: the operations of backend.h as kernels on threads. Rows of a matrix, heads and tokens
 * are dealt out statically, so that a thread meets the same weights at every token. */
#include "backend.h"

#include <math.h>

/* ---- buffers ----------------------------------------------------------------------------------- */

/* Hands out 64-byte aligned pieces of one allocation; with base NULL it only counts. */
typedef struct arena {
    uint8_t *base;
    size_t used;
} arena;

static float *arena_floats(arena *a, size_t n) {
    float *piece = a->base ? (float *)(a->base + a->used) : NULL;
    a->used += (n * sizeof(float) + 63) & ~(size_t)63;
    return piece;
}

static sq_rows arena_rows(arena *a, size_t width) {
    size_t stride = sq_pad(width);
    return (sq_rows){arena_floats(a, stride * SQ_RUN_TOKENS), stride};
}

static void run_layout(sq_run *run, const sq_hparams *h, uint32_t n_ctx, uint32_t n_threads, arena *a) {
    size_t q_width = (size_t)h->n_heads * h->head_dim, kv_width = (size_t)h->n_kv_heads * h->head_dim;
    size_t widest = q_width > h->n_embd ? q_width : h->n_embd;
    widest = widest > h->n_ff ? widest : h->n_ff;
    run->x = arena_rows(a, h->n_embd);
    run->h = arena_rows(a, h->n_embd);
    run->q = arena_rows(a, q_width);
    run->k = arena_rows(a, kv_width);
    run->v = arena_rows(a, kv_width);
    run->attended = arena_rows(a, q_width);
    run->gate = arena_rows(a, h->n_ff);
    run->up = arena_rows(a, h->n_ff);
    for (int i = 0; i < SQ_N_ROPES; i++) {
        run->cos[i] = arena_rows(a, h->n_rot / 2);
        run->sin[i] = arena_rows(a, h->n_rot / 2);
    }
    run->private_h = arena_floats(a, n_threads * sq_pad(h->n_embd));
    run->scores_floats = h->n_heads / h->n_kv_heads * sq_pad(n_ctx);
    run->scores = arena_floats(a, n_threads * run->scores_floats);
    run->tile_floats = SQ_GEMM_ROWS * sq_pad(widest);
    run->tiles = arena_floats(a, n_threads * run->tile_floats);
}

size_t sq_cpu_run_bytes(const sq_model *model, uint32_t n_ctx, uint32_t n_threads) {
    sq_run run;
    arena counter = {0};
    run_layout(&run, &model->hparams, n_ctx, n_threads, &counter);
    return counter.used;
}

void sq_cpu_run_init(sq_run *run, const sq_model *model, uint32_t n_ctx, uint32_t n_threads, void *memory) {
    arena a = {memory, 0};
    run_layout(run, &model->hparams, n_ctx, n_threads, &a);
    run->model = model;
    run->backend = &sq_backend_cpu;
}

/* ---- shares ------------------------------------------------------------------------------------ */

/* Rows are dealt out in whole cache lines of output. */
enum { ROW_GRAIN = 16 };

/* The part [first, last) of n things that is `thread`'s; borders are multiples of `grain`. */
typedef struct share {
    uint32_t first, last;
} share;

static share share_of(const sq_run *run, uint32_t n, uint32_t grain, uint32_t thread) {
    uint64_t n_grains = (n + grain - 1) / grain, n_threads = sq_pool_n_threads(run->pool);
    uint64_t first = n_grains * thread / n_threads * grain,
             last = n_grains * (thread + 1) / n_threads * grain;
    return (share){first < n ? (uint32_t)first : n, last < n ? (uint32_t)last : n};
}

static float *row_at(const sq_rows *rows, uint32_t token) {
    return rows->data + token * rows->stride;
}

/* Rows of `linear` in the share, for all n tokens: out[t][r] = linear(in[t])[r]. */
static void linear_rows(sq_run *run, const sq_linear *linear, const float *in, size_t in_stride, uint32_t n,
                        float *out, size_t out_stride, share rows, uint32_t thread) {
    const sq_kernels *kernels = run->model->kernels;
    if (rows.first >= rows.last)
        return;
    if (n == 1)
        kernels->types[linear->w.type].gemv(&linear->w, in, out + rows.first, rows.first, rows.last);
    else
        kernels->gemm(&linear->w, in, in_stride, n, out + rows.first, out_stride, rows.first, rows.last,
                      run->tiles + thread * run->tile_floats);
    if (!linear->bias)
        return;
    for (uint32_t t = 0; t < n; t++)
        kernels->add(out + t * out_stride + rows.first, linear->bias + rows.first, rows.last - rows.first);
}

static void norm_row(const sq_run *run, const sq_norm *norm, const float *x, uint32_t n, float *y) {
    run->model->kernels->rms_norm(x, norm->weight, run->model->hparams.norm_eps, n, y);
}

/* norm(x) of tokens [first, n_tokens). One token: every thread does it for itself, which is cheaper than
 * waiting for one another; more: shared in run->h, behind a barrier. */
static const float *norm_rows(sq_run *run, const sq_norm *norm, uint32_t first, uint32_t thread) {
    uint32_t n = run->n_tokens - first, n_embd = run->model->hparams.n_embd;
    if (n == 1) {
        float *mine = run->private_h + thread * sq_pad(n_embd);
        norm_row(run, norm, row_at(&run->x, first), n_embd, mine);
        return mine;
    }
    share tokens = share_of(run, n, 1, thread);
    for (uint32_t t = first + tokens.first; t < first + tokens.last; t++)
        norm_row(run, norm, row_at(&run->x, t), n_embd, row_at(&run->h, t));
    sq_pool_barrier(run->pool);
    return row_at(&run->h, first);
}

/* ---- operations -------------------------------------------------------------------------------- */

/* The cosines and sines that token t is rotated by in layers of rope table r. */
static void rope_angles(sq_run *run, int r, uint32_t t) {
    const sq_rope *rope = &run->model->ropes[r];
    uint32_t n = run->model->hparams.n_rot / 2;
    const float *frequencies = rope->frequencies + (run->long_rope ? n : 0);
    float *cos_row = row_at(&run->cos[r], t), *sin_row = row_at(&run->sin[r], t);
    for (uint32_t i = 0; i < n; i++) {
        float angle = (float)(run->position + t) * frequencies[i];
        cos_row[i] = cosf(angle) * rope->scale;
        sin_row[i] = sinf(angle) * rope->scale;
    }
}

static void cpu_embed(sq_run *run, uint32_t thread) {
    const sq_model *model = run->model;
    const sq_matrix *w = &model->embedding.w;
    share tokens = share_of(run, run->n_tokens, 1, thread);
    for (uint32_t t = tokens.first; t < tokens.last; t++) {
        model->kernels->types[w->type].expand_row(w, (uint32_t)run->tokens[t], row_at(&run->x, t));
        for (int r = 0; r < SQ_N_ROPES; r++)
            rope_angles(run, r, t);
    }
    sq_pool_barrier(run->pool);
}

static void cpu_norm_linears(sq_run *run, const sq_norm *norm, const sq_linear *const *linears,
                             const sq_rows *const *outs, uint32_t n, uint32_t thread) {
    const float *in = norm_rows(run, norm, 0, thread);
    /* The rows of all matrices are dealt out as one, so that small matrices balance too. */
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < n; i++)
        n_rows += linears[i]->w.n_out;
    share mine = share_of(run, n_rows, ROW_GRAIN, thread);
    uint32_t base = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t end = base + linears[i]->w.n_out;
        uint32_t first = mine.first > base ? mine.first : base, last = mine.last < end ? mine.last : end;
        if (first < last)
            linear_rows(run, linears[i], in, run->h.stride, run->n_tokens, outs[i]->data, outs[i]->stride,
                        (share){first - base, last - base}, thread);
        base = end;
    }
    sq_pool_barrier(run->pool);
}

/* One head of q or k: its norm and its rotation, where the layer has them. */
static void head_position(const sq_run *run, const sq_layer *layer, const sq_norm *norm, uint32_t t,
                          float *head) {
    const sq_hparams *h = &run->model->hparams;
    if (norm->weight)
        norm_row(run, norm, head, h->head_dim, head);
    if (layer->rope != SQ_ROPE_NONE)
        run->model->kernels->rope(head, row_at(&run->cos[layer->rope], t), row_at(&run->sin[layer->rope], t),
                                  1, h->head_dim, h->n_rot);
}

static void cpu_rope_store(sq_run *run, uint32_t layer, uint32_t thread) {
    const sq_kernels *kernels = run->model->kernels;
    const sq_hparams *h = &run->model->hparams;
    const sq_layer *l = &run->model->layers[layer];
    uint32_t n_units = h->n_heads + h->n_kv_heads; /* of a token: its query heads, then its KV heads */
    share units = share_of(run, run->n_tokens * n_units, 1, thread);
    for (uint32_t u = units.first; u < units.last; u++) {
        uint32_t t = u / n_units, head = u % n_units;
        if (head < h->n_heads) {
            head_position(run, l, &l->q_norm, t, row_at(&run->q, t) + head * h->head_dim);
            continue;
        }
        head -= h->n_heads;
        float *k = row_at(&run->k, t) + head * h->head_dim, *v = row_at(&run->v, t) + head * h->head_dim;
        head_position(run, l, &l->k_norm, t, k);
        uint32_t position = run->position + t;
        kernels->kv_store[run->kv->type](k, h->head_dim, sq_kv_key(run->kv, layer, head, position));
        kernels->kv_store[run->kv->type](v, h->head_dim, sq_kv_value(run->kv, layer, head, position));
    }
    sq_pool_barrier(run->pool);
}

/* Query heads [first, last) of one token, group by group. */
static void attend_heads(sq_run *run, uint32_t layer, uint32_t t, share heads, uint32_t thread) {
    const sq_hparams *h = &run->model->hparams;
    uint32_t n_group = h->n_heads / h->n_kv_heads, window = run->model->layers[layer].window;
    uint32_t end = run->position + t + 1;
    uint32_t start = window && end > window ? end - window : 0;
    for (uint32_t head = heads.first; head < heads.last;) {
        uint32_t kv_head = head / n_group, group_end = (kv_head + 1) * n_group;
        uint32_t last = group_end < heads.last ? group_end : heads.last;
        run->model->kernels->attend[run->kv->type](
            row_at(&run->q, t) + head * h->head_dim, sq_kv_key(run->kv, layer, kv_head, start),
            sq_kv_value(run->kv, layer, kv_head, start), end - start, last - head, h->head_dim, h->attn_scale,
            run->scores + thread * run->scores_floats, row_at(&run->attended, t) + head * h->head_dim);
        head = last;
    }
}

static void cpu_attend(sq_run *run, uint32_t layer, uint32_t thread) {
    uint32_t n_heads = run->model->hparams.n_heads;
    if (run->n_tokens == 1) {
        attend_heads(run, layer, 0, share_of(run, n_heads, 1, thread), thread);
    } else {
        /* Later tokens see more: dealing them out in turn balances the work. */
        for (uint32_t t = thread; t < run->n_tokens; t += sq_pool_n_threads(run->pool))
            attend_heads(run, layer, t, (share){0, n_heads}, thread);
    }
    sq_pool_barrier(run->pool);
}

static void cpu_linear_add(sq_run *run, const sq_linear *linear, const sq_rows *in, uint32_t thread) {
    share rows = share_of(run, linear->w.n_out, ROW_GRAIN, thread);
    linear_rows(run, linear, in->data, in->stride, run->n_tokens, run->h.data, run->h.stride, rows, thread);
    for (uint32_t t = 0; t < run->n_tokens; t++)
        run->model->kernels->add(row_at(&run->x, t) + rows.first, row_at(&run->h, t) + rows.first,
                                 rows.last - rows.first);
    if (thread == 0)
        run->stopped = atomic_load_explicit(run->cancel, memory_order_relaxed);
    sq_pool_barrier(run->pool);
}

static void cpu_ffn_up(sq_run *run, const sq_layer *layer, uint32_t thread) {
    const sq_model *model = run->model;
    const float *in = norm_rows(run, &layer->ffn_norm, 0, thread);
    share rows = share_of(run, layer->up.w.n_out, ROW_GRAIN, thread);
    linear_rows(run, &layer->gate, in, run->h.stride, run->n_tokens, run->gate.data, run->gate.stride, rows,
                thread);
    linear_rows(run, &layer->up, in, run->h.stride, run->n_tokens, run->up.data, run->up.stride, rows,
                thread);
    for (uint32_t t = 0; t < run->n_tokens; t++) {
        float *g = row_at(&run->gate, t) + rows.first;
        model->kernels->gated[model->arch->activation](g, row_at(&run->up, t) + rows.first,
                                                       rows.last - rows.first, g);
    }
    sq_pool_barrier(run->pool);
}

static void cpu_logits(sq_run *run, const sq_norm *norm, const sq_linear *head, uint32_t thread) {
    if (!run->n_logits)
        return;
    const float *in = norm_rows(run, norm, run->n_tokens - run->n_logits, thread);
    share rows = share_of(run, head->w.n_out, ROW_GRAIN, thread);
    linear_rows(run, head, in, run->h.stride, run->n_logits, run->logits, head->w.n_out, rows, thread);
    sq_pool_barrier(run->pool);
}

const sq_backend sq_backend_cpu = {
    .name = "cpu",
    .embed = cpu_embed,
    .norm_linears = cpu_norm_linears,
    .rope_store = cpu_rope_store,
    .attend = cpu_attend,
    .linear_add = cpu_linear_add,
    .ffn_up = cpu_ffn_up,
    .logits = cpu_logits,
};
