/* A model's layers on the device. */
#ifndef SQ_CUDA_WEIGHTS_H
#define SQ_CUDA_WEIGHTS_H

#include "gpu.h"

/* A matrix that every expert of a layer has one of. */
typedef struct gpu_experts {
    const gpu_matrix *each; /* [n_experts] on the device */
    gpu_matrix like;        /* one of them */
    uint32_t widths;        /* bit b: some have b bits */
} gpu_experts;

typedef struct gpu_layer {
    gpu_norm attn_norm, ffn_norm, attn_out_norm, ffn_out_norm;
    const float *q_norm, *k_norm; /* NULL: none */
    /* q, k and v as one matrix where they are of one type, else three. */
    gpu_matrix qkv[3];
    uint32_t n_qkv;
    gpu_matrix output, down;
    /* Rows of gate and up in turns of 8 where they are of one type; else `gate` is apart. */
    gpu_matrix up, gate;
    bool interleaved;
    /* A mixture's, instead of up, gate and down. */
    gpu_matrix router;
    gpu_experts expert_up, expert_gate, expert_down;
} gpu_layer;

struct sq_device {
    const sq_model *model;
    uint32_t first_layer;
    gpu_card card;
    cudaStream_t stream; /* of uploads */
    void *memory;
    gpu_layer *layers;                        /* [n_layers], those from first_layer on */
    gpu_matrix embedding, embd_in, positions; /* where first_layer is 0 */
    gpu_matrix embd_out, head;
    gpu_norm output_norm;
    const float *frequencies[SQ_N_ROPES]; /* [2, n_rot / 2], or NULL */
};

/* Whether rows of gate and up are in turns: both, of all experts, are there and of one type. */
bool gpu_interleaves(const sq_model *model, const sq_layer *layer);

/* Rows of a matrix's output, padded to tiles. */
static inline uint32_t gpu_rows(const gpu_matrix *w) {
    return w->n_tiles * SQ_TILE;
}
static inline uint32_t gpu_padded(uint32_t n_rows) {
    return (n_rows + SQ_TILE - 1) / SQ_TILE * SQ_TILE;
}

/* Uploads n matrices of one width as one, side by side or, two of them, with their rows in turns of 8.
 * `memory` is what `w` points into, to be freed by cudaFree. */
sq_status gpu_matrix_upload(const gpu_card *card, cudaStream_t stream, const sq_linear *const *linears,
                            uint32_t n, bool interleaved, gpu_matrix *w, void **memory, sq_error *error);

/* Device memory that the weights take. */
uint64_t gpu_weights_bytes(const sq_model *model, uint32_t first_layer);
/* Allocates and uploads; d->model, first_layer, card and stream are set, the rest zero. */
sq_status gpu_weights_upload(sq_device *d, sq_error *error);
void gpu_weights_free(sq_device *d);

#endif
