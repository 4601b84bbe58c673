/* The KV cache of one session: for every layer and KV head a chain of blocks (kernels.h), [n_layers,
 * n_kv_heads, ⌈n_ctx / SQ_KV_BLOCK⌉], so that the attention of a head streams. */
#ifndef SQ_KV_H
#define SQ_KV_H

#include "model.h"

typedef struct sq_kv {
    sq_kv_type type;
    uint32_t n_kv_heads;
    size_t chain_bytes;
    uint8_t *memory;
} sq_kv;

/* "f16" or NULL, "q8" or "f32". */
sq_status sq_kv_parse(const char *name, sq_kv_type *type, sq_error *error);
/* Tokens of a session that asks for no number: the trained context, at most 8192. */
uint32_t sq_kv_default_tokens(const sq_hparams *hparams);
/* Of n_layers of the layers. */
uint64_t sq_kv_bytes(const sq_hparams *hparams, uint32_t n_layers, sq_kv_type type, uint32_t n_ctx);
/* `memory` holds sq_kv_bytes, zeroed, 64-byte aligned, and outlives the cache. */
void sq_kv_init(sq_kv *kv, const sq_hparams *hparams, sq_kv_type type, uint32_t n_ctx, void *memory);

/* The blocks of `head` in `layer`. */
void *sq_kv_chain(const sq_kv *kv, uint32_t layer, uint32_t head);

#endif
