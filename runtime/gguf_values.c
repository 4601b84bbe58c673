/* What an opened GGUF file holds, by name. Everything was checked while opening. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_file.h"

/* Bytes of a value; 0 for those that say their own size. */
const uint8_t sq_kind_bytes[SQ_N_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

int sq_name_compare(const void *a, const void *b) {
    return strcmp(((const sq_name *)a)->name, ((const sq_name *)b)->name);
}

/* Position of `name`, or n. */
static size_t find_name(const sq_name *index, size_t n, const char *name) {
    if (n == 0)
        return n;
    sq_name wanted = {name, 0};
    const sq_name *found = bsearch(&wanted, index, n, sizeof *index, sq_name_compare);
    return found ? found->position : n;
}

const char *sq_gguf_label(const sq_gguf *file) {
    return file->label;
}

uint64_t sq_gguf_n_bytes(const sq_gguf *file) {
    return file->n_bytes;
}

static const sq_meta *find_key(const sq_gguf *file, const char *key) {
    size_t i = find_name(file->key_index, file->n_keys, key);
    return i < file->n_keys ? &file->keys[i] : NULL;
}

bool sq_gguf_has(const sq_gguf *file, const char *key) {
    return find_key(file, key) != NULL;
}

static const sq_meta *find_scalar(const sq_gguf *file, const char *key) {
    const sq_meta *found = find_key(file, key);
    return found && !found->is_array ? found : NULL;
}

/* The array `key` with elements of one of two kinds, or NULL. */
static const sq_meta *find_array(const sq_gguf *file, const char *key, sq_kind first, sq_kind second) {
    const sq_meta *found = find_key(file, key);
    bool fits = found && found->is_array && (found->element == first || found->element == second);
    return fits ? found : NULL;
}

/* An integer of any width: its 64 bits, and whether they are to be read as negative. */
static bool get_integer(const sq_gguf *file, const char *key, uint64_t *bits, bool *is_negative) {
    const sq_meta *found = find_scalar(file, key);
    if (!found)
        return false;
    uint64_t value = 0;
    int64_t number;
    memcpy(&value, found->data, sq_kind_bytes[found->element]);
    switch (found->element) {
    case SQ_KIND_U8:
    case SQ_KIND_U16:
    case SQ_KIND_U32:
    case SQ_KIND_U64:
        *bits = value;
        *is_negative = false;
        return true;
    case SQ_KIND_I8:
        number = (int8_t)value;
        break;
    case SQ_KIND_I16:
        number = (int16_t)value;
        break;
    case SQ_KIND_I32:
        number = (int32_t)value;
        break;
    case SQ_KIND_I64:
        number = (int64_t)value;
        break;
    default:
        return false;
    }
    *bits = (uint64_t)number;
    *is_negative = number < 0;
    return true;
}

bool sq_gguf_get_u32(const sq_gguf *file, const char *key, uint32_t *value) {
    uint64_t bits;
    bool is_negative;
    if (!get_integer(file, key, &bits, &is_negative) || bits > UINT32_MAX /* or negative */)
        return false;
    *value = (uint32_t)bits;
    return true;
}

bool sq_gguf_get_i32(const sq_gguf *file, const char *key, int32_t *value) {
    uint64_t bits;
    bool is_negative;
    if (!get_integer(file, key, &bits, &is_negative))
        return false;
    if (is_negative ? (int64_t)bits < INT32_MIN : bits > INT32_MAX)
        return false;
    *value = (int32_t)(int64_t)bits;
    return true;
}

bool sq_gguf_get_f32(const sq_gguf *file, const char *key, float *value) {
    const sq_meta *found = find_scalar(file, key);
    if (!found)
        return false;
    if (found->element == SQ_KIND_F32) {
        memcpy(value, found->data, sizeof *value);
        return true;
    }
    if (found->element != SQ_KIND_F64)
        return false;
    double number;
    memcpy(&number, found->data, sizeof number);
    if (isfinite(number) && fabs(number) > FLT_MAX)
        return false;
    *value = (float)number;
    return true;
}

bool sq_gguf_get_bool(const sq_gguf *file, const char *key, bool *value) {
    const sq_meta *found = find_scalar(file, key);
    if (!found || found->element != SQ_KIND_BOOL || found->data[0] > 1)
        return false;
    *value = found->data[0] == 1;
    return true;
}

const char *sq_gguf_get_string(const sq_gguf *file, const char *key) {
    const sq_meta *found = find_scalar(file, key);
    return found ? found->text : NULL;
}

/* The string at *place, checked while opening; moves *place behind it. */
static sq_gguf_string next_string(const uint8_t **place) {
    sq_gguf_string string;
    memcpy(&string.n_bytes, *place, sizeof string.n_bytes);
    string.text = (const char *)*place + sizeof string.n_bytes;
    *place += sizeof string.n_bytes + string.n_bytes;
    return string;
}

bool sq_gguf_get_strings(const sq_gguf *file, const char *key, uint64_t *n) {
    const sq_meta *found = find_array(file, key, SQ_KIND_STRING, SQ_KIND_STRING);
    if (found)
        *n = found->n;
    return found != NULL;
}

sq_gguf_string sq_gguf_string_at(const sq_gguf *file, const char *key, uint64_t index) {
    const sq_meta *found = find_array(file, key, SQ_KIND_STRING, SQ_KIND_STRING);
    sq_gguf_string string = {"", 0};
    if (!found || index >= found->n)
        return string;
    const uint8_t *place = found->data;
    for (uint64_t i = 0; i <= index; i++)
        string = next_string(&place);
    return string;
}

void sq_gguf_copy_strings(const sq_gguf *file, const char *key, sq_gguf_string *values) {
    const sq_meta *found = find_array(file, key, SQ_KIND_STRING, SQ_KIND_STRING);
    if (!found)
        return;
    const uint8_t *place = found->data;
    for (uint64_t i = 0; i < found->n; i++)
        values[i] = next_string(&place);
}

bool sq_gguf_count_i32(const sq_gguf *file, const char *key, uint64_t *n) {
    const sq_meta *found = find_array(file, key, SQ_KIND_I32, SQ_KIND_U32);
    if (!found)
        return false;
    for (uint64_t i = 0; found->element == SQ_KIND_U32 && i < found->n; i++) {
        uint32_t value;
        memcpy(&value, found->data + i * sizeof value, sizeof value);
        if (value > INT32_MAX)
            return false;
    }
    *n = found->n;
    return true;
}

void sq_gguf_copy_i32(const sq_gguf *file, const char *key, int32_t *values) {
    const sq_meta *found = find_array(file, key, SQ_KIND_I32, SQ_KIND_U32);
    if (found && found->n)
        memcpy(values, found->data, found->n * sizeof *values);
}

bool sq_gguf_count_f32(const sq_gguf *file, const char *key, uint64_t *n) {
    const sq_meta *found = find_array(file, key, SQ_KIND_F32, SQ_KIND_F32);
    if (found)
        *n = found->n;
    return found != NULL;
}

void sq_gguf_copy_f32(const sq_gguf *file, const char *key, float *values) {
    const sq_meta *found = find_array(file, key, SQ_KIND_F32, SQ_KIND_F32);
    if (found && found->n)
        memcpy(values, found->data, found->n * sizeof *values);
}

uint64_t sq_gguf_n_tensors(const sq_gguf *file) {
    return file->n_tensors;
}

const sq_gguf_tensor *sq_gguf_tensor_at(const sq_gguf *file, uint64_t index) {
    return index < file->n_tensors ? &file->tensors[index] : NULL;
}

const sq_gguf_tensor *sq_gguf_find_tensor(const sq_gguf *file, const char *name) {
    size_t i = find_name(file->tensor_index, file->n_tensors, name);
    return i < file->n_tensors ? &file->tensors[i] : NULL;
}
