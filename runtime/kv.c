#include "kv.h"

#include <string.h>

#include "status.h"

enum { DEFAULT_TOKENS = 8192 };

static const struct {
    const char *name;
    uint32_t element_bytes;
} kv_types[SQ_N_KV_TYPES] = {[SQ_KV_F16] = {"f16", 2}, [SQ_KV_F32] = {"f32", 4}, [SQ_KV_Q8] = {"q8", 1}};

sq_status sq_kv_parse(const char *name, sq_kv_type *type, sq_error *error) {
    *type = SQ_KV_F16;
    if (!name)
        return SQ_OK;
    for (sq_kv_type t = 0; t < SQ_N_KV_TYPES; t++) {
        if (!strcmp(name, kv_types[t].name)) {
            *type = t;
            return SQ_OK;
        }
    }
    return sq_fail(error, SQ_ERROR_ARGUMENT, "KV cache type: expected f16, q8 or f32, found \"%.32s\"", name);
}

static uint64_t chain_bytes(const sq_hparams *h, sq_kv_type type, uint32_t n_ctx) {
    uint64_t n_blocks = ((uint64_t)n_ctx + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK;
    uint64_t block_bytes = 2ull * SQ_KV_BLOCK * h->head_dim * kv_types[type].element_bytes;
    if (type == SQ_KV_Q8)
        block_bytes += sq_kv_scales(h->head_dim) * sizeof(float);
    return n_blocks * block_bytes;
}

uint32_t sq_kv_default_tokens(const sq_hparams *h) {
    return h->n_ctx_train < DEFAULT_TOKENS ? h->n_ctx_train : DEFAULT_TOKENS;
}

uint64_t sq_kv_bytes(const sq_hparams *h, uint32_t n_layers, sq_kv_type type, uint32_t n_ctx) {
    return (uint64_t)n_layers * h->n_kv_heads * chain_bytes(h, type, n_ctx);
}

void sq_kv_init(sq_kv *kv, const sq_hparams *h, sq_kv_type type, uint32_t n_ctx, void *memory) {
    *kv = (sq_kv){
        .type = type,
        .n_kv_heads = h->n_kv_heads,
        .chain_bytes = chain_bytes(h, type, n_ctx),
        .memory = memory,
    };
}

void *sq_kv_chain(const sq_kv *kv, uint32_t layer, uint32_t head) {
    return kv->memory + ((size_t)layer * kv->n_kv_heads + head) * kv->chain_bytes;
}

uint64_t sq_model_kv_bytes(const sq_model *model, uint32_t n_ctx, const char *kv) {
    sq_kv_type type;
    const sq_hparams *h = &model->hparams;
    return sq_kv_parse(kv, &type, NULL) ? 0 : sq_kv_bytes(h, h->n_layers, type, n_ctx);
}
