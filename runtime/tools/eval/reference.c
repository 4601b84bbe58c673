#include "reference.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { VERSION = 1, MAGIC_BYTES = 8 };

static const char magic[MAGIC_BYTES] = "SQREF";

typedef struct header {
    char magic[MAGIC_BYTES];
    uint32_t version;
    reference_shape shape;
} header;

struct reference {
    FILE *file;
    char *path, *partial; /* `partial` of a new file only */
    reference_shape shape;
    uint64_t n_bytes; /* of the whole file */
    uint16_t *row;    /* [n_vocab], of a new file only */
};

/* ---- errors ---------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static sq_status fail(sq_error *error, sq_status status,
                                                            const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return error->status = status;
}

static sq_status fail_io(sq_error *error, const char *what, const char *path, int reason) {
    return fail(error, SQ_ERROR_IO, "cannot %s %s: %s", what, path, strerror(reason));
}

/* ---- shape ----------------------------------------------------------------------------------- */

/* The bytes of a file of this shape; 0 where there can be none. */
static uint64_t file_bytes(const reference_shape *s) {
    if (s->n_vocab < 1 || s->n_vocab > INT32_MAX || s->n_window < 2 || s->n_window > INT32_MAX ||
        s->n_first > s->n_window - 2 || s->n_windows < 1) {
        return 0;
    }
    uint64_t rows, n; /* rows: less than 2^31 · 2^31 · 2 */
    rows = (uint64_t)reference_n_scored(s) * s->n_vocab * sizeof(uint16_t);
    bool fits = !__builtin_mul_overflow(rows + s->n_window * sizeof(sq_token), (uint64_t)s->n_windows, &n) &&
                !__builtin_add_overflow(n, sizeof(header), &n) && n <= INT64_MAX;
    return fits ? n : 0;
}

const reference_shape *reference_get_shape(const reference *r) {
    return &r->shape;
}

const char *reference_partial(const reference *r) {
    return r->partial;
}

/* ---- reading --------------------------------------------------------------------------------- */

bool reference_recognize(const char *path) {
    char found[MAGIC_BYTES];
    FILE *file = fopen(path, "rb");
    bool same = file && fread(found, sizeof found, 1, file) == 1 && memcmp(found, magic, sizeof found) == 0;
    if (file) {
        fclose(file);
    }
    return same;
}

static sq_status read_bytes(reference *r, void *out, size_t size, size_t n, sq_error *error) {
    if (fread(out, size, n, r->file) == n) {
        return SQ_OK;
    }
    return ferror(r->file) ? fail_io(error, "read", r->path, errno)
                           : fail(error, SQ_ERROR_FORMAT, "%s: the reference is cut short", r->path);
}

static sq_status read_header(reference *r, sq_error *error) {
    header h;
    struct stat status;
    sq_status failed = read_bytes(r, &h, sizeof h, 1, error);
    if (failed) {
        return failed;
    }
    if (memcmp(h.magic, magic, sizeof magic) != 0) {
        return fail(error, SQ_ERROR_FORMAT, "%s: no reference; sq-eval --save-reference makes one", r->path);
    }
    if (h.version != VERSION) {
        return fail(error, SQ_ERROR_UNSUPPORTED,
                    "%s: the reference is of version %u, expected %d; make it again", r->path, h.version,
                    VERSION);
    }
    r->shape = h.shape;
    r->n_bytes = file_bytes(&h.shape);
    if (fstat(fileno(r->file), &status) != 0) {
        return fail_io(error, "read", r->path, errno);
    }
    if (r->n_bytes == 0 || (uint64_t)status.st_size != r->n_bytes) {
        return fail(error, SQ_ERROR_FORMAT,
                    "%s: the reference is damaged: %lld bytes, its header says %llu; make it again", r->path,
                    (long long)status.st_size, (unsigned long long)r->n_bytes);
    }
    return SQ_OK;
}

static reference *create(const char *path) {
    reference *r = calloc(1, sizeof *r);
    if (r && !(r->path = strdup(path))) {
        free(r);
        r = NULL;
    }
    return r;
}

sq_status reference_open(const char *path, reference **out, sq_error *error) {
    *out = NULL;
    reference *r = create(path);
    if (!r) {
        return fail(error, SQ_ERROR_MEMORY, "out of memory");
    }
    r->file = fopen(path, "rb");
    sq_status status = r->file ? read_header(r, error) : fail_io(error, "read", path, errno);
    if (status) {
        reference_close(r);
        return status;
    }
    *out = r;
    return SQ_OK;
}

sq_status reference_read_tokens(reference *r, sq_token *tokens, sq_error *error) {
    sq_status status = read_bytes(r, tokens, sizeof *tokens, r->shape.n_window, error);
    for (size_t i = 0; !status && i < r->shape.n_window; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= r->shape.n_vocab) {
            status = fail(error, SQ_ERROR_FORMAT,
                          "%s: the reference is damaged: token %d, expected 0 to %u; make it again", r->path,
                          tokens[i], r->shape.n_vocab - 1);
        }
    }
    return status;
}

