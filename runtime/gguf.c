/* Reading GGUF v3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
 *
 *     "GGUF", u32 version, u64 n_tensors, u64 n_keys
 *     n_keys ×     string key, u32 kind, value
 *     n_tensors ×  string name, u32 n_dims, n_dims × u64, u32 type, u64 offset
 *     padding to the alignment, then the tensors' data; offsets count from here
 *
 * A string is u64 n_bytes and the bytes; an array u32 kind, u64 n and the elements. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gguf_file.h"
#include "status.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file is read in place: a little-endian machine is needed"
#endif

enum {
    MAX_KEYS = 1 << 16, /* a language model has less than a hundred */
    MAX_TENSORS = 1 << 20,
    MAX_NAME_BYTES = 1 << 16,
    MIN_KEY_BYTES = 8 + 1 + 4 + 1,            /* the least a key takes in the file */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8, /* and a tensor's description */
    DEFAULT_ALIGNMENT = 32,
    Q8_0_WEIGHTS = 32,
    Q8_0_BYTES = 34,
};

/* Where reading stands. `what` names the thing being read, for messages. */
typedef struct reader {
    sq_gguf *file;
    sq_error *error;
    uint64_t position;
    char what[128];
} reader;

/* ---- reading, every step checked ------------------------------------------------------------- */

static uint64_t bytes_left(const reader *r) {
    return r->file->n_bytes - r->position;
}

static sq_status fail_truncated(reader *r, const char *part, uint64_t n_bytes) {
    return sq_fail(r->error, SQ_ERROR_FORMAT,
                   "%s: %s: %s at byte %" PRIu64 " takes %" PRIu64 " bytes, the file has %" PRIu64
                   " left; it is truncated or damaged, copy or convert it again",
                   r->file->label, r->what, part, r->position, n_bytes, bytes_left(r));
}

static sq_status read_bytes(reader *r, const char *part, void *value, size_t n_bytes) {
    if (n_bytes > bytes_left(r))
        return fail_truncated(r, part, n_bytes);
    memcpy(value, r->file->data + r->position, n_bytes);
    r->position += n_bytes;
    return SQ_OK;
}

static sq_status read_u32(reader *r, const char *part, uint32_t *value) {
    return read_bytes(r, part, value, sizeof *value);
}

static sq_status read_u64(reader *r, const char *part, uint64_t *value) {
    return read_bytes(r, part, value, sizeof *value);
}

static sq_status read_string(reader *r, const char *part, sq_gguf_string *string) {
    sq_status status = read_u64(r, part, &string->n_bytes);
    if (status)
        return status;
    if (string->n_bytes > bytes_left(r))
        return fail_truncated(r, part, string->n_bytes);
    string->text = (const char *)r->file->data + r->position;
    r->position += string->n_bytes;
    return SQ_OK;
}

static char *copy_text(sq_gguf_string string) {
    char *text = malloc(string.n_bytes + 1);
    if (!text)
        return NULL;
    memcpy(text, string.text, string.n_bytes);
    text[string.n_bytes] = 0;
    return text;
}

static sq_status fail_memory(reader *r, uint64_t n_bytes) {
    return sq_fail(r->error, SQ_ERROR_MEMORY, "%s: %s: no memory for %" PRIu64 " bytes", r->file->label,
                   r->what, n_bytes);
}

/* The name of a key or tensor: printable ASCII, as GGUF has it, so that it is safe wherever it is
 * shown. The copy is the caller's. */
