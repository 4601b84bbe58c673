#include "decoder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "status.h"

enum {
    MAX_LAYERS = 1024,
    MAX_WIDTH = 1 << 20,
    MAX_HEADS = 4096,
    MAX_VOCAB = 1 << 22,
    MAX_CONTEXT = 1 << 24,
    MAX_EXPERTS = 1024
};

/* ---- hyperparameters --------------------------------------------------------------------------- */

static sq_status sizes_load(sq_model *m, sq_error *error) {
    sq_hparams *h = &m->hparams;
    const struct {
        const char *key;
        uint32_t low, high;
        bool optional;
        uint32_t *fallback; /* read when its turn comes: an earlier field */
        uint32_t *value;
    } fields[] = {
        {"block_count", 1, MAX_LAYERS, false, NULL, &h->n_layers},
        {"embedding_length", 1, MAX_WIDTH, false, NULL, &h->n_embd},
        {"feed_forward_length", 1, MAX_WIDTH, false, NULL, &h->n_ff},
        {"attention.head_count", 1, MAX_HEADS, false, NULL, &h->n_heads},
        {"attention.head_count_kv", 1, MAX_HEADS, true, &h->n_heads, &h->n_kv_heads},
        {"attention.key_length", 1, MAX_WIDTH, false, NULL, &h->head_dim},
        {"rope.dimension_count", m->arch->learned_positions ? 0 : 2, MAX_WIDTH, true, &h->head_dim,
         &h->n_rot},
        {"context_length", 1, MAX_CONTEXT, false, NULL, &h->n_ctx_train},
        {"vocab_size", 1, MAX_VOCAB, false, NULL, &h->n_vocab},
        {"token_embedding_length", 1, MAX_WIDTH, true, &h->n_embd, &h->n_token_embd},
        {"expert_count", 0, MAX_EXPERTS, true, NULL, &h->n_experts},
        {"expert_used_count", 0, MAX_EXPERTS, true, NULL, &h->n_experts_used},
        {"expert_feed_forward_length", 0, MAX_WIDTH, true, NULL, &h->n_ff_expert},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        sq_status status =
            sq_model_load_u32(m, fields[i].key, fields[i].low, fields[i].high, fields[i].optional,
                              fields[i].fallback ? *fields[i].fallback : 0, fields[i].value, error);
        if (status)
            return status;
    }
    const char *arch = m->arch->name;
    if (h->n_heads % h->n_kv_heads)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s.attention: %u query heads do not share %u KV heads evenly; the file is damaged",
                       arch, h->n_heads, h->n_kv_heads);
    if (h->n_rot % 2 || h->n_rot > h->head_dim || (uint64_t)h->n_heads * h->head_dim > MAX_WIDTH)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s: %u heads of size %u with %u rotated dimensions cannot be; the file is damaged",
                       arch, h->n_heads, h->head_dim, h->n_rot);
    if (h->n_experts && (!h->n_experts_used || h->n_experts_used > h->n_experts || !h->n_ff_expert))
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s: %u of %u experts of width %u cannot be used; the file is damaged", arch,
                       h->n_experts_used, h->n_experts, h->n_ff_expert);
    return SQ_OK;
}

static sq_status hparams_load(sq_model *m, sq_error *error) {
    sq_hparams *h = &m->hparams;
    sq_status status = sizes_load(m, error);
    const struct {
        const char *key;
        bool optional;
        float fallback;
        float *value;
    } fields[] = {
        {m->arch->layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", false, 0,
         &h->norm_eps},
        {"embedding_scale", true, 1, &h->embd_scale},
        {"attention.scale", true, 1 / sqrtf((float)h->head_dim), &h->attn_scale},
        {"attn_logit_softcapping", true, 0, &h->attn_cap},
        {"final_logit_softcapping", true, 0, &h->logit_cap},
    };
    for (size_t i = 0; !status && i < sizeof fields / sizeof *fields; i++)
        status = sq_model_load_f32(m, fields[i].key, fields[i].optional, fields[i].fallback, fields[i].value,
                                   error);
    if (!status)
        status = sq_model_load_bool(m, "expert_weights_norm", &h->expert_weights_norm, error);
    return status ? status : sq_model_load_bool(m, "post_norm", &h->post_norm, error);
}

/* ---- rotation ---------------------------------------------------------------------------------- */

/* Plain frequencies base^(-2i / n_rot), divided by the tensor `divisors_name` (NULL: by nothing).
 * transformers computes base^(2i/d) and its inverse in f32, and so do we. */
