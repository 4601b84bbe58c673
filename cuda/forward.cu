/* The forward pass of models/decoder.c as launches: five a layer, where its norms are of the usual kind. */
#include "session.h"

/* Tokens [first, …) of an operand. */
static gpu_operand operand_at(gpu_operand o, uint32_t first) {
    o.data += (size_t)2 * first * o.stride;
    return o;
}

void gpu_multiply(gpu_launch *l, const gpu_product *p, bool exact) {
    if (p->n_tokens > GPU_GEMV_TOKENS && !exact) {
        gpu_gemm(l, p);
        return;
    }
    uint32_t at_once = exact ? GPU_FEW_TOKENS : GPU_GEMV_TOKENS;
    gpu_product part = *p;
    for (uint32_t first = 0; first < p->n_tokens; first += at_once) {
        part.n_tokens = min(p->n_tokens - first, at_once);
        part.in = operand_at(p->in, first);
        part.next = p->next.data ? operand_at(p->next, first) : p->next;
        part.out = p->out ? p->out + (size_t)first * p->out_stride : nullptr;
        if (p->in_squares.sums)
            part.in_squares.sums = p->in_squares.sums + (size_t)first * p->in_squares.stride;
        part.next_squares = p->next_squares ? p->next_squares + (size_t)first * p->w.n_tiles : nullptr;
        gpu_gemv(l, &part, {});
    }
}

static gpu_product product_of(const gpu_matrix *w, gpu_operand in, const gpu_squares *squares,
                              uint32_t n_tokens, gpu_use use) {
    gpu_product p = {};
    p.w = *w;
    p.in = in;
    if (squares)
        p.in_squares = *squares;
    p.n_tokens = n_tokens;
    p.use = use;
    return p;
}

/* out = W in + bias */
static void store(sq_device_session *s, gpu_launch *l, const gpu_matrix *w, gpu_operand in,
                  const gpu_squares *squares, uint32_t n_tokens, float *out, uint32_t out_stride, float cap) {
    gpu_product p = product_of(w, in, squares, n_tokens, GPU_STORE);
    p.out = out;
    p.out_stride = out_stride;
    p.cap = cap;
    gpu_multiply(l, &p, s->device->model->exact);
}

/* x = after(x + out(W in)), normed = before(x). Where only `before` is there, and is the usual norm, all in
 * one launch, but for the division by the root mean square: the next matrices do that. */
static void add(sq_device_session *s, gpu_launch *l, const gpu_matrix *w, gpu_operand in, uint32_t n_tokens,
                gpu_norm out, gpu_norm after, gpu_norm before, gpu_squares *squares) {
    const sq_hparams *h = &s->device->model->hparams;
    if (n_tokens <= GPU_GEMV_TOKENS && !out.weight && !after.weight && before.weight && !before.bias) {
        gpu_product p = product_of(w, in, nullptr, n_tokens, GPU_ADD);
        p.out = s->x;
        p.out_stride = s->x_stride;
        p.next = s->normed;
        p.next_weight = before.weight;
        p.next_squares = s->squares;
        gpu_multiply(l, &p, s->device->model->exact);
        *squares = {s->squares, w->n_tiles, w->n_tiles, h->n_embd, h->norm_eps};
        return;
    }
    store(s, l, w, in, nullptr, n_tokens, s->h, s->x_stride, 0);
    gpu_residual r = {s->x, s->x_stride, h->n_embd, s->h, out, after, before, s->normed, h->norm_eps, {}};
    gpu_add_residual(l, &r, n_tokens);
    *squares = {};
}

/* A product of each place with its expert's matrix: a launch for every width that experts have. */
static void experts_multiply(sq_device_session *s, gpu_launch *l, const gpu_experts *experts, gpu_product p) {
    p.w = experts->like;
    p.experts = experts->each;
    p.jobs = s->routes.jobs;
    p.n_jobs = gpu_n_jobs(&s->routes, p.n_tokens);
    p.n_tokens = min(p.n_tokens, (uint32_t)GPU_FEW_TOKENS);
    for (uint32_t bits : {2u, 3u, 4u, 8u, 16u})
        if (experts->widths >> bits & 1) {
            p.w.bits = bits;
            p.w.n_spans = sq_n_spans(bits, p.w.n_in);
            gpu_gemv(l, &p, {});
        }
}

/* As layer_ffn and add of a layer that is a mixture of experts. The router is exact, as it decides about what
 * follows; of a prompt an expert's tokens go by eights, in both parts. */