sq_status reference_read_row(reference *r, uint16_t *row, sq_error *error) {
    sq_status status = read_bytes(r, row, sizeof *row, r->shape.n_vocab, error);
    size_t n_top = 0;
    for (size_t i = 0; !status && i < r->shape.n_vocab; i++) {
        n_top += row[i] == 0;
    }
    if (!status && n_top != 1) {
        status = fail(error, SQ_ERROR_FORMAT,
                      "%s: the reference is damaged: %zu tokens on top of a row, expected 1; make it again",
                      r->path, n_top);
    }
    return status;
}

/* ---- writing --------------------------------------------------------------------------------- */

static sq_status write_bytes(reference *r, const void *data, size_t size, size_t n, sq_error *error) {
    return fwrite(data, size, n, r->file) == n ? SQ_OK : fail_io(error, "write", r->partial, errno);
}

static sq_status begin_file(reference *r, sq_error *error) {
    header h = {.version = VERSION, .shape = r->shape};
    memcpy(h.magic, magic, sizeof magic);
    struct stat status;
    if (stat(r->path, &status) == 0 && !reference_recognize(r->path)) {
        return fail(error, SQ_ERROR_ARGUMENT, "%s exists and is no reference; choose another name", r->path);
    }
    r->row = malloc(r->shape.n_vocab * sizeof *r->row);
    if (!r->row || asprintf(&r->partial, "%s.partial", r->path) < 0) {
        r->partial = NULL;
        return fail(error, SQ_ERROR_MEMORY, "out of memory");
    }
    r->file = fopen(r->partial, "wb");
    if (!r->file) {
        return fail_io(error, "write", r->partial, errno);
    }
    int reason = posix_fallocate(fileno(r->file), 0, (off_t)r->n_bytes);
    if (reason) {
        return fail(error, SQ_ERROR_IO, "cannot write %s of %.2f GB: %s", r->path, 1e-9 * (double)r->n_bytes,
                    strerror(reason));
    }
    return write_bytes(r, &h, sizeof h, 1, error);
}

sq_status reference_create(const char *path, const reference_shape *shape, reference **out, sq_error *error) {
    *out = NULL;
    reference *r = create(path);
    if (!r) {
        return fail(error, SQ_ERROR_MEMORY, "out of memory");
    }
    r->shape = *shape;
    r->n_bytes = file_bytes(shape);
    sq_status status = r->n_bytes ? begin_file(r, error)
                                  : fail(error, SQ_ERROR_ARGUMENT, "%s: no reference has this shape", path);
    if (status) {
        reference_close(r);
        return status;
    }
    *out = r;
    return SQ_OK;
}

sq_status reference_write_tokens(reference *r, const sq_token *tokens, sq_error *error) {
    return write_bytes(r, tokens, sizeof *tokens, r->shape.n_window, error);
}

sq_status reference_write_logits(reference *r, const float *logits, sq_error *error) {
    size_t top = 0, n_vocab = r->shape.n_vocab;
    for (size_t i = 1; i < n_vocab; i++) {
        if (logits[i] > logits[top] || isnan(logits[top])) {
            top = i;
        }
    }
    if (!isfinite(logits[top])) {
        return fail(error, SQ_ERROR_ARGUMENT,
                    "%s: a model whose logits are no finite numbers is no reference", r->path);
    }
    for (size_t i = 0; i < n_vocab; i++) {
        float units = REFERENCE_UNITS * (logits[top] - logits[i]);
        /* the comparison is false for NaN */
        r->row[i] = units < REFERENCE_LOWEST ? (uint16_t)fmaxf(1, rintf(units)) : REFERENCE_LOWEST;
    }
    r->row[top] = 0;
    return write_bytes(r, r->row, sizeof *r->row, n_vocab, error);
}

sq_status reference_commit(reference *r, sq_error *error) {
    long written = fflush(r->file) == 0 ? ftell(r->file) : -1;
    if (written < 0 || fsync(fileno(r->file)) != 0) {
        return fail_io(error, "write", r->partial, errno);
    }
    if ((uint64_t)written != r->n_bytes) {
        return fail(error, SQ_ERROR_ARGUMENT, "%s: %ld bytes were written, expected %llu", r->partial,
                    written, (unsigned long long)r->n_bytes);
    }
    if (rename(r->partial, r->path) != 0) {
        return fail_io(error, "write", r->path, errno);
    }
    free(r->partial);
    r->partial = NULL;
    return SQ_OK;
}

void reference_close(reference *r) {
    if (!r) {
        return;
    }
    if (r->file) {
        fclose(r->file);
    }
    if (r->file && r->partial) {
        unlink(r->partial);
    }
    free(r->path);
    free(r->partial);
    free(r->row);
    free(r);
}