static sq_status frequencies_load(sq_model *m, float base, const char *divisors_name, float *frequencies,
                                  sq_error *error) {
    uint32_t n_rot = m->hparams.n_rot;
    const float *divisors = NULL;
    if (divisors_name) {
        sq_status status = sq_model_load_vector(m, divisors_name, n_rot / 2, &divisors, error);
        if (status)
            return status;
    }
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        frequencies[i] = 1.0f / powf(base, (float)(2 * i) / (float)n_rot);
        if (divisors)
            frequencies[i] /= divisors[i];
    }
    return SQ_OK;
}

static bool has_tensor(const sq_model *m, const char *name) {
    return sq_gguf_find_tensor(m->file, name) != NULL;
}

static sq_status frequencies_create(const sq_model *m, sq_rope *rope, sq_error *error) {
    uint32_t n = m->hparams.n_rot / 2;
    rope->frequencies = calloc(2 * (size_t)n + 1, sizeof *rope->frequencies);
    return rope->frequencies ? SQ_OK : sq_fail(error, SQ_ERROR_MEMORY, "no memory for %u frequencies", n);
}

/* The table of its own that layers with a window have in some families; plain. */
static sq_status local_rope_load(sq_model *m, sq_error *error) {
    sq_rope *rope = &m->ropes[SQ_ROPE_LOCAL];
    uint32_t n = m->hparams.n_rot / 2;
    float base = 0;
    sq_status status = sq_model_load_f32(m, "rope.freq_base_swa", true, 0, &base, error);
    if (status || base == 0)
        return status;
    rope->scale = 1;
    status = frequencies_create(m, rope, error);
    if (!status)
        status = frequencies_load(m, base, NULL, rope->frequencies, error);
    if (!status)
        status = frequencies_load(m, base, NULL, rope->frequencies + n, error);
    return status;
}

static sq_status rope_load(sq_model *m, sq_error *error) {
    sq_rope *rope = &m->ropes[SQ_ROPE_MAIN];
    sq_hparams *h = &m->hparams;
    uint32_t n = h->n_rot / 2;
    float base = 0;
    sq_status status = sq_model_load_f32(m, "rope.freq_base", true, 10000, &base, error);
    if (!status)
        status = sq_model_load_f32(m, "rope.scaling.attn_factor", true, 1, &rope->scale, error);
    if (!status)
        status = frequencies_create(m, rope, error);
    if (!status)
        status = local_rope_load(m, error);
    if (status)
        return status;
    if (!has_tensor(m, "rope_factors_short.weight") && !has_tensor(m, "rope_factors_long.weight")) {
        h->n_ctx_short = UINT32_MAX;
        return frequencies_load(m, base, has_tensor(m, "rope_freqs.weight") ? "rope_freqs.weight" : NULL,
                                rope->frequencies, error);
    }
    status = sq_model_load_u32(m, "rope.scaling.original_context_length", 1, MAX_CONTEXT, false, 0,
                               &h->n_ctx_short, error);
    if (!status)
        status = frequencies_load(m, base, "rope_factors_short.weight", rope->frequencies, error);
    if (!status)
        status = frequencies_load(m, base, "rope_factors_long.weight", rope->frequencies + n, error);
    return status;
}

/* ---- layers ------------------------------------------------------------------------------------ */

/* The array `key`, a number in [low, high] for each layer, or `fallback` for all where it is missing. */
static sq_status per_layer_load(const sq_model *m, const char *key, int32_t low, int32_t high,
                                int32_t fallback, int32_t *values, sq_error *error) {
    uint32_t n_layers = m->hparams.n_layers;
    for (uint32_t i = 0; i < n_layers; i++)
        values[i] = fallback;
    if (!sq_gguf_has(m->file, key))
        return SQ_OK;
    uint64_t n;
    if (!sq_gguf_count_i32(m->file, key, &n) || n != n_layers)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s: expected an array of %u integers, one a layer; the file is damaged", key,
                       n_layers);
    sq_gguf_copy_i32(m->file, key, values);
    for (uint32_t i = 0; i < n_layers; i++)
        if (values[i] < low || values[i] > high)
            return sq_fail(error, SQ_ERROR_FORMAT,
                           "%s: layer %u: expected %d to %d, found %d; the file is damaged", key, i, low,
                           high, values[i]);
    return SQ_OK;
}

