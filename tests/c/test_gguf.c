/* The file reader on a sound file, and on every way we could think of to damage one. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gguf.h"

#include "check.h"
#include "gguf_build.h"
#include "gguf_touch.h"

/* Places in the sound file that the tests overwrite. */
typedef struct places {
    size_t n_tensors, n_keys, first_key, u32_kind, array_kind, array_n, strings_n, first_string, alignment;
    size_t n_dims, dim, type, offset, second_offset, header_end;
} places;

static places build_sound(gguf_build *b) {
    places p = {.n_tensors = 8, .n_keys = 16, .first_key = 24};
    const int32_t numbers[] = {-1, 0, INT32_MAX};
    const float floats[] = {0.5f, -2, INFINITY};
    put_header(b, 3, 19);
    put_key(b, "u32", SQ_KIND_U32);
    p.u32_kind = b->n_bytes - 4;
    put_u32(b, 7);
    put_key(b, "u8", SQ_KIND_U8), put_u8(b, 200);
    put_key(b, "i8", SQ_KIND_I8), put_u8(b, 0xff);
    put_key(b, "i16", SQ_KIND_I16), put(b, (int16_t[]){-300}, 2);
    put_key(b, "u16", SQ_KIND_U16), put(b, (uint16_t[]){60000}, 2);
    put_key(b, "i32", SQ_KIND_I32), put_u32(b, (uint32_t)INT32_MIN);
    put_key(b, "u64", SQ_KIND_U64), put_u64(b, UINT64_C(1) << 40);
    put_key(b, "i64", SQ_KIND_I64), put_u64(b, (uint64_t)-5);
    put_key(b, "f32", SQ_KIND_F32), put_f32(b, 1.5f);
    put_key(b, "f64", SQ_KIND_F64), put_f64(b, 1e-5);
    put_key(b, "f64.huge", SQ_KIND_F64), put_f64(b, 1e300);
    put_key(b, "flag", SQ_KIND_BOOL), put_u8(b, 1);
    put_key(b, "flag.odd", SQ_KIND_BOOL), put_u8(b, 7);
    put_key(b, "text", SQ_KIND_STRING), put_string(b, "grüße");
    put_key(b, "zero", SQ_KIND_STRING), put_u64(b, 3), put(b, "a\0b", 3);
    put_array(b, "numbers", SQ_KIND_I32, 3);
    p.array_kind = b->n_bytes - 12;
    p.array_n = b->n_bytes - 8;
    put(b, numbers, sizeof numbers); /* at an odd address, as is nearly all in such files */
    put_array(b, "floats", SQ_KIND_F32, 3), put(b, floats, sizeof floats);
    put_array(b, "strings", SQ_KIND_STRING, 3);
    p.strings_n = b->n_bytes - 8;
    p.first_string = b->n_bytes;
    put_string(b, "one"), put_string(b, ""), put_string(b, "drei");
    put_key(b, "general.alignment", SQ_KIND_U32);
    p.alignment = b->n_bytes;
    put_u32(b, 64);
    put_tensor(b, "matrix", 2, (uint64_t[]){64, 3}, SQ_GGUF_Q8_0, 0);
    p.offset = b->n_bytes - 8;
    p.type = b->n_bytes - 12;
    p.dim = b->n_bytes - 28;
    p.n_dims = b->n_bytes - 32;
    put_tensor(b, "vector", 1, (uint64_t[]){5}, SQ_GGUF_F32, 256);
    p.second_offset = b->n_bytes - 8;
    put_tensor(b, "foreign", 1, (uint64_t[]){1000000}, 12, 256); /* Q4_K: not for us */
    p.header_end = b->n_bytes;
    put_padding(b, 64);
    for (int i = 0; i < 256; i++)
        put_u8(b, (uint8_t)i);
    for (int i = 0; i < 5; i++)
        put_f32(b, (float)i);
    return p;
}