static sq_status read_name(reader *r, const char **name) {
    sq_gguf_string view = {"", 0};
    uint64_t start = r->position;
    sq_status status = read_string(r, "its name", &view);
    if (status)
        return status;
    bool is_plain = view.n_bytes > 0 && view.n_bytes < MAX_NAME_BYTES;
    for (uint64_t i = 0; is_plain && i < view.n_bytes; i++)
        is_plain = view.text[i] >= ' ' && view.text[i] <= '~';
    if (!is_plain)
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: %s: its name at byte %" PRIu64 " has %" PRIu64
                       " bytes, expected 1 to %d, all printable ASCII; the file is damaged, copy or "
                       "convert it again",
                       r->file->label, r->what, start, view.n_bytes, MAX_NAME_BYTES - 1);
    *name = copy_text(view);
    return *name ? SQ_OK : fail_memory(r, view.n_bytes + 1);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static sq_status read_kind(reader *r, bool in_array, uint32_t *kind) {
    sq_status status = read_u32(r, in_array ? "the kind of its elements" : "its kind", kind);
    if (status)
        return status;
    if (*kind < SQ_N_KINDS && !(in_array && *kind == SQ_KIND_ARRAY))
        return SQ_OK;
    return sq_fail(r->error, SQ_ERROR_FORMAT,
                   "%s: %s: %s %" PRIu32 " at byte %" PRIu64
                   ", expected one of GGUF's 0 to %d%s; the file is damaged or of a newer version",
                   r->file->label, r->what, in_array ? "elements of kind" : "value of kind", *kind,
                   r->position - 4, SQ_N_KINDS - 1, in_array ? " but 9, an array in an array" : "");
}

/* Passes over the elements at `position`, strings one by one. */
static sq_status read_elements(reader *r, sq_meta *key) {
    key->data = r->file->data + r->position;
    uint64_t least = sq_kind_bytes[key->element] ? sq_kind_bytes[key->element] : sizeof(uint64_t);
    if (key->n > bytes_left(r) / least)
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: %s: it says %" PRIu64 " elements at byte %" PRIu64
                       ", the file has room for %" PRIu64
                       "; it is truncated or damaged, copy or convert it again",
                       r->file->label, r->what, key->n, r->position, bytes_left(r) / least);
    if (key->element != SQ_KIND_STRING) {
        r->position += key->n * least;
        return SQ_OK;
    }
    for (uint64_t i = 0; i < key->n; i++) {
        sq_gguf_string string = {"", 0};
        sq_status status = read_string(r, "a string", &string);
        if (status)
            return status;
        if (key->is_array || memchr(string.text, 0, string.n_bytes))
            continue;
        key->text = copy_text(string);
        if (!key->text)
            return fail_memory(r, string.n_bytes + 1);
    }
    return SQ_OK;
}

static sq_status read_key(reader *r, size_t position) {
    sq_meta *key = &r->file->keys[position];
    snprintf(r->what, sizeof r->what, "key %zu of %zu", position + 1, r->file->n_keys);
    sq_status status = read_name(r, &key->name);
    if (status)
        return status;
    snprintf(r->what, sizeof r->what, "key %.96s", key->name);
    status = read_kind(r, false, &key->element);
    if (status)
        return status;
    key->n = 1;
    key->is_array = key->element == SQ_KIND_ARRAY;
    if (key->is_array) {
        status = read_kind(r, true, &key->element);
        if (!status)
            status = read_u64(r, "its count", &key->n);
        if (status)
            return status;
    }
    return read_elements(r, key);
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* Bytes of a tensor of n elements in rows of `row`. False where a row is no whole number of blocks; 0
 * bytes for types that nothing here reads. n is at most 2^60. */
static bool tensor_bytes(uint32_t type, uint64_t n, uint64_t row, uint64_t *n_bytes) {
    switch (type) {
    case SQ_GGUF_F32:
    case SQ_GGUF_I32:
        *n_bytes = n * 4;
        return true;
    case SQ_GGUF_F16:
    case SQ_GGUF_I16:
        *n_bytes = n * 2;
        return true;
    case SQ_GGUF_I8:
        *n_bytes = n;
        return true;
    case SQ_GGUF_Q8_0:
        *n_bytes = n / Q8_0_WEIGHTS * Q8_0_BYTES;
        return row % Q8_0_WEIGHTS == 0;
    default:
        *n_bytes = 0;
        return true;
    }
}

static sq_status read_dims(reader *r, sq_gguf_tensor *tensor, uint64_t *n) {
    sq_status status = read_u32(r, "its number of dimensions", &tensor->n_dims);
    if (status)
        return status;
    if (tensor->n_dims < 1 || tensor->n_dims > 4)
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: %s: %" PRIu32 " dimensions, expected 1 to 4; the file is damaged, copy or "
                       "convert it again",
                       r->file->label, r->what, tensor->n_dims);
    *n = 1;
    for (uint32_t i = 0; i < 4; i++) {
        tensor->dims[i] = 1;
        if (i >= tensor->n_dims)
            continue;
        status = read_u64(r, "its shape", &tensor->dims[i]);
        if (status)
            return status;
        if (tensor->dims[i] == 0 || tensor->dims[i] > (UINT64_C(1) << 60) / *n)
            return sq_fail(r->error, SQ_ERROR_FORMAT,
                           "%s: %s: dimension %" PRIu32 " is %" PRIu64
                           ", expected at least 1 and a product below 2^60; the file is damaged, copy or "
                           "convert it again",
                           r->file->label, r->what, i, tensor->dims[i]);
        *n *= tensor->dims[i];
    }
    return SQ_OK;
}

