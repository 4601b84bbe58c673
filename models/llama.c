/* The LLaMA family (arXiv 2302.13971): LLaMA 1-3, Mistral, SmolLM2, Vicuna and whatever has their
 * architecture: RMS norm, rotary positions, grouped-query attention, SwiGLU. docs/FORMAT.md, section 3. */
#include <stdio.h>
#include <stdlib.h>

#include "backend.h"
#include "status.h"

enum { MAX_LAYERS = 1024, MAX_WIDTH = 1 << 20, MAX_HEADS = 4096, MAX_VOCAB = 1 << 22, MAX_CONTEXT = 1 << 24 };

static sq_status load_hparams(sq_model *m, sq_error *error) {
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
        {"attention.sliding_window", 0, MAX_CONTEXT, true, NULL, &h->window},
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
    if (h->n_heads % h->n_kv_heads)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "llama.attention: %u query heads do not share %u KV heads evenly; the file is damaged",
                       h->n_heads, h->n_kv_heads);
    if (h->n_rot % 2 || h->n_rot > h->head_dim || (uint64_t)h->n_heads * h->head_dim > MAX_WIDTH)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "llama: %u heads of size %u with %u rotated dimensions cannot be; the file is damaged",
                       h->n_heads, h->head_dim, h->n_rot);
    sq_status status =
        sq_model_load_f32(m, "attention.layer_norm_rms_epsilon", false, 0, &h->norm_eps, error);
    return status ? status : sq_model_load_f32(m, "rope.freq_base", true, 10000, &h->rope_base, error);
}

static sq_status load_layer(sq_model *m, uint32_t index, sq_error *error) {
    const sq_hparams *h = &m->hparams;
    sq_layer *l = &m->layers[index];
    uint32_t n_q = h->n_heads * h->head_dim, n_kv = h->n_kv_heads * h->head_dim;
    char name[SQ_NAME_BYTES];
    snprintf(name, sizeof name, "blk.%u.attn_norm.weight", index);
    sq_status status = sq_model_load_vector(m, name, h->n_embd, &l->attn_norm, error);
    if (status)
        return status;
    snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", index);
    status = sq_model_load_vector(m, name, h->n_embd, &l->ffn_norm, error);
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
    for (size_t i = 0; !status && i < sizeof linears / sizeof *linears; i++) {
        snprintf(name, sizeof name, "blk.%u.%s", index, linears[i].name);
        status = sq_model_load_linear(m, name, linears[i].n_out, linears[i].n_in, linears[i].linear, error);
    }
    return status;
}

static sq_status llama_load(sq_model *m, sq_error *error) {
    sq_status status = load_hparams(m, error);
    if (status)
        return status;
    const sq_hparams *h = &m->hparams;
    m->layers = calloc(h->n_layers, sizeof *m->layers);
    if (!m->layers)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for %u layers", h->n_layers);
    status = sq_model_load_linear(m, "token_embd", h->n_vocab, h->n_embd, &m->embedding, error);
    for (uint32_t i = 0; !status && i < h->n_layers; i++)
        status = load_layer(m, i, error);
    if (!status)
        status = sq_model_load_vector(m, "output_norm.weight", h->n_embd, &m->output_norm, error);
    if (status)
        return status;
    m->tied = !sq_gguf_find_tensor(m->file, "output.weight") &&
              !sq_gguf_find_tensor(m->file, "output.weight.codes");
    if (!m->tied)
        return sq_model_load_linear(m, "output", h->n_vocab, h->n_embd, &m->head, error);
    m->head = m->embedding;
    return SQ_OK;
}

static void llama_layer(sq_run *run, uint32_t index, uint32_t thread) {
    const sq_backend *b = run->backend;
    const sq_layer *l = &run->model->layers[index];
    b->norm_linears(run, l->attn_norm, (const sq_linear *[]){&l->q, &l->k, &l->v},
                    (const sq_rows *[]){&run->q, &run->k, &run->v}, 3, thread);
    b->rope_store(run, index, thread);
    b->attend(run, index, thread);
    b->linear_add(run, &l->attn_output, &run->attended, thread);
    b->gate_up(run, l->ffn_norm, &l->gate, &l->up, thread);
    b->linear_add(run, &l->down, &run->gate, thread);
}

static void llama_forward(sq_run *run, uint32_t thread) {
    const sq_model *m = run->model;
    run->backend->embed(run, thread);
    for (uint32_t i = 0; i < m->hparams.n_layers && !run->stopped; i++)
        llama_layer(run, i, thread);
    if (!run->stopped)
        run->backend->logits(run, m->output_norm, &m->head, thread);
}

const sq_arch sq_arch_llama = {.name = "llama", .load = llama_load, .forward = llama_forward};
