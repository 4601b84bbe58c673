/* GGUF v3 files: metadata and tensors, mapped and checked. Nothing in here knows a model.
 *
 * The file is hostile: every count, length, offset and product is checked before it is used, so that
 * what this header hands out may be dereferenced without further thought. Strings handed out are
 * zero-terminated copies or views as noted; all of it lives until sq_gguf_close. */
#ifndef SQ_GGUF_H
#define SQ_GGUF_H

#include "sq.h"

typedef struct sq_gguf sq_gguf;

/* GGUF's own numbers. */
typedef enum sq_gguf_type {
    SQ_GGUF_F32 = 0,
    SQ_GGUF_F16 = 1,
    SQ_GGUF_Q8_0 = 8,
    SQ_GGUF_I8 = 24,
    SQ_GGUF_I16 = 25,
    SQ_GGUF_I32 = 26,
} sq_gguf_type;

typedef struct sq_gguf_tensor {
    const char *name; /* zero-terminated; unique in the file */
    uint32_t type;    /* an sq_gguf_type, or another of GGUF's types, then n_bytes is 0 */
    uint32_t n_dims;  /* 1…4 */
    uint64_t dims[4]; /* dims[0] runs fastest; those past n_dims are 1; the product is checked */
    const void *data; /* within the mapping, aligned to the file's alignment */
    uint64_t n_bytes;
} sq_gguf_tensor;

typedef struct sq_gguf_string {
    const char *text; /* a view into the mapping, not zero-terminated */
    uint64_t n_bytes;
} sq_gguf_string;

/* Maps `path` read-only. */
sq_status sq_gguf_open(const char *path, sq_gguf **file, sq_error *error);
/* The same on memory that the caller keeps until close; for tests and fuzzing. `data` is 64-byte
 * aligned. */
sq_status sq_gguf_open_memory(const void *data, size_t n_bytes, sq_gguf **file, sq_error *error);
void sq_gguf_close(sq_gguf *file);

uint64_t sq_gguf_n_bytes(const sq_gguf *file);
/* What messages call the file: its path, of a long one the end. */
const char *sq_gguf_label(const sq_gguf *file);

/* Scalars. Each returns false where the key is missing or of a kind that does not fit: integers of
 * every width are accepted where the value fits, a float key accepts F32 and F64. */
bool sq_gguf_get_u32(const sq_gguf *file, const char *key, uint32_t *value);
bool sq_gguf_get_i32(const sq_gguf *file, const char *key, int32_t *value);
bool sq_gguf_get_f32(const sq_gguf *file, const char *key, float *value);
bool sq_gguf_get_bool(const sq_gguf *file, const char *key, bool *value);
/* A zero-terminated copy, made while opening; NULL where missing, no string, or holding a zero byte. */
const char *sq_gguf_get_string(const sq_gguf *file, const char *key);
/* Whether the key is there at all, of whatever kind. */
bool sq_gguf_has(const sq_gguf *file, const char *key);

/* Arrays. The count, or false where the key is missing or no array of that kind (i32 accepts arrays of
 * I32 and U32 whose values fit, checked). Pointers may be unaligned in the file: read elements through
 * these functions. An index out of range gives an empty string, 0. */
bool sq_gguf_get_strings(const sq_gguf *file, const char *key, uint64_t *n);
sq_gguf_string sq_gguf_string_at(const sq_gguf *file, const char *key, uint64_t index);
/* Copies the whole array; `values` has room for `n` elements, as the count function said. */
bool sq_gguf_count_i32(const sq_gguf *file, const char *key, uint64_t *n);
void sq_gguf_copy_i32(const sq_gguf *file, const char *key, int32_t *values);
bool sq_gguf_count_f32(const sq_gguf *file, const char *key, uint64_t *n);
void sq_gguf_copy_f32(const sq_gguf *file, const char *key, float *values);
/* Copies the array's strings as views; `values` has room for sq_gguf_get_strings' n. The fast way. */
void sq_gguf_copy_strings(const sq_gguf *file, const char *key, sq_gguf_string *values);

uint64_t sq_gguf_n_tensors(const sq_gguf *file);
const sq_gguf_tensor *sq_gguf_tensor_at(const sq_gguf *file, uint64_t index);
const sq_gguf_tensor *sq_gguf_find_tensor(const sq_gguf *file, const char *name); /* NULL: none */

#endif
