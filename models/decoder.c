#include "decoder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "status.h"

enum { MAX_LAYERS = 1024, MAX_WIDTH = 1 << 20, MAX_HEADS = 4096, MAX_VOCAB = 1 << 22, MAX_CONTEXT = 1 << 24 };

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
        {"rope.dimension_count", 2, MAX_WIDTH, true, &h->head_dim, &h->n_rot},
        {"context_length", 1, MAX_CONTEXT, false, NULL, &h->n_ctx_train},
        {"vocab_size", 1, MAX_VOCAB, false, NULL, &h->n_vocab},
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
    return SQ_OK;
}

static sq_status hparams_load(sq_model *m, sq_error *error) {
    sq_hparams *h = &m->hparams;
    sq_status status = sizes_load(m, error);
    if (!status)
        status = sq_model_load_f32(m, "attention.layer_norm_rms_epsilon", false, 0, &h->norm_eps, error);
    if (!status)
        status = sq_model_load_f32(m, "attention.scale", true, 1 / sqrtf((float)h->head_dim), &h->attn_scale,
                                   error);
    return status;
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

static sq_status rope_load(sq_model *m, sq_error *error) {
    sq_rope *rope = &m->ropes[SQ_ROPE_MAIN];
    sq_hparams *h = &m->hparams;
    uint32_t n = h->n_rot / 2;
    float base = 0;
    sq_status status = sq_model_load_f32(m, "rope.freq_base", true, 10000, &base, error);
    if (!status)
        status = sq_model_load_f32(m, "rope.scaling.attn_factor", true, 1, &rope->scale, error);
    if (status)
        return status;
    rope->frequencies = calloc(2 * (size_t)n, sizeof *rope->frequencies);
    if (!rope->frequencies)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for %u frequencies", n);
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
static sq_status positions_load(sq_model *m, sq_error *error) {
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
        status = per_layer_load(m, "squeezellm.layers.rope", SQ_ROPE_NONE, SQ_N_ROPES - 1, SQ_ROPE_MAIN,
                                values, error);
    for (uint32_t i = 0; !status && i < m->hparams.n_layers; i++)
        m->layers[i].rope = values[i];
    return status;
}

static sq_status layer_load(sq_model *m, uint32_t index, sq_error *error) {
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
    };
    const struct {
        const char *name;
        uint32_t n_out, n_in;
        sq_linear *linear;
    } linears[] = {
        {"attn_q", n_q, h->n_embd, &l->q},          {"attn_k", n_kv, h->n_embd, &l->k},
        {"attn_v", n_kv, h->n_embd, &l->v},         {"attn_output", h->n_embd, n_q, &l->attn_output},
        {"ffn_gate", h->n_ff, h->n_embd, &l->gate}, {"ffn_up", h->n_ff, h->n_embd, &l->up},
        {"ffn_down", h->n_embd, h->n_ff, &l->down},
    };
    char name[SQ_NAME_BYTES];
    sq_status status = SQ_OK;
    for (size_t i = 0; !status && i < sizeof norms / sizeof *norms; i++) {
        snprintf(name, sizeof name, "blk.%u.%s", index, norms[i].name);
        if (norms[i].present)
            status = sq_model_load_norm(m, name, norms[i].n, norms[i].norm, error);
    }
    for (size_t i = 0; !status && i < sizeof linears / sizeof *linears; i++) {
        snprintf(name, sizeof name, "blk.%u.%s", index, linears[i].name);
        status = sq_model_load_linear(m, name, linears[i].n_out, linears[i].n_in, linears[i].linear, error);
    }
    return status;
}

/* ---- the model --------------------------------------------------------------------------------- */

static sq_status head_load(sq_model *m, sq_error *error) {
    m->tied = !has_tensor(m, "output.weight") && !has_tensor(m, "output.weight.codes");
    if (!m->tied)
        return sq_model_load_linear(m, "output", m->hparams.n_vocab, m->hparams.n_embd, &m->head, error);
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
    status = positions_load(m, error);
    if (!status)
        status = sq_model_load_linear(m, "token_embd", h->n_vocab, h->n_embd, &m->embedding, error);
    for (uint32_t i = 0; !status && i < h->n_layers; i++)
        status = layer_load(m, i, error);
    if (!status)
        status = sq_model_load_norm(m, "output_norm", h->n_embd, &m->output_norm, error);
    if (!status)
        status = head_load(m, error);
    return status ? status : rope_load(m, error);
}

static void layer_forward(sq_run *run, const sq_layer *l, uint32_t index, uint32_t thread) {
    const sq_backend *b = run->backend;
    b->norm_linears(run, &l->attn_norm, (const sq_linear *[]){&l->q, &l->k, &l->v},
                    (const sq_rows *[]){&run->q, &run->k, &run->v}, 3, thread);
    b->rope_store(run, index, thread);
    b->attend(run, index, thread);
    b->linear_add(run, &l->attn_output, &run->attended, thread);
    b->ffn_up(run, l, thread);
    b->linear_add(run, &l->down, &run->gate, thread);
}

void sq_decoder_forward(sq_run *run, uint32_t thread) {
    const sq_model *m = run->model;
    run->backend->embed(run, thread);
    for (uint32_t i = 0; i < m->hparams.n_layers && !run->stopped; i++)
        layer_forward(run, &m->layers[i], i, thread);
    if (!run->stopped)
        run->backend->logits(run, &m->output_norm, &m->head, thread);
}