static void mixture_add(sq_device_session *s, gpu_launch *l, const gpu_layer *layer, uint32_t n_tokens,
                        gpu_norm out, gpu_norm after, gpu_norm before, gpu_squares *squares) {
    const sq_model *m = s->device->model;
    const sq_hparams *h = &m->hparams;
    gpu_product router = product_of(&layer->router, s->normed, squares, n_tokens, GPU_STORE);
    router.out = s->router;
    router.out_stride = s->router_stride;
    gpu_multiply(l, &router, true);
    gpu_route(l, s->router, s->router_stride, h->expert_weights_norm, &s->routes, n_tokens);

    gpu_product up =
        product_of(&layer->router, s->normed, squares, n_tokens, layer->interleaved ? GPU_GATED : GPU_STORE);
    up.in_rows = s->routes.tokens;
    up.next = s->expert_ff;
    up.activation = m->arch->activation;
    up.out_stride = s->expert_stride;
    up.out = s->expert_up;
    experts_multiply(s, l, &layer->expert_up, up);
    if (!layer->interleaved) {
        up.out = s->expert_gate;
        experts_multiply(s, l, &layer->expert_gate, up);
        gpu_gate(l, s->expert_gate, s->expert_up, s->expert_stride, h->n_ff_expert, m->arch->activation,
                 s->expert_ff, n_tokens * h->n_experts_used);
    }
    gpu_product down = product_of(&layer->router, s->expert_ff, nullptr, n_tokens, GPU_STORE);
    down.out = s->routed;
    down.out_stride = s->x_stride;
    experts_multiply(s, l, &layer->expert_down, down);
    gpu_residual r = {s->x,  s->x_stride, h->n_embd, s->routed,   out,
                      after, before,      s->normed, h->norm_eps, s->routes};
    gpu_add_residual(l, &r, n_tokens);
    *squares = {};
}

gpu_attention gpu_layer_attention(const sq_device_session *s, uint32_t index, uint32_t n_tokens) {
    const sq_device *d = s->device;
    const sq_hparams *h = &d->model->hparams;
    const gpu_layer *layer = &d->layers[index];
    const sq_layer *described = &d->model->layers[index];
    gpu_attention a = {};
    a.step = s->step;
    a.qkv = s->qkv;
    a.stride = s->qkv_stride;
    a.k_at = gpu_padded(h->n_heads * h->head_dim);
    a.v_at = a.k_at + gpu_padded(h->n_kv_heads * h->head_dim);
    a.exact = d->model->exact;
    a.kv = s->kv;
    a.keys = s->cache + (index - d->first_layer) * (s->cache_keys + s->cache_values);
    a.values = a.keys + s->cache_keys;
    a.n_ctx = s->n_ctx;
    a.pitch = gpu_row_pitch(h->head_dim);
    a.key_bytes = s->key_bytes;
    a.value_bytes = s->value_bytes;
    a.n_heads = h->n_heads;
    a.n_kv_heads = h->n_kv_heads;
    a.head_dim = h->head_dim;
    a.n_rot = h->n_rot;
    a.window = described->window;
    a.scale = h->attn_scale;
    a.cap = h->attn_cap;
    a.eps = h->norm_eps;
    a.q_norm = layer->q_norm;
    a.k_norm = layer->k_norm;
    if (described->rope != SQ_ROPE_NONE && d->frequencies[described->rope])
        a.angles = s->angles + (size_t)described->rope * n_tokens * (h->n_rot / 2);
    a.out = s->attended;
    a.partial = s->partial;
    a.arrivals = s->arrivals;
    a.n_tokens = n_tokens;
    return a;
}

static void layer_attend(sq_device_session *s, gpu_launch *l, uint32_t index, const gpu_squares *squares,
                         uint32_t n_tokens) {
    const gpu_layer *layer = &s->device->layers[index];
    uint32_t at = 0;
    for (uint32_t i = 0; i < layer->n_qkv; i++) {
        store(s, l, &layer->qkv[i], s->normed, squares, n_tokens, s->qkv + at, s->qkv_stride, 0);
        at += gpu_rows(&layer->qkv[i]);
    }
    gpu_attention a = gpu_layer_attention(s, index, n_tokens);
    gpu_attend(l, &a);
}

