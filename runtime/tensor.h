/* Matrices and vectors as the kernels see them: views into the mapped file, checked once.
 * docs/FORMAT.md says what the bytes mean. */
#ifndef SQ_TENSOR_H
#define SQ_TENSOR_H

#include "gguf.h"

typedef enum sq_type {
    SQ_TYPE_F32,
    SQ_TYPE_F16,
    SQ_TYPE_Q8_0, /* blocks of 32: f16 scale, 32 × i8 */
    SQ_TYPE_LUT2, /* 2-bit indices into a table of 4 values per row */
    SQ_TYPE_LUT3, /* 3-bit indices into a table of 8 values per row */
    SQ_TYPE_LUT4, /* 4-bit indices into a table of 16 values per row */
    SQ_N_TYPES
} sq_type;

/* One row per type; its kernels are in sq_kernels.types, same index. */
typedef struct sq_type_traits {
    const char *name;                 /* "lut4" */
    uint32_t bits;                    /* of an index; 0 for types without a table */
    size_t (*row_bytes)(size_t n_in); /* bytes of one row of codes (or weights); 0: n_in does not fit */
} sq_type_traits;

extern const sq_type_traits sq_types[SQ_N_TYPES];

enum { SQ_NAME_BYTES = 64 };

/* W [n_out, n_in]: y = W x, row r of W in `data + r · row_bytes`. Where rows != NULL, the CSR part is
 * added to what the data decodes to. Checked: rows ascend from 0 to n_sparse, every column < n_in. */
typedef struct sq_matrix {
    char name[SQ_NAME_BYTES]; /* "blk.0.attn_q.weight" */
    sq_type type;
    uint32_t n_out, n_in;
    size_t row_bytes;
    const uint8_t *data;
    const uint16_t *lut;       /* f16 [n_out, 2^bits], or NULL: no tables, or those of lut8 */
    const int8_t *lut8;        /* [n_out, 2^bits], or NULL; kernels.h: sq_lut_entry */
    const uint16_t *lut_scale; /* f16 [n_out], with lut8 */
    const int32_t *rows;       /* [n_out + 1], or NULL */
    const uint16_t *cols16;    /* [n_sparse] where n_in <= 65536, else NULL */
    const int32_t *cols32;     /* [n_sparse] where n_in > 65536, else NULL */
    const uint16_t *vals;      /* f16 [n_sparse] */
    uint32_t n_sparse;
    uint64_t bytes; /* all of the above */
} sq_matrix;

/* Activation vectors are allocated with this many floats and hold zeros past n, so that kernels need
 * no tails. */
static inline size_t sq_pad(size_t n) {
    return (n + 31) & ~(size_t)31;
}

static inline uint32_t sq_column(const sq_matrix *w, uint32_t i) {
    return w->cols16 ? w->cols16[i] : (uint32_t)w->cols32[i];
}

/* Finds `name` ("blk.0.attn_q.weight") as a plain tensor or as its parts, .codes/.lut/.lut_scale and
 * .rows/.cols/.vals. */
sq_status sq_matrix_load(const sq_gguf *file, const char *name, uint32_t n_out, uint32_t n_in,
                         sq_matrix *matrix, sq_error *error);
/* A vector of n F32. */
sq_status sq_vector_load(const sq_gguf *file, const char *name, uint32_t n, const float **vector,
                         sq_error *error);

#endif