static sq_status open_copy(const gguf_build *b, size_t n_bytes, sq_error *error) {
    sq_gguf *file;
    void *copy = build_copy(b, n_bytes);
    sq_status status = sq_gguf_open_memory(copy, n_bytes, &file, error);
    if (status) {
        CHECK(file == NULL && error->status == status);
        CHECK(strlen(error->message) > 20 && !strchr(error->message, '\n'));
    } else {
        gguf_touch(file);
    }
    sq_gguf_close(file);
    free(copy);
    return status;
}

/* ---- a sound file ------------------------------------------------------------------------------- */

static void check_scalars(const sq_gguf *file) {
    uint32_t u32 = 99;
    int32_t i32 = 99;
    float f32 = 99;
    bool flag = false;
    CHECK(sq_gguf_get_u32(file, "u32", &u32) && u32 == 7);
    CHECK(sq_gguf_get_u32(file, "u8", &u32) && u32 == 200);
    CHECK(sq_gguf_get_u32(file, "u16", &u32) && u32 == 60000);
    CHECK(!sq_gguf_get_u32(file, "i8", &u32) && !sq_gguf_get_u32(file, "u64", &u32));
    CHECK(!sq_gguf_get_u32(file, "f32", &u32) && !sq_gguf_get_u32(file, "flag", &u32));
    CHECK(!sq_gguf_get_u32(file, "numbers", &u32) && !sq_gguf_get_u32(file, "nothing", &u32));
    CHECK_EQ(u32, 60000);
    CHECK(sq_gguf_get_i32(file, "i8", &i32) && i32 == -1);
    CHECK(sq_gguf_get_i32(file, "i16", &i32) && i32 == -300);
    CHECK(sq_gguf_get_i32(file, "i32", &i32) && i32 == INT32_MIN);
    CHECK(sq_gguf_get_i32(file, "i64", &i32) && i32 == -5);
    CHECK(!sq_gguf_get_i32(file, "u64", &i32));
    CHECK(sq_gguf_get_f32(file, "f32", &f32) && f32 == 1.5f);
    CHECK(sq_gguf_get_f32(file, "f64", &f32) && f32 == 1e-5f);
    CHECK(!sq_gguf_get_f32(file, "f64.huge", &f32) && !sq_gguf_get_f32(file, "u32", &f32));
    CHECK(sq_gguf_get_bool(file, "flag", &flag) && flag);
    CHECK(!sq_gguf_get_bool(file, "u8", &flag) && !sq_gguf_get_bool(file, "flag.odd", &flag));
    CHECK_STR(sq_gguf_get_string(file, "text"), "grüße");
    CHECK_STR(sq_gguf_get_string(file, "zero"), NULL);
    CHECK_STR(sq_gguf_get_string(file, "u32"), NULL);
    CHECK(sq_gguf_has(file, "zero") && !sq_gguf_has(file, "nothing") && !sq_gguf_has(file, ""));
}

static void check_arrays(const sq_gguf *file) {
    uint64_t n = 0;
    int32_t numbers[3];
    float floats[3];
    sq_gguf_string strings[3];
    CHECK(sq_gguf_count_i32(file, "numbers", &n) && n == 3);
    sq_gguf_copy_i32(file, "numbers", numbers);
    CHECK(numbers[0] == -1 && numbers[1] == 0 && numbers[2] == INT32_MAX);
    CHECK(sq_gguf_count_f32(file, "floats", &n) && n == 3);
    sq_gguf_copy_f32(file, "floats", floats);
    CHECK(floats[0] == 0.5f && floats[1] == -2 && floats[2] == INFINITY);
    CHECK(!sq_gguf_count_i32(file, "floats", &n) && !sq_gguf_count_f32(file, "f32", &n));
    CHECK(sq_gguf_get_strings(file, "strings", &n) && n == 3);
    CHECK(!sq_gguf_get_strings(file, "text", &n) && !sq_gguf_get_strings(file, "numbers", &n));
    sq_gguf_copy_strings(file, "strings", strings);
    CHECK(strings[2].n_bytes == 4 && memcmp(strings[2].text, "drei", 4) == 0);
    CHECK(sq_gguf_string_at(file, "strings", 0).n_bytes == 3);
    CHECK(memcmp(sq_gguf_string_at(file, "strings", 0).text, "one", 3) == 0);
    CHECK_EQ((int64_t)sq_gguf_string_at(file, "strings", 1).n_bytes, 0);
    CHECK_EQ((int64_t)sq_gguf_string_at(file, "strings", 3).n_bytes, 0);
    CHECK_EQ((int64_t)sq_gguf_string_at(file, "nothing", 0).n_bytes, 0);
}