static void layer_ffn(sq_device_session *s, gpu_launch *l, uint32_t index, const gpu_squares *squares,
                      uint32_t n_tokens) {
    const sq_model *m = s->device->model;
    const gpu_layer *layer = &s->device->layers[index];
    if (!layer->interleaved && !m->arch->plain_ffn) {
        store(s, l, &layer->gate, s->normed, squares, n_tokens, s->gate, s->ff_stride, 0);
        store(s, l, &layer->up, s->normed, squares, n_tokens, s->up, s->ff_stride, 0);
        gpu_gate(l, s->gate, s->up, s->ff_stride, m->hparams.n_ff, m->arch->activation, s->ff, n_tokens);
        return;
    }
    gpu_product p =
        product_of(&layer->up, s->normed, squares, n_tokens, layer->interleaved ? GPU_GATED : GPU_OPERAND);
    p.next = s->ff;
    p.activation = m->arch->activation;
    p.relu = true;
    gpu_multiply(l, &p, s->device->model->exact);
}

/* What a norm before a sublayer is, and one behind the addition: decoder.c, layer_forward. */
static gpu_norm norm_if(bool there, gpu_norm norm) {
    return there ? norm : gpu_norm{};
}

/* The norm before layer `index`, or before the head. */
static gpu_norm norm_before(const sq_device *d, uint32_t index) {
    if (index == d->model->hparams.n_layers)
        return d->output_norm;
    return norm_if(!d->model->hparams.post_norm, d->layers[index].attn_norm);
}

static void enter(sq_device_session *s, gpu_launch *l, uint32_t n_tokens) {
    const sq_device *d = s->device;
    const sq_hparams *h = &d->model->hparams;
    bool projected = !d->first_layer && h->n_token_embd != h->n_embd;
    gpu_entry e = {};
    e.step = s->step;
    e.given = s->given;
    e.embedding = d->embedding;
    e.scale = h->embd_scale;
    for (int i = 0; i < SQ_N_ROPES; i++) {
        e.angles.frequencies[i] = d->frequencies[i];
        e.angles.scale[i] = d->model->ropes[i].scale;
    }
    e.angles.table = s->angles;
    e.angles.half = h->n_rot / 2;
    gpu_residual r = {};
    r.eps = h->norm_eps;
    if (projected) {
        r.n = h->n_token_embd;
        r.next = s->token_embd;
        gpu_enter(l, &e, &r, n_tokens);
        store(s, l, &d->embd_in, s->token_embd, nullptr, n_tokens, s->x, s->x_stride, 0);
        e.given = s->x; /* and now from there */
        e.given_stride = s->x_stride;
    } else {
        e.given_stride = h->n_embd;
    }
    e.positions = d->positions;
    r.x = s->x;
    r.stride = s->x_stride;
    r.n = h->n_embd;
    r.before = norm_before(d, d->first_layer);
    r.next = s->normed;
    gpu_enter(l, &e, &r, n_tokens);
}

void gpu_forward(sq_device_session *s, gpu_launch *l, uint32_t n_tokens) {
    const sq_device *d = s->device;
    bool post = d->model->hparams.post_norm;
    gpu_squares squares = {};
    enter(s, l, n_tokens);
    for (uint32_t i = d->first_layer; i < d->model->hparams.n_layers; i++) {
        const gpu_layer *layer = &d->layers[i];
        layer_attend(s, l, i, &squares, n_tokens);
        add(s, l, &layer->output, s->attended, n_tokens, layer->attn_out_norm,
            norm_if(post, layer->attn_norm), norm_if(!post, layer->ffn_norm), &squares);
        gpu_norm after = norm_if(post, layer->ffn_norm), before = norm_before(d, i + 1);
        if (d->model->layers[i].experts) {
            mixture_add(s, l, layer, n_tokens, layer->ffn_out_norm, after, before, &squares);
            continue;
        }
        layer_ffn(s, l, i, &squares, n_tokens);
        add(s, l, &layer->down, s->ff, n_tokens, layer->ffn_out_norm, after, before, &squares);
    }
    s->final_squares = squares;
}

void gpu_logits(sq_device_session *s, gpu_launch *l, uint32_t first, uint32_t n) {
    const sq_device *d = s->device;
    const sq_hparams *h = &d->model->hparams;
    gpu_operand in = operand_at(s->normed, first);
    gpu_squares squares = s->final_squares;
    if (squares.sums)
        squares.sums += (size_t)first * squares.stride;
    if (h->n_token_embd != h->n_embd) {
        gpu_product p = product_of(&d->embd_out, in, &squares, n, GPU_OPERAND);
        p.next = s->token_embd;
        gpu_multiply(l, &p, s->device->model->exact);
        in = s->token_embd;
        squares = {};
    }
    store(s, l, &d->head, in, &squares, n, s->logits, s->logits_stride, h->logit_cap);
    gpu_argmax(l, s->logits, s->logits_stride, h->n_vocab, s->greedy, n);
}
