#include "kv.h"

#include <string.h>

#include "status.h"

static const struct {
    const char *name;
    size_t bytes;
} kv_types[SQ_N_KV_TYPES] = {[SQ_KV_F16] = {"f16", 2}, [SQ_KV_F32] = {"f32", 4}};

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
    return sq_fail(error, SQ_ERROR_ARGUMENT, "KV cache type: expected f16 or f32, found \"%.32s\"", name);
}

uint64_t sq_kv_bytes(const sq_hparams *h, sq_kv_type type, uint32_t n_ctx) {
    return 2ull * h->n_layers * h->n_kv_heads * n_ctx * h->head_dim * kv_types[type].bytes;
}

void sq_kv_init(sq_kv *kv, const sq_hparams *h, sq_kv_type type, uint32_t n_ctx, void *memory) {
    *kv = (sq_kv){
        .type = type,
        .n_ctx = n_ctx,
        .n_kv_heads = h->n_kv_heads,
        .head_dim = h->head_dim,
        .element_bytes = kv_types[type].bytes,
        .keys = memory,
        .values = (uint8_t *)memory + sq_kv_bytes(h, type, n_ctx) / 2,
    };
}

static size_t offset(const sq_kv *kv, uint32_t layer, uint32_t head, uint32_t position) {
    size_t row = ((size_t)layer * kv->n_kv_heads + head) * kv->n_ctx + position;
    return row * kv->head_dim * kv->element_bytes;
}

void *sq_kv_key(const sq_kv *kv, uint32_t layer, uint32_t head, uint32_t position) {
    return kv->keys + offset(kv, layer, head, position);
}

void *sq_kv_value(const sq_kv *kv, uint32_t layer, uint32_t head, uint32_t position) {
    return kv->values + offset(kv, layer, head, position);
}

uint64_t sq_model_kv_bytes(const sq_model *model, uint32_t n_ctx, const char *kv) {
    sq_kv_type type;
    return sq_kv_parse(kv, &type, NULL) ? 0 : sq_kv_bytes(&model->hparams, type, n_ctx);
}