static void check_tensors(const sq_gguf *file) {
    CHECK_EQ((int64_t)sq_gguf_n_tensors(file), 3);
    const sq_gguf_tensor *matrix = sq_gguf_find_tensor(file, "matrix");
    const sq_gguf_tensor *vector = sq_gguf_find_tensor(file, "vector");
    const sq_gguf_tensor *foreign = sq_gguf_find_tensor(file, "foreign");
    CHECK(sq_gguf_find_tensor(file, "u32") == NULL);
    if (!CHECK(matrix && vector && foreign))
        return;
    CHECK(sq_gguf_tensor_at(file, 0) == matrix && sq_gguf_tensor_at(file, 3) == NULL);
    CHECK(matrix->n_dims == 2 && matrix->dims[0] == 64 && matrix->dims[1] == 3 && matrix->dims[2] == 1);
    CHECK_EQ((int64_t)matrix->n_bytes, 3 * 2 * 34);
    CHECK_EQ(((const uint8_t *)matrix->data)[203], 203);
    CHECK_EQ((int64_t)vector->n_bytes, 20);
    CHECK(((const float *)vector->data)[4] == 4);
    CHECK(foreign->type == 12 && foreign->n_bytes == 0);
}

static void test_sound(void) {
    gguf_build b = {0};
    sq_gguf *file;
    sq_error error;
    build_sound(&b);
    void *copy = build_copy(&b, b.n_bytes);
    if (CHECK_OK(sq_gguf_open_memory(copy, b.n_bytes, &file, &error), &error)) {
        CHECK_EQ((int64_t)sq_gguf_n_bytes(file), (int64_t)b.n_bytes);
        check_scalars(file);
        check_arrays(file);
        check_tensors(file);
        gguf_touch(file);
    }
    sq_gguf_close(file);
    CHECK_FAILS(sq_gguf_open_memory((char *)copy + 8, 100, &file, &error), &error, SQ_ERROR_ARGUMENT, "64");
    free(copy);
    build_free(&b);
}

/* Nothing but a header: sound, and empty. */
static void test_empty(void) {
    gguf_build b = {0};
    sq_error error;
    put_header(&b, 0, 0);
    CHECK_OK(open_copy(&b, b.n_bytes, &error), &error);
    build_free(&b);
}

/* ---- damage ------------------------------------------------------------------------------------- */

static void test_truncated(void) {
    gguf_build b = {0};
    sq_error error;
    build_sound(&b);
    for (size_t n = 0; n < b.n_bytes; n++)
        CHECK_SAY(open_copy(&b, n, &error) == SQ_ERROR_FORMAT, "cut to %zu bytes: accepted", n);
    build_free(&b);
}

/* Either refused with a sentence, or all that is handed out can be used. */
static void test_bits(void) {
    gguf_build b = {0};
    sq_error error;
    places p = build_sound(&b);
    size_t n_refused = 0;
    for (size_t bit = 0; bit < 8 * p.header_end; bit++) {
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        n_refused += open_copy(&b, b.n_bytes, &error) != SQ_OK;
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK(n_refused > 2000); /* most of the header is counts, lengths and kinds */
    build_free(&b);
}

/* Every 8 and 4 bytes of the header overwritten with extreme numbers. */
static void test_extremes(void) {
    static const uint64_t values[] = {0,
                                      1,
                                      2,
                                      INT32_MAX,
                                      UINT32_MAX,
                                      INT64_MAX,
                                      UINT64_MAX,
                                      UINT64_MAX - 7,
                                      UINT64_C(1) << 31,
                                      UINT64_C(1) << 32,
                                      UINT64_C(1) << 60,
                                      UINT64_C(1) << 61,
                                      UINT64_C(1) << 62,
                                      UINT64_C(1) << 63};
    gguf_build b = {0};
    sq_error error;
    places p = build_sound(&b);
    for (size_t width = 4; width <= 8; width += 4)
        for (size_t at = 0; at + width <= p.header_end; at++)
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                uint8_t saved[8];
                memcpy(saved, b.data + at, width);
                memcpy(b.data + at, &values[v], width);
                open_copy(&b, b.n_bytes, &error);
                memcpy(b.data + at, saved, width);
            }
    CHECK_OK(open_copy(&b, b.n_bytes, &error), &error);
    build_free(&b);
}

