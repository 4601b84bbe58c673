#include "tensor.h"

#include <stdio.h>
#include <string.h>

#include "status.h"

enum { NAME_BYTES = SQ_NAME_BYTES + 16 }; /* with a suffix */

static bool name_join(char out[NAME_BYTES], const char *name, const char *suffix) {
    int n = snprintf(out, NAME_BYTES, "%s%s", name, suffix);
    return n > 0 && n < NAME_BYTES;
}

/* Finds NAME + SUFFIX and checks type and shape [n_rows, n_columns] (n_rows 0: a vector). */
static sq_status part_find(const sq_gguf *file, const char *name, const char *suffix, uint32_t type,
                           const char *type_name, uint64_t n_rows, uint64_t n_columns,
                           const sq_gguf_tensor **tensor, sq_error *error) {
    char full[NAME_BYTES];
    const sq_gguf_tensor *t = name_join(full, name, suffix) ? sq_gguf_find_tensor(file, full) : NULL;
    if (!t)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tensor %s%s is missing; the file is damaged or from a newer version", name, suffix);
    if (t->type != type)
        return sq_fail(
            error, SQ_ERROR_FORMAT,
            "%s: expected type %s (%u), found type %u; the file is damaged or from a newer version", full,
            type_name, type, t->type);
    bool fits =
        t->dims[0] == n_columns && t->dims[1] == (n_rows ? n_rows : 1) && t->dims[2] == 1 && t->dims[3] == 1;
    if (!fits)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s: expected shape [%llu, %llu], found [%llu, %llu]; the file is damaged or from a "
                       "newer version",
                       full, (unsigned long long)(n_rows ? n_rows : 1), (unsigned long long)n_columns,
                       (unsigned long long)t->dims[1], (unsigned long long)t->dims[0]);
    *tensor = t;
    return SQ_OK;
}

/* Every column is an index into the activations: one past the end would read foreign memory. */
static bool columns_fit(const sq_matrix *m) {
    uint32_t largest = 0;
    if (m->cols16) {
        uint16_t largest16 = 0;
        for (uint32_t i = 0; i < m->n_sparse; i++)
            largest16 = m->cols16[i] > largest16 ? m->cols16[i] : largest16;
        largest = largest16;
    } else {
        for (uint32_t i = 0; i < m->n_sparse; i++) {
            uint32_t column = (uint32_t)m->cols32[i];
            largest = column > largest ? column : largest;
        }
    }
    return largest < m->n_in;
}

static bool rows_ascend(const sq_matrix *m) {
    bool ok = m->rows[0] == 0 && m->rows[m->n_out] == (int32_t)m->n_sparse;
    for (uint32_t r = 0; r < m->n_out; r++)
        ok &= m->rows[r] <= m->rows[r + 1];
    return ok;
}

static sq_status sparse_load(const sq_gguf *file, const char *name, sq_matrix *m, sq_error *error) {
    char full[NAME_BYTES];
    const sq_gguf_tensor *values = name_join(full, name, ".vals") ? sq_gguf_find_tensor(file, full) : NULL;
    bool has_rows = name_join(full, name, ".rows") && sq_gguf_find_tensor(file, full);
    bool has_cols = name_join(full, name, ".cols") && sq_gguf_find_tensor(file, full);
    if (!values && !has_rows && !has_cols)
        return SQ_OK; /* a dense matrix */

    uint64_t n_sparse = values ? values->dims[0] : 0;
    if (n_sparse == 0 || n_sparse > INT32_MAX || n_sparse > (uint64_t)m->n_out * m->n_in)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s: %llu kept weights in a matrix of %u x %u; the file is damaged", name,
                       (unsigned long long)n_sparse, m->n_out, m->n_in);
    bool narrow = m->n_in <= 65536;
    const sq_gguf_tensor *rows = NULL, *cols = NULL;
    sq_status status =
        part_find(file, name, ".rows", SQ_GGUF_I32, "I32", 0, (uint64_t)m->n_out + 1, &rows, error);
    if (!status)
        status = narrow ? part_find(file, name, ".cols", SQ_GGUF_I16, "I16", 0, n_sparse, &cols, error)
                        : part_find(file, name, ".cols", SQ_GGUF_I32, "I32", 0, n_sparse, &cols, error);
    if (!status)
        status = part_find(file, name, ".vals", SQ_GGUF_F16, "F16", 0, n_sparse, &values, error);
    if (status)
        return status;

    m->n_sparse = (uint32_t)n_sparse;
    m->rows = rows->data;
    m->cols16 = narrow ? cols->data : NULL;
    m->cols32 = narrow ? NULL : cols->data;
    m->vals = values->data;
    m->bytes += rows->n_bytes + cols->n_bytes + values->n_bytes;
    if (!rows_ascend(m))
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s.rows: expected row pointers that ascend from 0 to %u; the file is damaged", name,
                       m->n_sparse);
    if (!columns_fit(m))
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s.cols: a column is past the last one, %u; the file is damaged", name, m->n_in - 1);
    return SQ_OK;
}