/* Reads a tensor's description. `data` points to its offset until the data's start is known. */
static sq_status read_tensor(reader *r, size_t position) {
    sq_gguf_tensor *tensor = &r->file->tensors[position];
    snprintf(r->what, sizeof r->what, "tensor %zu of %zu", position + 1, r->file->n_tensors);
    sq_status status = read_name(r, &tensor->name);
    if (status)
        return status;
    snprintf(r->what, sizeof r->what, "tensor %.96s", tensor->name);
    uint64_t n = 0, offset;
    status = read_dims(r, tensor, &n);
    if (!status)
        status = read_u32(r, "its type", &tensor->type);
    if (status)
        return status;
    if (!tensor_bytes(tensor->type, n, tensor->dims[0], &tensor->n_bytes))
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: %s: rows of %" PRIu64
                       " weights, expected a multiple of %d for Q8_0; the file is damaged, copy or convert "
                       "it again",
                       r->file->label, r->what, tensor->dims[0], Q8_0_WEIGHTS);
    tensor->data = r->file->data + r->position;
    return read_u64(r, "its offset", &offset);
}

/* Turns the offset that `tensor->data` points to into the address of the data, which starts at byte
 * `start` of the file. */
static sq_status place_tensor(reader *r, sq_gguf_tensor *tensor, uint64_t start, uint32_t alignment) {
    uint64_t offset;
    memcpy(&offset, tensor->data, sizeof offset);
    snprintf(r->what, sizeof r->what, "tensor %.96s", tensor->name);
    if (offset % alignment)
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: %s: its data is at offset %" PRIu64 ", expected a multiple of %" PRIu32
                       "; the file is damaged, copy or convert it again",
                       r->file->label, r->what, offset, alignment);
    uint64_t room = start <= r->file->n_bytes ? r->file->n_bytes - start : 0;
    if (offset > room || tensor->n_bytes > room - offset)
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: %s: %" PRIu64 " bytes at offset %" PRIu64 " of the data, which has %" PRIu64
                       " bytes; the file is truncated or damaged, copy or convert it again",
                       r->file->label, r->what, tensor->n_bytes, offset, room);
    tensor->data = r->file->data + start + offset;
    return SQ_OK;
}

static sq_status place_tensors(reader *r) {
    uint32_t alignment = DEFAULT_ALIGNMENT;
    const char *key = "general.alignment";
    bool is_number = !sq_gguf_has(r->file, key) || sq_gguf_get_u32(r->file, key, &alignment);
    if (!is_number || alignment < 8 || alignment > 4096 || (alignment & (alignment - 1)))
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: key %s: expected a power of two from 8 to 4096; the file is damaged, copy or "
                       "convert it again",
                       r->file->label, key);
    uint64_t start = (r->position + alignment - 1) & ~(uint64_t)(alignment - 1);
    for (size_t i = 0; i < r->file->n_tensors; i++) {
        sq_status status = place_tensor(r, &r->file->tensors[i], start, alignment);
        if (status)
            return status;
    }
    return SQ_OK;
}

/* ---- names ----------------------------------------------------------------------------------- */

/* Sorts a filled index; two equal names are an error. */
static sq_status sort_index(reader *r, sq_name *index, size_t n, const char *noun) {
    qsort(index, n, sizeof *index, sq_name_compare);
    for (size_t i = 1; i < n; i++)
        if (strcmp(index[i - 1].name, index[i].name) == 0)
            return sq_fail(r->error, SQ_ERROR_FORMAT,
                           "%s: %s %.96s is there twice; the file is damaged, copy or convert it again",
                           r->file->label, noun, index[i].name);
    return SQ_OK;
}