static void check_u64(gguf_build *b, size_t at, uint64_t value, const char *part) {
    sq_error error;
    uint64_t saved;
    memcpy(&saved, b->data + at, 8);
    memcpy(b->data + at, &value, 8);
    CHECK_FAILS(open_copy(b, b->n_bytes, &error), &error, SQ_ERROR_FORMAT, part);
    memcpy(b->data + at, &saved, 8);
}

static void check_u32(gguf_build *b, size_t at, uint32_t value, sq_status status, const char *part) {
    sq_error error;
    uint32_t saved;
    memcpy(&saved, b->data + at, 4);
    memcpy(b->data + at, &value, 4);
    CHECK_FAILS(open_copy(b, b->n_bytes, &error), &error, status, part);
    memcpy(b->data + at, &saved, 4);
}

/* The sentences say what is wrong. */
static void test_messages(void) {
    gguf_build b = {0};
    places p = build_sound(&b);
    check_u32(&b, 0, 0x04034b50, SQ_ERROR_FORMAT, "starts with the bytes 50 4b 03 04, expected \"GGUF\"");
    check_u32(&b, 4, 2, SQ_ERROR_UNSUPPORTED, "GGUF version 2, expected 3; the file is too old");
    check_u32(&b, 4, 4, SQ_ERROR_UNSUPPORTED, "GGUF version 4, expected 3; the file is newer");
    check_u32(&b, 4, 0x03000000, SQ_ERROR_UNSUPPORTED, "big-endian");
    check_u64(&b, p.n_tensors, UINT64_MAX, "the number of tensors is 18446744073709551615, at most ");
    check_u64(&b, p.n_keys, 1000000, "the number of keys is 1000000, at most ");
    check_u64(&b, p.first_key, UINT64_MAX, "key 1 of 19: its name at byte 32 takes 18446744073709551615");
    check_u64(&b, p.first_key, 0, "key 1 of 19: its name at byte 24 has 0 bytes");
    check_u32(&b, p.first_key + 8, 0x04320a75, SQ_ERROR_FORMAT, "printable ASCII"); /* "u\n2" */
    check_u32(&b, p.u32_kind, 13, SQ_ERROR_FORMAT, "key u32: value of kind 13");
    check_u32(&b, p.array_kind, 9, SQ_ERROR_FORMAT, "key numbers: elements of kind 9");
    check_u32(&b, p.array_kind, 77, SQ_ERROR_FORMAT, "key numbers: elements of kind 77");
    check_u64(&b, p.array_n, UINT64_C(1) << 62, "key numbers: it says 4611686018427387904 elements");
    check_u64(&b, p.strings_n, 1000, "key strings: it says 1000 elements");
    check_u64(&b, p.first_string, 5000, "key strings: a string at byte");
    check_u32(&b, p.alignment, 48, SQ_ERROR_FORMAT, "general.alignment: expected a power of two");
    check_u32(&b, p.alignment, 4, SQ_ERROR_FORMAT, "general.alignment");
    check_u32(&b, p.alignment, 8192, SQ_ERROR_FORMAT, "general.alignment");
    check_u32(&b, p.alignment, 0, SQ_ERROR_FORMAT, "general.alignment");
    check_u32(&b, p.n_dims, 0, SQ_ERROR_FORMAT, "tensor matrix: 0 dimensions, expected 1 to 4");
    check_u32(&b, p.n_dims, 5, SQ_ERROR_FORMAT, "tensor matrix: 5 dimensions");
    check_u64(&b, p.dim, 0, "tensor matrix: dimension 0 is 0");
    check_u64(&b, p.dim, UINT64_C(1) << 61, "tensor matrix: dimension 0 is 2305843009213693952");
    check_u64(&b, p.dim + 8, UINT64_C(1) << 60, "tensor matrix: dimension 1 is");
    check_u64(&b, p.dim, 65, "tensor matrix: rows of 65 weights, expected a multiple of 32");
    check_u64(&b, p.dim, 6400, "tensor matrix: 20400 bytes at offset 0 of the data, which has 276");
    check_u64(&b, p.offset, 32, "tensor matrix: its data is at offset 32, expected a multiple of 64");
    check_u64(&b, p.offset, UINT64_MAX - 63, "tensor matrix: 204 bytes at offset 18446744073709551552");
    check_u64(&b, p.second_offset, 320, "tensor vector: 20 bytes at offset 320 of the data, which has 276");
    build_free(&b);
}

