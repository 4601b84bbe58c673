/* The KV cache of one session: keys and values of every layer, KV head and position.
 * Layout: K [n_layers, n_kv_heads, n_ctx, head_dim], then V likewise, so that the attention of a head
 * streams. */
#ifndef SQ_KV_H
#define SQ_KV_H

#include "model.h"

typedef struct sq_kv {
    sq_kv_type type;
    uint32_t n_ctx, n_kv_heads, head_dim;
    size_t element_bytes;
    uint8_t *keys, *values;
} sq_kv;

/* "f16" or NULL, or "f32". */
sq_status sq_kv_parse(const char *name, sq_kv_type *type, sq_error *error);
uint64_t sq_kv_bytes(const sq_hparams *hparams, sq_kv_type type, uint32_t n_ctx);
/* `memory` holds sq_kv_bytes, zeroed, and outlives the cache. */
void sq_kv_init(sq_kv *kv, const sq_hparams *hparams, sq_kv_type type, uint32_t n_ctx, void *memory);

/* The vectors of `head` in `layer` from `position` on, [.., head_dim]. */
void *sq_kv_key(const sq_kv *kv, uint32_t layer, uint32_t head, uint32_t position);
void *sq_kv_value(const sq_kv *kv, uint32_t layer, uint32_t head, uint32_t position);

#endif
