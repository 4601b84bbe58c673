/* Kernels that were thought of and are not in use, so that the first GPU met can say whether they should be:
 * docs/CUDA-LAB.md tells why. Products of dense 4-bit matrices, and what limits them. */
#ifndef SQ_VARIANTS_H
#define SQ_VARIANTS_H

#include "gpu.h"

/* y = W x of up to 4 tokens in integers: a centroid is scale · (256 · high + low), an activation likewise,
 * all four signed bytes; mma takes bytes as they are looked up, which are not interleaved first. */
typedef struct variant_planes {
    gpu_matrix w;           /* of 4 bits; its tables hold 256 · high + low */
    const float *scales;    /* [n_tiles · 16] */
    const int8_t *in;       /* [n_tokens, 2, stride] high and low bytes, zero from n_in on */
    const float *in_scales; /* [n_tokens] */
    uint32_t stride, n_tokens;
    float *out; /* [n_tokens, n_tiles · 16] */
} variant_planes;

void variant_planes_launch(gpu_launch *l, const variant_planes *p);

/* y = W x of one token in f32: lane i holds entries i and i + 16 … of a row's table, and a code's entry comes
 * by a shuffle. A warp takes 4 rows and 1024 inputs a turn. */
typedef struct variant_shuffle {
    const uint4 *codes;   /* [n_out, n_in / 1024, 32]: nibble j of lane i is the code of input 32 · j + i */
    const float *tables;  /* [n_out, 16] */
    const float *in;      /* [n_in] */
    float *out;           /* [n_out] */
    uint32_t n_out, n_in; /* multiples of 32 and 1024 */
} variant_shuffle;

void variant_shuffle_launch(gpu_launch *l, const variant_shuffle *p);

/* Only reads a matrix's codes, as gemv does by default; out [1] keeps the compiler from leaving it out. */
void variant_read_launch(gpu_launch *l, const gpu_matrix *w, uint32_t *out);

/* Byte permutes of all lanes of the card, VARIANT_PERMUTES in each of n threads, in four chains; out [n]. */
enum { VARIANT_PERMUTES = 4096 };
void variant_permute_launch(gpu_launch *l, uint32_t n, uint32_t *out);

cudaError_t variants_prepare(const gpu_card *card);

#endif