/* Which tokens each layer sees, and how it marks their positions. */
static sq_status ranges_load(sq_model *m, sq_error *error) {
    uint32_t window = 0;
    int32_t values[MAX_LAYERS];
    sq_status status =
        sq_model_load_u32(m, "attention.sliding_window", 0, MAX_CONTEXT, true, 0, &window, error);
    if (!status)
        status =
            per_layer_load(m, "squeezellm.layers.window", 0, MAX_CONTEXT, (int32_t)window, values, error);
    for (uint32_t i = 0; !status && i < m->hparams.n_layers; i++)
        m->layers[i].window = (uint32_t)values[i];
    if (!status)
        status = per_layer_load(m, "squeezellm.layers.rope", SQ_ROPE_NONE,
                                m->ropes[SQ_ROPE_LOCAL].frequencies ? SQ_ROPE_LOCAL : SQ_ROPE_MAIN,
                                SQ_ROPE_MAIN, values, error);
    for (uint32_t i = 0; !status && i < m->hparams.n_layers; i++)
        m->layers[i].rope = values[i];
    return status;
}

/* A matrix of a layer: blk.INDEX.NAME. */
typedef struct layer_linear {
    const char *name;
    bool present;
    uint32_t n_out, n_in;
    sq_linear *linear;
} layer_linear;

static sq_status linears_load(sq_model *m, uint32_t index, const layer_linear *linears, size_t n,
                              sq_error *error) {
    sq_status status = SQ_OK;
    for (size_t i = 0; !status && i < n; i++) {
        char name[SQ_NAME_BYTES];
        snprintf(name, sizeof name, "blk.%u.%s", index, linears[i].name);
        if (linears[i].present)
            status =
                sq_model_load_linear(m, name, linears[i].n_out, linears[i].n_in, linears[i].linear, error);
    }
    return status;
}

static sq_status experts_load(sq_model *m, uint32_t index, sq_error *error) {
    const sq_hparams *h = &m->hparams;
    sq_layer *l = &m->layers[index];
    const layer_linear router = {"ffn_gate_inp", true, h->n_experts, h->n_embd, &l->router};
    sq_status status = linears_load(m, index, &router, 1, error);
    if (status)
        return status;
    l->experts = calloc(h->n_experts, sizeof *l->experts);
    if (!l->experts)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for %u experts", h->n_experts);
    for (uint32_t e = 0; !status && e < h->n_experts; e++) {
        sq_expert *expert = &l->experts[e];
        char names[3][32];
        snprintf(names[0], sizeof names[0], "ffn_gate.%u", e);
        snprintf(names[1], sizeof names[1], "ffn_up.%u", e);
        snprintf(names[2], sizeof names[2], "ffn_down.%u", e);
        const layer_linear linears[] = {
            {names[0], true, h->n_ff_expert, h->n_embd, &expert->gate},
            {names[1], true, h->n_ff_expert, h->n_embd, &expert->up},
            {names[2], true, h->n_embd, h->n_ff_expert, &expert->down},
        };
        status = linears_load(m, index, linears, 3, error);
    }
    return status;
}

static sq_status layer_load(sq_model *m, uint32_t index, bool mixture, sq_error *error) {
    const sq_hparams *h = &m->hparams;
    sq_layer *l = &m->layers[index];
    uint32_t n_q = h->n_heads * h->head_dim, n_kv = h->n_kv_heads * h->head_dim;
    const struct {
        const char *name;
        bool present;
        uint32_t n;
        sq_norm *norm;
    } norms[] = {
        {"attn_norm", true, h->n_embd, &l->attn_norm},
        {"attn_q_norm", m->arch->qk_norm, h->head_dim, &l->q_norm},
        {"attn_k_norm", m->arch->qk_norm, h->head_dim, &l->k_norm},
        {"ffn_norm", true, h->n_embd, &l->ffn_norm},
        {"post_attention_norm", m->arch->out_norms, h->n_embd, &l->attn_out_norm},
        {"post_ffw_norm", m->arch->out_norms, h->n_embd, &l->ffn_out_norm},
    };
    const layer_linear linears[] = {
        {"attn_q", true, n_q, h->n_embd, &l->q},
        {"attn_k", true, n_kv, h->n_embd, &l->k},
        {"attn_v", true, n_kv, h->n_embd, &l->v},
        {"attn_output", true, h->n_embd, n_q, &l->attn_output},
        {"ffn_gate", !mixture && !m->arch->plain_ffn, h->n_ff, h->n_embd, &l->gate},
        {"ffn_up", !mixture, h->n_ff, h->n_embd, &l->up},
        {"ffn_down", !mixture, h->n_embd, h->n_ff, &l->down},
    };
    sq_status status = SQ_OK;
    for (size_t i = 0; !status && i < sizeof norms / sizeof *norms; i++) {
        char name[SQ_NAME_BYTES];
        snprintf(name, sizeof name, "blk.%u.%s", index, norms[i].name);
        if (norms[i].present)
            status = sq_model_load_norm(m, name, norms[i].n, norms[i].norm, error);
    }
    if (!status)
        status = linears_load(m, index, linears, sizeof linears / sizeof *linears, error);
    return status || !mixture ? status : experts_load(m, index, error);
}