/* Tables of f16, or of 8 bits with a scale for each row. */
static sq_status tables_load(const sq_gguf *file, const char *name, const sq_gguf_tensor *lut, uint64_t width,
                             sq_matrix *m, sq_error *error) {
    const sq_gguf_tensor *scale = NULL;
    bool narrow = lut && lut->type == SQ_GGUF_I8;
    sq_status status = part_find(file, name, ".lut", narrow ? SQ_GGUF_I8 : SQ_GGUF_F16, "I8 (24) or F16",
                                 m->n_out, width, &lut, error);
    if (!status && narrow)
        status = part_find(file, name, ".lut_scale", SQ_GGUF_F16, "F16", 0, m->n_out, &scale, error);
    if (status)
        return status;
    m->lut = narrow ? NULL : lut->data;
    m->lut8 = narrow ? lut->data : NULL;
    m->lut_scale = narrow ? scale->data : NULL;
    m->bytes += lut->n_bytes + (narrow ? scale->n_bytes : 0);
    return SQ_OK;
}

/* The bits of a table are its width; no other width is known. */
static sq_status lut_load(const sq_gguf *file, const char *name, const sq_gguf_tensor *codes, sq_matrix *m,
                          sq_error *error) {
    char full[NAME_BYTES];
    const sq_gguf_tensor *lut = name_join(full, name, ".lut") ? sq_gguf_find_tensor(file, full) : NULL;
    uint64_t width = lut ? lut->dims[0] : 0;
    sq_type type = SQ_N_TYPES;
    for (sq_type t = 0; t < SQ_N_TYPES; t++)
        if (sq_types[t].bits && width == 1ull << sq_types[t].bits)
            type = t;
    if (lut && type == SQ_N_TYPES)
        return sq_fail(
            error, SQ_ERROR_FORMAT,
            "%s.lut: expected 4, 8 or 16 entries a row, found %llu; the file is damaged or from a newer "
            "version",
            name, (unsigned long long)width);

    sq_status status = tables_load(file, name, lut, width, m, error);
    if (status)
        return status;
    m->type = type;
    m->row_bytes = sq_types[type].row_bytes(m->n_in);
    status = part_find(file, name, ".codes", SQ_GGUF_I8, "I8", m->n_out, m->row_bytes, &codes, error);
    if (status)
        return status;
    m->data = codes->data;
    m->bytes += codes->n_bytes;
    return sparse_load(file, name, m, error);
}

static sq_status plain_load(const char *name, const sq_gguf_tensor *tensor, sq_matrix *m, sq_error *error) {
    switch (tensor->type) { /* GGUF's numbers to ours: the one place that knows both */
    case SQ_GGUF_F32:
        m->type = SQ_TYPE_F32;
        break;
    case SQ_GGUF_F16:
        m->type = SQ_TYPE_F16;
        break;
    case SQ_GGUF_Q8_0:
        m->type = SQ_TYPE_Q8_0;
        break;
    default:
        return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                       "%s: type %u is none of F32, F16, Q8_0; this is no file of sq-convert (convert the "
                       "original with sq-convert)",
                       name, tensor->type);
    }
    m->row_bytes = sq_types[m->type].row_bytes(m->n_in);
    if (!m->row_bytes)
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: rows of %u do not fit type %s; the file is damaged", name,
                       m->n_in, sq_types[m->type].name);
    m->data = tensor->data;
    m->bytes = tensor->n_bytes;
    return SQ_OK;
}

sq_status sq_matrix_load(const sq_gguf *file, const char *name, uint32_t n_out, uint32_t n_in,
                         sq_matrix *matrix, sq_error *error) {
    char full[NAME_BYTES];
    *matrix = (sq_matrix){.n_out = n_out, .n_in = n_in};
    snprintf(matrix->name, sizeof matrix->name, "%s", name);
    const sq_gguf_tensor *codes = name_join(full, name, ".codes") ? sq_gguf_find_tensor(file, full) : NULL;
    if (codes)
        return lut_load(file, name, codes, matrix, error);
    const sq_gguf_tensor *tensor = sq_gguf_find_tensor(file, name);
    if (!tensor)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "tensor %s is missing; the file is damaged or from a newer version", name);
    sq_status status = part_find(file, name, "", tensor->type, "", n_out, n_in, &tensor, error);
    if (status)
        return status;
    return plain_load(name, tensor, matrix, error);
}

sq_status sq_vector_load(const sq_gguf *file, const char *name, uint32_t n, const float **vector,
                         sq_error *error) {
    const sq_gguf_tensor *tensor = NULL;
    sq_status status = part_find(file, name, "", SQ_GGUF_F32, "F32", 0, n, &tensor, error);
    if (!status)
        *vector = tensor->data;
    return status;
}