static void test_twice(void) {
    gguf_build b = {0};
    sq_error error;
    put_header(&b, 0, 3);
    put_key(&b, "same", SQ_KIND_U8), put_u8(&b, 1);
    put_key(&b, "other", SQ_KIND_U8), put_u8(&b, 1);
    put_key(&b, "same", SQ_KIND_U8), put_u8(&b, 2);
    CHECK_FAILS(open_copy(&b, b.n_bytes, &error), &error, SQ_ERROR_FORMAT, "key same is there twice");
    build_free(&b);
    put_header(&b, 2, 0);
    for (int i = 0; i < 2; i++)
        put_tensor(&b, "w", 1, (uint64_t[]){1}, SQ_GGUF_I8, 0);
    put_padding(&b, 32), put_u8(&b, 0);
    CHECK_FAILS(open_copy(&b, b.n_bytes, &error), &error, SQ_ERROR_FORMAT, "tensor w is there twice");
    build_free(&b);
}

/* Counts that would take gigabytes if they were believed. */
static void test_absurd_counts(void) {
    gguf_build b = {0};
    sq_error error;
    put_header(&b, 1 << 20, 1 << 16);
    CHECK_FAILS(open_copy(&b, b.n_bytes, &error), &error, SQ_ERROR_FORMAT, "the number of tensors");
    while (b.n_bytes < 2000000)
        put_u64(&b, 0); /* zeros as keys: names of no bytes */
    uint64_t few = 1;
    memcpy(b.data + 8, &few, 8);
    CHECK_FAILS(open_copy(&b, b.n_bytes, &error), &error, SQ_ERROR_FORMAT, "key 1 of 65536");
    build_free(&b);
}

static void test_u32_arrays(void) {
    gguf_build b = {0};
    sq_gguf *file;
    sq_error error;
    uint64_t n = 0;
    int32_t values[2];
    put_header(&b, 0, 2);
    put_array(&b, "fits", SQ_KIND_U32, 2), put_u32(&b, 5), put_u32(&b, INT32_MAX);
    put_array(&b, "large", SQ_KIND_U32, 2), put_u32(&b, 5), put_u32(&b, UINT32_C(1) << 31);
    void *copy = build_copy(&b, b.n_bytes);
    if (CHECK_OK(sq_gguf_open_memory(copy, b.n_bytes, &file, &error), &error)) {
        CHECK(sq_gguf_count_i32(file, "fits", &n) && n == 2);
        sq_gguf_copy_i32(file, "fits", values);
        CHECK(values[0] == 5 && values[1] == INT32_MAX);
        CHECK(!sq_gguf_count_i32(file, "large", &n));
    }
    sq_gguf_close(file);
    free(copy);
    build_free(&b);
}

/* ---- paths -------------------------------------------------------------------------------------- */

static void check_path(const char *path, sq_status status, const char *part) {
    sq_gguf *file = (sq_gguf *)1;
    sq_error error;
    CHECK_FAILS(sq_gguf_open(path, &file, &error), &error, status, part);
    CHECK(file == NULL);
    CHECK_EQ(sq_gguf_open(path, &file, NULL), status);
}

