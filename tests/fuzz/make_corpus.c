/* make_corpus FOLDER: writes the fuzzers' seeds. Small sound files of each family, and a few of what
 * already has to be refused, so that the first mutations start from all branches. */
#include <errno.h>
#include <sys/stat.h>

#include "../c/tiny_model.h"

static int n_written;

static void write_seed(const char *folder, const char *name, const void *data, size_t n_bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *stream = fopen(path, "wb");
    bool written = stream && fwrite(data, 1, n_bytes, stream) == n_bytes;
    if (stream && fclose(stream) != 0)
        written = false;
    if (!written) {
        fprintf(stderr, "make_corpus: %s: cannot be written: %s\n", path, strerror(errno));
        exit(1);
    }
    n_written++;
}

static void write_model(const char *folder, const char *name, tiny_model *m) {
    gguf_build b;
    tiny_write(m, &b);
    write_seed(folder, name, b.data, b.n_bytes);
    build_free(&b);
}

static void write_models(const char *folder) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        const char *arch = tiny_families[family].arch;
        char name[64];
        tiny_model m;
        gguf_build b;
        tiny_create(&m, family);
        write_model(folder, arch, &m);
        tiny_write(&m, &b);
        snprintf(name, sizeof name, "%s-cut", arch);
        write_seed(folder, name, b.data, b.n_bytes / 2);
        build_free(&b);
        size_t n_tensors = m.n_tensors;
        m.n_tensors = 1;
        snprintf(name, sizeof name, "%s-missing", arch);
        write_model(folder, name, &m);
        m.n_tensors = 0; /* small enough for the file reader's fuzzer to get deep */
        snprintf(name, sizeof name, "%s-keys", arch);
        write_model(folder, name, &m);
        m.n_tensors = n_tensors;
        tiny_free(&m);
    }
}

/* One of each kind of value, and tensors of each type. */
static void write_kinds(const char *folder) {
    static const uint32_t types[] = {SQ_GGUF_F32, SQ_GGUF_F16, SQ_GGUF_Q8_0, SQ_GGUF_I8, SQ_GGUF_I16,
                                     SQ_GGUF_I32, 12};
    const uint32_t n_types = sizeof types / sizeof *types;
    static const uint8_t scalar_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    gguf_build b = {0};
    char name[16];
    put_header(&b, n_types, 23);
    for (uint32_t kind = 0; kind < SQ_N_KINDS; kind++) {
        const uint64_t zeros[2] = {0};
        if (kind == SQ_KIND_ARRAY)
            continue;
        size_t n_bytes = kind == SQ_KIND_STRING ? 8 : scalar_bytes[kind];
        snprintf(name, sizeof name, "s%u", kind);
        put_key(&b, name, kind), put(&b, zeros, n_bytes);
        snprintf(name, sizeof name, "a%u", kind);
        if (kind != SQ_KIND_F64)
            put_array(&b, name, kind, 2), put(&b, zeros, n_bytes), put(&b, zeros, n_bytes);
    }
    for (uint32_t i = 0; i < n_types; i++) {
        snprintf(name, sizeof name, "t%u", i);
        put_tensor(&b, name, 1 + i % 4, (uint64_t[]){32, 1, 1, 1}, types[i], 128 * i);
    }
    put_padding(&b, 32);
    for (uint32_t i = 0; i < 16 * n_types; i++)
        put_u64(&b, i);
    write_seed(folder, "kinds", b.data, b.n_bytes);
    build_free(&b);
}

/* sq-eval's reference: one window of three tokens, two rows of a vocabulary of four. */
static void write_reference(const char *folder) {
    const uint32_t header[] = {1, 4, 3, 0, 1}, tokens[] = {0, 1, 2};
    const uint16_t rows[] = {0, 1, 2048, 65535, 7, 0, 1, 1};
    gguf_build b = {0};
    put(&b, "SQREF\0\0", 8);
    put(&b, header, sizeof header), put(&b, tokens, sizeof tokens), put(&b, rows, sizeof rows);
    write_seed(folder, "reference", b.data, b.n_bytes);
    build_free(&b);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fputs("usage: make_corpus FOLDER\n", stderr);
        return 2;
    }
    if (mkdir(argv[1], 0777) != 0 && errno != EEXIST) {
        fprintf(stderr, "make_corpus: %s: cannot be made: %s\n", argv[1], strerror(errno));
        return 1;
    }
    write_seed(argv[1], "empty", "", 0);
    write_seed(argv[1], "magic", "GGUF\3\0\0\0", 8);
    write_seed(argv[1], "old", "GGUF\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    write_seed(argv[1], "big-endian", "GGUF\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    write_kinds(argv[1]);
    write_models(argv[1]);
    write_reference(argv[1]);
    printf("%d seeds in %s\n", n_written, argv[1]);
    return 0;
}