static sq_status layers_load(sq_model *m, sq_error *error) {
    int32_t mixtures[MAX_LAYERS];
    int32_t some = m->hparams.n_experts > 0;
    sq_status status = per_layer_load(m, "squeezellm.layers.experts", 0, some, some, mixtures, error);
    for (uint32_t i = 0; !status && i < m->hparams.n_layers; i++)
        status = layer_load(m, i, mixtures[i], error);
    return status;
}

/* ---- the model --------------------------------------------------------------------------------- */

/* What comes before the layers. */
static sq_status embedding_load(sq_model *m, sq_error *error) {
    const sq_hparams *h = &m->hparams;
    sq_status status =
        sq_model_load_linear(m, "token_embd", h->n_vocab, h->n_token_embd, &m->embedding, error);
    if (!status && h->n_token_embd != h->n_embd)
        status = sq_model_load_linear(m, "token_embd_in", h->n_embd, h->n_token_embd, &m->embd_in, error);
    if (!status && m->arch->learned_positions)
        status = sq_model_load_linear(m, "position_embd", h->n_ctx_train, h->n_embd, &m->positions, error);
    return status;
}

/* What comes behind them. */
static sq_status head_load(sq_model *m, sq_error *error) {
    const sq_hparams *h = &m->hparams;
    sq_status status = SQ_OK;
    if (!h->post_norm)
        status = sq_model_load_norm(m, "output_norm", h->n_embd, &m->output_norm, error);
    if (!status && h->n_token_embd != h->n_embd)
        status = sq_model_load_linear(m, "token_embd_out", h->n_token_embd, h->n_embd, &m->embd_out, error);
    if (status)
        return status;
    m->tied = !has_tensor(m, "output.weight") && !has_tensor(m, "output.weight.codes");
    if (!m->tied)
        return sq_model_load_linear(m, "output", h->n_vocab, h->n_token_embd, &m->head, error);
    m->head = m->embedding;
    return SQ_OK;
}

sq_status sq_decoder_load(sq_model *m, sq_error *error) {
    sq_status status = hparams_load(m, error);
    if (status)
        return status;
    const sq_hparams *h = &m->hparams;
    m->layers = calloc(h->n_layers, sizeof *m->layers);
    if (!m->layers)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for %u layers", h->n_layers);
    status = rope_load(m, error);
    if (!status)
        status = ranges_load(m, error);
    if (!status)
        status = embedding_load(m, error);
    if (!status)
        status = layers_load(m, error);
    return status ? status : head_load(m, error);
}

static void layer_forward(sq_run *run, const sq_layer *l, uint32_t index, uint32_t thread) {
    static const sq_norm none;
    const sq_backend *b = run->backend;
    bool post = run->model->hparams.post_norm;
    const sq_norm *attn_before = post ? &none : &l->attn_norm, *attn_after = post ? &l->attn_norm : &none;
    const sq_norm *ffn_before = post ? &none : &l->ffn_norm, *ffn_after = post ? &l->ffn_norm : &none;
    b->norm_linears(run, attn_before, (const sq_linear *[]){&l->q, &l->k, &l->v},
                    (const sq_rows *[]){&run->q, &run->k, &run->v}, 3, thread);
    b->rope_store(run, index, thread);
    b->attend(run, index, thread);
    b->linear_add(run, &l->attn_output, &run->attended, &l->attn_out_norm, attn_after, thread);
    if (l->experts) {
        b->experts_add(run, ffn_before, l, thread);
        return;
    }
    b->ffn_up(run, ffn_before, l, thread);
    b->linear_add(run, &l->down, &run->gate, &l->ffn_out_norm, ffn_after, thread);
}

void sq_decoder_forward(sq_run *run, uint32_t thread) {
    const sq_model *m = run->model;
    run->backend->embed(run, thread);
    for (uint32_t i = 0; i < m->n_cpu_layers && !run->stopped; i++)
        layer_forward(run, &m->layers[i], i, thread);
    if (!run->stopped)
        run->backend->logits(run, &m->output_norm, &m->head, thread);
}
