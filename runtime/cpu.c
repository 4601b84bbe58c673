/* The CPU backend: the operations of backend.h as kernels on threads. Rows of a matrix, heads and tokens
 * are dealt out statically, so that a thread meets the same weights at every token. */
#include "backend.h"

#include <math.h>
#include <string.h>

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

static sq_rows arena_rows(arena *a, size_t n_rows, size_t width) {
    size_t stride = sq_pad(width);
    return (sq_rows){arena_floats(a, stride * n_rows), stride};
}

static uint32_t *arena_integers(arena *a, size_t n) {
    return (uint32_t *)arena_floats(a, n);
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static void experts_layout(sq_run *run, const sq_hparams *h, arena *a) {
    size_t n_places = (size_t)SQ_RUN_TOKENS * h->n_experts_used;
    run->router = arena_rows(a, SQ_RUN_TOKENS, h->n_experts);
    run->routes = (sq_routes){
        .experts = arena_integers(a, n_places),
        .weights = arena_floats(a, n_places),
        .order = arena_integers(a, n_places),
        .first = arena_integers(a, h->n_experts + 1),
    };
    run->routed = arena_rows(a, n_places, h->n_embd);
    run->expert_gate = arena_rows(a, n_places, h->n_ff_expert);
    run->expert_up = arena_rows(a, n_places, h->n_ff_expert);
}

static void run_layout(sq_run *run, const sq_hparams *h, uint32_t n_threads, arena *a) {
    size_t q_width = (size_t)h->n_heads * h->head_dim, kv_width = (size_t)h->n_kv_heads * h->head_dim;
    size_t widest = larger(larger(q_width, h->n_embd), larger(h->n_ff, h->n_ff_expert));
    widest = larger(widest, h->n_token_embd);
    run->x = arena_rows(a, SQ_RUN_TOKENS, h->n_embd);
    run->h = arena_rows(a, SQ_RUN_TOKENS, h->n_embd);
    run->q = arena_rows(a, SQ_RUN_TOKENS, q_width);
    run->k = arena_rows(a, SQ_RUN_TOKENS, kv_width);
    run->v = arena_rows(a, SQ_RUN_TOKENS, kv_width);
    run->attended = arena_rows(a, SQ_RUN_TOKENS, q_width);
    run->gate = arena_rows(a, SQ_RUN_TOKENS, h->n_ff);
    run->up = arena_rows(a, SQ_RUN_TOKENS, h->n_ff);
    for (int i = 0; i < SQ_N_ROPES; i++) {
        run->cos[i] = arena_rows(a, SQ_RUN_TOKENS, h->n_rot / 2);
        run->sin[i] = arena_rows(a, SQ_RUN_TOKENS, h->n_rot / 2);
    }
    run->token_embd = arena_rows(a, SQ_RUN_TOKENS, h->n_token_embd == h->n_embd ? 0 : h->n_token_embd);
    if (h->n_experts)
        experts_layout(run, h, a);
    run->private_h = arena_floats(a, n_threads * sq_pad(h->n_embd));
    size_t scratch_bytes =
        larger(SQ_GEMM_ROWS * sq_pad(widest) * sizeof(float), sq_fixed_scratch_bytes(widest));
    scratch_bytes = larger(scratch_bytes, sq_gemv_scratch_bytes(widest, SQ_FEW_TOKENS));
    run->scratch_floats = sq_pad(scratch_bytes / sizeof(float));
    run->scratch = arena_floats(a, n_threads * run->scratch_floats);
    run->packed =
        arena_floats(a, SQ_RUN_TOKENS / SQ_FIXED_TOKENS * sq_fixed_group_bytes(widest) / sizeof(float));
}

size_t sq_cpu_run_bytes(const sq_model *model, uint32_t n_threads) {
    sq_run run;
    arena counter = {0};
    run_layout(&run, &model->hparams, n_threads, &counter);
    return counter.used;
}

void sq_cpu_run_init(sq_run *run, const sq_model *model, uint32_t n_threads, void *memory) {
    arena a = {memory, 0};
    run_layout(run, &model->hparams, n_threads, &a);
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

/* What matrices multiply: n rows of activations. */
typedef struct operand {
    const float *data;
    size_t stride;
    uint32_t n;
    const void *packed; /* the same in fixed point; NULL: multiply as f32 */
} operand;

/* The rows, n_in wide; packed, behind a barrier, where that is faster and exactness is not asked for. */
static operand operand_of(sq_run *run, const float *data, size_t stride, uint32_t n, uint32_t n_in,
                          uint32_t thread) {
    operand in = {data, stride, n, NULL};
    if (run->model->exact || n <= SQ_FEW_TOKENS)
        return in;
    size_t group_bytes = sq_fixed_group_bytes(n_in);
    share tokens = share_of(run, n, SQ_FIXED_TOKENS, thread);
    for (uint32_t t = tokens.first; t < tokens.last; t += SQ_FIXED_TOKENS) {
        uint32_t left = tokens.last - t;
        run->model->kernels->fixed_pack(data + t * stride, stride,
                                        left < SQ_FIXED_TOKENS ? left : SQ_FIXED_TOKENS, n_in,
                                        (uint8_t *)run->packed + t / SQ_FIXED_TOKENS * group_bytes);
    }
    sq_pool_barrier(run->pool);
    in.packed = run->packed;
    return in;
}

/* Rows of `linear` in the share, for all rows of `in`: out[t][r] = linear(in[t])[r]. */
static void linear_rows(sq_run *run, const sq_linear *linear, const operand *in, float *out,
                        size_t out_stride, share rows, uint32_t thread) {
    const sq_kernels *kernels = run->model->kernels;
    float *scratch = run->scratch + thread * run->scratch_floats, *y = out + rows.first;
    if (rows.first >= rows.last)
        return;
    if (in->n <= SQ_FEW_TOKENS)
        kernels->types[linear->w.type].gemv(&linear->w, in->data, in->stride, in->n, y, out_stride,
                                            rows.first, rows.last, scratch);
    else if (in->packed)
        kernels->fixed_gemm(&linear->w, in->packed, in->n, y, out_stride, rows.first, rows.last, scratch);
    else
        kernels->gemm(&linear->w, in->data, in->stride, in->n, y, out_stride, rows.first, rows.last, scratch);
    if (!linear->bias)
        return;
    for (uint32_t t = 0; t < in->n; t++)
        kernels->add(out + t * out_stride + rows.first, linear->bias + rows.first, rows.last - rows.first);
}

static void norm_row(const sq_run *run, const sq_norm *norm, const float *x, uint32_t n, float *y) {
    const sq_kernels *kernels = run->model->kernels;
    float eps = run->model->hparams.norm_eps;
    if (norm->bias)
        kernels->layer_norm(x, norm->weight, norm->bias, eps, n, y);
    else
        kernels->rms_norm(x, norm->weight, eps, n, y);
}

/* norm(x) of tokens [first, n_tokens). One token: every thread does it for itself, which is cheaper than
 * waiting for one another; more: shared in run->h, behind a barrier. */
static operand norm_rows(sq_run *run, const sq_norm *norm, uint32_t first, uint32_t thread) {
    uint32_t n = run->n_tokens - first, n_embd = run->model->hparams.n_embd;
    if (!norm->weight)
        return operand_of(run, row_at(&run->x, first), run->x.stride, n, n_embd, thread);
    if (n == 1) {
        float *mine = run->private_h + thread * sq_pad(n_embd);
        norm_row(run, norm, row_at(&run->x, first), n_embd, mine);
        return (operand){mine, run->h.stride, 1, NULL};
    }
    share tokens = share_of(run, n, 1, thread);
    for (uint32_t t = first + tokens.first; t < first + tokens.last; t++)
        norm_row(run, norm, row_at(&run->x, t), n_embd, row_at(&run->h, t));
    sq_pool_barrier(run->pool);
    return operand_of(run, row_at(&run->h, first), run->h.stride, n, n_embd, thread);
}

/* ---- operations -------------------------------------------------------------------------------- */

/* The cosines and sines that token t is rotated by in layers of rope table r. */
static void rope_angles(sq_run *run, int r, uint32_t t) {
    const sq_rope *rope = &run->model->ropes[r];
    uint32_t n = run->model->hparams.n_rot / 2;
    if (!rope->frequencies)
        return;
    const float *frequencies = rope->frequencies + (run->long_rope ? n : 0);
    float *cos_row = row_at(&run->cos[r], t), *sin_row = row_at(&run->sin[r], t);
    for (uint32_t i = 0; i < n; i++) {
        float angle = (float)(run->position + t) * frequencies[i];
        cos_row[i] = cosf(angle) * rope->scale;
        sin_row[i] = sinf(angle) * rope->scale;
    }
}

static void expand_row(const sq_run *run, const sq_linear *table, uint32_t row, float *out) {
    run->model->kernels->types[table->w.type].expand_row(&table->w, row, out);
}

static void cpu_embed(sq_run *run, uint32_t thread) {
    const sq_model *model = run->model;
    const sq_kernels *kernels = model->kernels;
    const sq_hparams *h = &model->hparams;
    bool projected = h->n_token_embd != h->n_embd;
    const sq_rows *embedded = projected ? &run->token_embd : &run->x;
    share tokens = share_of(run, run->n_tokens, 1, thread);
    for (uint32_t t = tokens.first; t < tokens.last; t++) {
        expand_row(run, &model->embedding, (uint32_t)run->tokens[t], row_at(embedded, t));
        if (h->embd_scale != 1)
            kernels->scale(row_at(embedded, t), h->embd_scale, h->n_token_embd);
        for (int r = 0; r < SQ_N_ROPES; r++)
            rope_angles(run, r, t);
    }
    if (projected) {
        sq_pool_barrier(run->pool);
        operand in =
            operand_of(run, embedded->data, embedded->stride, run->n_tokens, h->n_token_embd, thread);
        linear_rows(run, &model->embd_in, &in, run->x.data, run->x.stride,
                    share_of(run, h->n_embd, ROW_GRAIN, thread), thread);
        sq_pool_barrier(run->pool);
    }
    for (uint32_t t = tokens.first; model->arch->learned_positions && t < tokens.last; t++) {
        float *position = run->private_h + thread * sq_pad(h->n_embd);
        expand_row(run, &model->positions, run->position + t, position);
        kernels->add(row_at(&run->x, t), position, h->n_embd);
    }
    sq_pool_barrier(run->pool);
}

static void cpu_norm_linears(sq_run *run, const sq_norm *norm, const sq_linear *const *linears,
                             const sq_rows *const *outs, uint32_t n, uint32_t thread) {
    operand in = norm_rows(run, norm, 0, thread);
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
            linear_rows(run, linears[i], &in, outs[i]->data, outs[i]->stride,
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
        kernels->kv_store[run->kv->type](k, v, h->head_dim, run->position + t,
                                         sq_kv_chain(run->kv, layer, head));
    }
    sq_pool_barrier(run->pool);
}

/* Query heads [heads.first, heads.last), which share a KV head, of n_tokens tokens from the t-th on. */
static void attend_heads(sq_run *run, uint32_t layer, share heads, uint32_t t, uint32_t n_tokens) {
    const sq_hparams *h = &run->model->hparams;
    size_t at = (size_t)heads.first * h->head_dim;
    sq_attention attention = {
        .cache = sq_kv_chain(run->kv, layer, heads.first / (h->n_heads / h->n_kv_heads)),
        .head_dim = h->head_dim,
        .window = run->model->layers[layer].window,
        .position = run->position + t,
        .n_tokens = n_tokens,
        .n_heads = heads.last - heads.first,
        .scale = h->attn_scale,
        .cap = h->attn_cap,
        .q = row_at(&run->q, t) + at,
        .out = row_at(&run->attended, t) + at,
        .ldq = run->q.stride,
        .ldo = run->attended.stride,
    };
    run->model->kernels->attend[run->kv->type](&attention);
}

static void cpu_attend(sq_run *run, uint32_t layer, uint32_t thread) {
    const sq_hparams *h = &run->model->hparams;
    uint32_t n_group = h->n_heads / h->n_kv_heads, n_threads = sq_pool_n_threads(run->pool);
    if (run->n_tokens == 1) {
        share mine = share_of(run, h->n_heads, 1, thread);
        for (uint32_t head = mine.first, last; head < mine.last; head = last) {
            last = (head / n_group + 1) * n_group;
            last = last < mine.last ? last : mine.last;
            attend_heads(run, layer, (share){head, last}, 0, 1);
        }
    } else {
        /* As many tokens at once as share a pass over a cache. Later tokens see more: dealing them out in
         * turn balances the work. */
        uint32_t n_at_once = n_group < SQ_ATTEND_ROWS ? SQ_ATTEND_ROWS / n_group : 1;
        uint32_t n_units = (run->n_tokens + n_at_once - 1) / n_at_once * h->n_kv_heads;
        for (uint32_t u = thread; u < n_units; u += n_threads) {
            uint32_t t = u / h->n_kv_heads * n_at_once, first = u % h->n_kv_heads * n_group;
            uint32_t n = run->n_tokens - t < n_at_once ? run->n_tokens - t : n_at_once;
            attend_heads(run, layer, (share){first, first + n_group}, t, n);
        }
    }
    sq_pool_barrier(run->pool);
}

/* The end of a sublayer: its sums may be read by all, and a cancelled run stops. */
static void sublayer_end(sq_run *run, uint32_t thread) {
    if (thread == 0)
        run->stopped = atomic_load_explicit(run->cancel, memory_order_relaxed);
    sq_pool_barrier(run->pool);
}

static void cpu_linear_add(sq_run *run, const sq_linear *linear, const sq_rows *in, const sq_norm *out,
                           const sq_norm *after, uint32_t thread) {
    const sq_kernels *kernels = run->model->kernels;
    uint32_t n_embd = linear->w.n_out;
    share rows = share_of(run, n_embd, ROW_GRAIN, thread), tokens = {0, run->n_tokens};
    operand rows_in = operand_of(run, in->data, in->stride, run->n_tokens, linear->w.n_in, thread);
    linear_rows(run, linear, &rows_in, run->h.data, run->h.stride, rows, thread);
    if (out->weight || after->weight) { /* which take whole tokens */
        rows = (share){0, n_embd};
        tokens = share_of(run, run->n_tokens, 1, thread);
        sq_pool_barrier(run->pool);
    }
    for (uint32_t t = tokens.first; t < tokens.last; t++) {
        float *x = row_at(&run->x, t), *h = row_at(&run->h, t);
        if (out->weight)
            norm_row(run, out, h, n_embd, h);
        kernels->add(x + rows.first, h + rows.first, rows.last - rows.first);
        if (after->weight)
            norm_row(run, after, x, n_embd, x);
    }
    sublayer_end(run, thread);
}

/* gate = activation(gate_linear(in)) · up_linear(in): the thread's share. */
static void gated_rows(sq_run *run, const sq_linear *gate_linear, const sq_linear *up_linear,
                       const operand *in, float *gate, float *up, size_t stride, uint32_t thread) {
    const sq_model *model = run->model;
    share rows = share_of(run, up_linear->w.n_out, ROW_GRAIN, thread);
    linear_rows(run, gate_linear, in, gate, stride, rows, thread);
    linear_rows(run, up_linear, in, up, stride, rows, thread);
    for (uint32_t t = 0; t < in->n; t++) {
        float *g = gate + t * stride + rows.first;
        model->kernels->gated[model->arch->activation](g, up + t * stride + rows.first,
                                                       rows.last - rows.first, g);
    }
}

static void cpu_ffn_up(sq_run *run, const sq_norm *norm, const sq_layer *layer, uint32_t thread) {
    const sq_model *model = run->model;
    operand in = norm_rows(run, norm, 0, thread);
    if (!model->arch->plain_ffn) {
        gated_rows(run, &layer->gate, &layer->up, &in, run->gate.data, run->up.data, run->gate.stride,
                   thread);
    } else {
        share rows = share_of(run, layer->up.w.n_out, ROW_GRAIN, thread);
        linear_rows(run, &layer->up, &in, run->gate.data, run->gate.stride, rows, thread);
        for (uint32_t t = 0; t < run->n_tokens; t++)
            model->kernels->relu(row_at(&run->gate, t) + rows.first, rows.last - rows.first);
    }
    sq_pool_barrier(run->pool);
}

/* Chooses the experts of every row of `in`, exactly, as they decide about what follows; and of more than one
 * token gathers the rows by expert. */
static void route(sq_run *run, operand in, const sq_linear *router, uint32_t thread) {
    const sq_hparams *h = &run->model->hparams;
    sq_routes *routes = &run->routes;
    uint32_t n_used = h->n_experts_used, n_places = run->n_tokens * n_used;
    in.packed = NULL;
    linear_rows(run, router, &in, run->router.data, run->router.stride,
                share_of(run, h->n_experts, ROW_GRAIN, thread), thread);
    sq_pool_barrier(run->pool);
    share tokens = share_of(run, run->n_tokens, 1, thread), places = share_of(run, n_places, 1, thread);
    for (uint32_t t = tokens.first; t < tokens.last; t++)
        sq_experts_choose(row_at(&run->router, t), h->n_experts, n_used, h->expert_weights_norm,
                          routes->experts + t * n_used, routes->weights + t * n_used);
    sq_pool_barrier(run->pool);
    if (thread == 0)
        sq_experts_group(routes, n_places, h->n_experts);
    sq_pool_barrier(run->pool);
    if (run->n_tokens == 1)
        return;
    for (uint32_t i = places.first; i < places.last; i++)
        memcpy(row_at(&run->routed, i), in.data + routes->order[i] / n_used * in.stride,
               h->n_embd * sizeof *in.data);
    sq_pool_barrier(run->pool);
}

static void cpu_experts_add(sq_run *run, const sq_norm *norm, const sq_layer *layer, uint32_t thread) {
    const sq_kernels *kernels = run->model->kernels;
    const sq_hparams *h = &run->model->hparams;
    const sq_routes *routes = &run->routes;
    operand in = norm_rows(run, norm, 0, thread);
    route(run, in, &layer->router, thread);
    for (uint32_t e = 0; e < h->n_experts; e++) {
        const sq_expert *expert = &layer->experts[e];
        uint32_t first = routes->first[e], n = routes->first[e + 1] - first;
        operand rows = {row_at(&run->routed, first), run->routed.stride, n, NULL};
        if (n) /* of a single token every expert has one place */
            gated_rows(run, &expert->gate, &expert->up, run->n_tokens == 1 ? &in : &rows,
                       row_at(&run->expert_gate, first), row_at(&run->expert_up, first),
                       run->expert_gate.stride, thread);
    }
    sq_pool_barrier(run->pool);
    share rows = share_of(run, h->n_embd, ROW_GRAIN, thread);
    for (uint32_t e = 0; e < h->n_experts; e++) {
        uint32_t first = routes->first[e], n = routes->first[e + 1] - first;
        operand in_rows = {row_at(&run->expert_gate, first), run->expert_gate.stride, n, NULL};
        if (n)
            linear_rows(run, &layer->experts[e].down, &in_rows, row_at(&run->routed, first),
                        run->routed.stride, rows, thread);
    }
    for (uint32_t i = 0; i < run->n_tokens * h->n_experts_used; i++) {
        uint32_t place = routes->order[i], t = place / h->n_experts_used;
        float *out = row_at(&run->routed, i) + rows.first;
        kernels->scale(out, routes->weights[place], rows.last - rows.first);
        kernels->add(row_at(&run->x, t) + rows.first, out, rows.last - rows.first);
    }
    sublayer_end(run, thread);
}

static void cpu_logits(sq_run *run, const sq_norm *norm, const sq_linear *head, uint32_t thread) {
    if (!run->n_logits)
        return;
    const sq_model *model = run->model;
    const sq_hparams *h = &model->hparams;
    operand in = norm_rows(run, norm, run->n_tokens - run->n_logits, thread);
    if (h->n_token_embd != h->n_embd) {
        linear_rows(run, &model->embd_out, &in, run->token_embd.data, run->token_embd.stride,
                    share_of(run, h->n_token_embd, ROW_GRAIN, thread), thread);
        sq_pool_barrier(run->pool);
        in = operand_of(run, run->token_embd.data, run->token_embd.stride, run->n_logits, h->n_token_embd,
                        thread);
    }
    share rows = share_of(run, h->n_vocab, ROW_GRAIN, thread);
    linear_rows(run, head, &in, run->logits, h->n_vocab, rows, thread);
    for (uint32_t t = 0; h->logit_cap > 0 && t < run->n_logits; t++)
        model->kernels->softcap(run->logits + (size_t)t * h->n_vocab + rows.first, h->logit_cap,
                                rows.last - rows.first);
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
    .experts_add = cpu_experts_add,
    .logits = cpu_logits,
};
