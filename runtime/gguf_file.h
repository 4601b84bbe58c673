/* An opened GGUF file: what gguf.c reads and gguf_values.c hands out. */
#ifndef SQ_GGUF_FILE_H
#define SQ_GGUF_FILE_H

#include "gguf.h"

/* GGUF's kinds of values. */
typedef enum sq_kind {
    SQ_KIND_U8,
    SQ_KIND_I8,
    SQ_KIND_U16,
    SQ_KIND_I16,
    SQ_KIND_U32,
    SQ_KIND_I32,
    SQ_KIND_F32,
    SQ_KIND_BOOL,
    SQ_KIND_STRING,
    SQ_KIND_ARRAY,
    SQ_KIND_U64,
    SQ_KIND_I64,
    SQ_KIND_F64,
    SQ_N_KINDS
} sq_kind;

/* Bytes of a value; 0 for those that say their own size. */
extern const uint8_t sq_kind_bytes[SQ_N_KINDS];

/* A key and its value: n elements at `data`, of the kind `element`; a scalar is one element. */
typedef struct sq_meta {
    const char *name;
    bool is_array;
    uint32_t element;
    uint64_t n;
    const uint8_t *data; /* a string's or string array's starts at the first length */
    const char *text;    /* copy of a scalar string; NULL where it holds a zero byte */
} sq_meta;

/* Names in order, for binary search: no file can make it slow, as it could a hash table. */
typedef struct sq_name {
    const char *name;
    size_t position;
} sq_name;

struct sq_gguf {
    const uint8_t *data;
    uint64_t n_bytes;
    bool is_mapped;
    char label[200]; /* the path for messages */
    sq_meta *keys;
    size_t n_keys;
    sq_gguf_tensor *tensors;
    size_t n_tensors;
    sq_name *key_index;
    sq_name *tensor_index;
};

/* Order of two sq_name, for qsort and bsearch. */
int sq_name_compare(const void *a, const void *b);

#endif