static void write_file(const char *path, const void *data, size_t n_bytes) {
    FILE *stream = fopen(path, "wb");
    if (!CHECK(stream != NULL))
        return;
    CHECK(fwrite(data, 1, n_bytes, stream) == n_bytes);
    CHECK(fclose(stream) == 0);
}

static void test_paths(void) {
    char folder[] = "/tmp/sq-test-XXXXXX", path[400], pipe[64];
    sq_gguf *file;
    sq_error error;
    if (!CHECK(mkdtemp(folder) != NULL))
        return;
    snprintf(path, sizeof path, "%s/model.sq.gguf", folder);
    check_path(NULL, SQ_ERROR_ARGUMENT, "no path");
    check_path("", SQ_ERROR_ARGUMENT, "no path");
    check_path(folder, SQ_ERROR_IO, "a folder, expected a .sq.gguf file");
    check_path(path, SQ_ERROR_IO, "model.sq.gguf: cannot be opened: No such file");
    check_path("/dev/null", SQ_ERROR_IO, "no regular file");
    snprintf(pipe, sizeof pipe, "%s/pipe", folder);
    CHECK(mkfifo(pipe, 0600) == 0);
    check_path(pipe, SQ_ERROR_IO, "no regular file");
    unlink(pipe);
    write_file(path, "", 0);
    check_path(path, SQ_ERROR_FORMAT, "model.sq.gguf: the file is empty");
    if (geteuid() != 0) { /* root reads everything */
        chmod(path, 0);
        check_path(path, SQ_ERROR_IO, "Permission denied");
        chmod(path, 0600);
    }
    write_file(path, "{\"a\": 1}", 8);
    check_path(path, SQ_ERROR_FORMAT, "model.sq.gguf: no GGUF file");
    gguf_build b = {0};
    build_sound(&b);
    write_file(path, b.data, b.n_bytes);
    if (CHECK_OK(sq_gguf_open(path, &file, &error), &error)) {
        unlink(path); /* the mapping stays */
        check_scalars(file);
        check_tensors(file);
        sq_gguf_close(file);
    }
    unlink(path);
    build_free(&b);
    /* A long path keeps its end, and control characters do not reach a terminal. */
    memset(path, 'x', sizeof path);
    memcpy(path + sizeof path - 12, "\x1b[2J.sq.gguf", 12);
    path[sizeof path - 1] = 0;
    check_path(path, SQ_ERROR_IO, "xxx?[2J.sq.ggu: cannot be opened");
    sq_gguf_close(NULL);
    rmdir(folder);
}

/* A vocabulary like a large model's. Nothing here is timed, but a slow lookup would be felt: 150,000
 * strings and 20,000 tensors, each found by name. */
static void test_large(void) {
    enum { N_STRINGS = 150000, N_TENSORS = 20000 };
    gguf_build b = {0};
    sq_error error;
    put_header(&b, N_TENSORS, 1);
    put_array(&b, "tokenizer.ggml.tokens", SQ_KIND_STRING, N_STRINGS);
    for (int i = 0; i < N_STRINGS; i++)
        put_string(&b, "token");
    for (int i = 0; i < N_TENSORS; i++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%d.weight", i);
        put_tensor(&b, name, 1, (uint64_t[]){8}, SQ_GGUF_I32, 32 * (uint64_t)i);
    }
    put_padding(&b, 32);
    for (int i = 0; i < N_TENSORS * 4; i++)
        put_u64(&b, 1);
    CHECK_OK(open_copy(&b, b.n_bytes, &error), &error);
    build_free(&b);
}

int main(void) {
    RUN(test_sound);
    RUN(test_empty);
    RUN(test_truncated);
    RUN(test_bits);
    RUN(test_extremes);
    RUN(test_messages);
    RUN(test_twice);
    RUN(test_absurd_counts);
    RUN(test_u32_arrays);
    RUN(test_paths);
    RUN(test_large);
    return check_report();
}