/* ---- the whole file -------------------------------------------------------------------------- */

static sq_status read_version(reader *r) {
    uint8_t magic[4] = {0};
    uint32_t version = 0;
    sq_status status = read_bytes(r, "the magic number", magic, sizeof magic);
    if (status)
        return status;
    if (memcmp(magic, "GGUF", 4) != 0)
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: no GGUF file: it starts with the bytes %02x %02x %02x %02x, expected \"GGUF\"; "
                       "make one with sq-convert",
                       r->file->label, magic[0], magic[1], magic[2], magic[3]);
    status = read_u32(r, "the version", &version);
    if (status || version == 3)
        return status;
    if ((version & 0xffff) == 0)
        return sq_fail(r->error, SQ_ERROR_UNSUPPORTED,
                       "%s: a big-endian GGUF file, expected a little-endian one; convert the model again",
                       r->file->label);
    return sq_fail(r->error, SQ_ERROR_UNSUPPORTED, "%s: GGUF version %" PRIu32 ", expected 3; the file is %s",
                   r->file->label, version,
                   version < 3 ? "too old, convert the model again" : "newer than this program, or damaged");
}

/* A count that the file can hold, before anything is allocated for it. */
static sq_status read_count(reader *r, const char *noun, size_t least_bytes, uint64_t limit, size_t *n) {
    uint64_t count = 0;
    sq_status status = read_u64(r, noun, &count);
    if (status)
        return status;
    uint64_t room = bytes_left(r) / least_bytes;
    if (room > limit)
        room = limit;
    if (count > room)
        return sq_fail(r->error, SQ_ERROR_FORMAT,
                       "%s: %s is %" PRIu64 ", at most %" PRIu64
                       " can be there; the file is truncated or damaged, copy or convert it again",
                       r->file->label, noun, count, room);
    *n = (size_t)count;
    return SQ_OK;
}

static sq_status read_keys(reader *r) {
    sq_gguf *file = r->file;
    for (size_t i = 0; i < file->n_keys; i++) {
        sq_status status = read_key(r, i);
        if (status)
            return status;
        file->key_index[i] = (sq_name){file->keys[i].name, i};
    }
    return sort_index(r, file->key_index, file->n_keys, "key");
}

static sq_status read_tensors(reader *r) {
    sq_gguf *file = r->file;
    for (size_t i = 0; i < file->n_tensors; i++) {
        sq_status status = read_tensor(r, i);
        if (status)
            return status;
        file->tensor_index[i] = (sq_name){file->tensors[i].name, i};
    }
    sq_status status = sort_index(r, file->tensor_index, file->n_tensors, "tensor");
    return status ? status : place_tensors(r);
}

static sq_status allocate_tables(reader *r, size_t n_keys, size_t n_tensors) {
    sq_gguf *file = r->file;
    file->keys = calloc(n_keys + 1, sizeof *file->keys);
    file->key_index = calloc(n_keys + 1, sizeof *file->key_index);
    file->tensors = calloc(n_tensors + 1, sizeof *file->tensors);
    file->tensor_index = calloc(n_tensors + 1, sizeof *file->tensor_index);
    if (!file->keys || !file->key_index || !file->tensors || !file->tensor_index)
        return fail_memory(r, n_keys * (sizeof(sq_meta) + sizeof(sq_name)) +
                                  n_tensors * (sizeof(sq_gguf_tensor) + sizeof(sq_name)));
    file->n_keys = n_keys;
    file->n_tensors = n_tensors;
    return SQ_OK;
}

static sq_status read_file(sq_gguf *file, sq_error *error) {
    reader r = {.file = file, .error = error, .what = "header"};
    sq_status status = read_version(&r);
    size_t n_tensors = 0, n_keys = 0;
    if (!status)
        status = read_count(&r, "the number of tensors", MIN_TENSOR_BYTES, MAX_TENSORS, &n_tensors);
    if (!status)
        status = read_count(&r, "the number of keys", MIN_KEY_BYTES, MAX_KEYS, &n_keys);
    if (!status)
        status = allocate_tables(&r, n_keys, n_tensors);
    if (!status)
        status = read_keys(&r);
    return status ? status : read_tensors(&r);
}

/* A file with nothing read yet. Of a long path messages show the last part: the name matters more than
 * the folders. */
static sq_status create_file(const char *path, sq_gguf **file, sq_error *error) {
    *file = calloc(1, sizeof **file);
    if (!*file)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for %zu bytes", sizeof **file);
    size_t n = strlen(path), room = sizeof(*file)->label - 1;
    if (n <= room)
        memcpy((*file)->label, path, n);
    else
        snprintf((*file)->label, room + 1, "...%s", path + n - (room - 3));
    return SQ_OK;
}

/* Reads what create_file and, for a path, map_file have prepared; hands it out only where it is sound. */
static sq_status finish_open(sq_status status, sq_gguf *opened, sq_gguf **file, sq_error *error) {
    if (!status)
        status = read_file(opened, error);
    if (status)
        sq_gguf_close(opened);
    else
        *file = opened;
    return status;
}

static sq_status fail_open(const sq_gguf *file, sq_error *error) {
    return sq_fail(error, SQ_ERROR_IO, "%s: cannot be opened: %s; check the path and the permissions",
                   file->label, strerror(errno));
}

static sq_status map_file(sq_gguf *file, int descriptor, sq_error *error) {
    struct stat info;
    if (fstat(descriptor, &info) != 0)
        return fail_open(file, error);
    if (S_ISDIR(info.st_mode))
        return sq_fail(error, SQ_ERROR_IO,
                       "%s: a folder, expected a .sq.gguf file; a checkpoint's folder goes through "
                       "sq-convert first",
                       file->label);
    if (!S_ISREG(info.st_mode))
        return sq_fail(error, SQ_ERROR_IO, "%s: no regular file, expected a .sq.gguf file", file->label);
    if (info.st_size == 0)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s: the file is empty, expected a .sq.gguf file; copy or convert it again",
                       file->label);
    if ((uint64_t)info.st_size > SIZE_MAX / 2)
        return sq_fail(error, SQ_ERROR_MEMORY, "%s: too large for this machine's address space", file->label);
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
    if (data == MAP_FAILED)
        return sq_fail(error, SQ_ERROR_IO, "%s: cannot be mapped into memory: %s", file->label,
                       strerror(errno));
    file->data = data;
    file->n_bytes = (uint64_t)info.st_size;
    file->is_mapped = true;
    return SQ_OK;
}

static sq_status map_path(sq_gguf *file, const char *path, sq_error *error) {
    /* Non-blocking, or a named pipe without a writer would hang here. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return fail_open(file, error);
    sq_status status = map_file(file, descriptor, error);
    close(descriptor);
    return status;
}

sq_status sq_gguf_open(const char *path, sq_gguf **file, sq_error *error) {
    sq_gguf *opened;
    *file = NULL;
    if (!path || !*path)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "no path given, expected a .sq.gguf file");
    sq_status status = create_file(path, &opened, error);
    if (status)
        return status;
    return finish_open(map_path(opened, path, error), opened, file, error);
}

sq_status sq_gguf_open_memory(const void *data, size_t n_bytes, sq_gguf **file, sq_error *error) {
    sq_gguf *opened;
    *file = NULL;
    if ((uintptr_t)data % 64)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "the file in memory is not aligned to 64 bytes");
    sq_status status = create_file("file in memory", &opened, error);
    if (status)
        return status;
    opened->data = data;
    opened->n_bytes = n_bytes;
    return finish_open(SQ_OK, opened, file, error);
}

void sq_gguf_close(sq_gguf *file) {
    if (!file)
        return;
    for (size_t i = 0; i < file->n_keys; i++) {
        free((char *)file->keys[i].name);
        free((char *)file->keys[i].text);
    }
    for (size_t i = 0; i < file->n_tensors; i++)
        free((char *)file->tensors[i].name);
    free(file->keys);
    free(file->key_index);
    free(file->tensors);
    free(file->tensor_index);
    if (file->is_mapped)
        munmap((void *)file->data, (size_t)file->n_bytes);
    free(file);
}
