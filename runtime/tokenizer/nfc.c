#include "nfc.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "../status.h"
#include "encode.h"

enum {
    N_RANGES_MAX = 1 << 16,
    FIRST_MARK = 0x300, /* no character before it changes places or composes with the one in front of it */
    N_MARKS_MAX = 1000  /* in a row: utf8proc takes time with the square of it */
};

sq_status sq_nfc_load(const sq_gguf *file, sq_nfc *nfc, sq_error *error) {
    static const char key[] = "squeezellm.tokenizer.nfc_ranges";
    uint64_t n;
    if (!sq_gguf_has(file, key))
        return SQ_OK;
    bool valid = sq_gguf_count_i32(file, key, &n) && n % 2 == 0 && n > 0 && n <= 2 * N_RANGES_MAX;
    if (valid) {
        nfc->n = n / 2;
        nfc->ranges = malloc(n * sizeof *nfc->ranges);
        if (!nfc->ranges)
            return sq_fail(error, SQ_ERROR_MEMORY, "no memory for %s", key);
        sq_gguf_copy_i32(file, key, nfc->ranges);
    }
    for (uint64_t i = 1; valid && i < n; i++)
        valid = nfc->ranges[i] >= nfc->ranges[i - 1] + (i % 2 == 0);
    if (!valid || nfc->ranges[0] < 0 || nfc->ranges[n - 1] > 0x10FFFF)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "%s: expected pairs of characters, first and last, in ascending order; the file is "
                       "damaged",
                       key);
    return SQ_OK;
}

void sq_nfc_free(sq_nfc *nfc) {
    free(nfc->ranges);
}

static bool is_in_ranges(const sq_nfc *nfc, int32_t point) {
    size_t low = 0, high = nfc->n; /* the range is in [low, high), if there is one */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (point > nfc->ranges[2 * middle + 1])
            low = middle + 1;
        else if (point < nfc->ranges[2 * middle])
            high = middle;
        else
            return true;
    }
    return false;
}

static sq_status append(sq_encoder *encoder, const char *text, size_t n_bytes, size_t *n_written,
                        sq_error *error) {
    if (sq_encoder_reserve(encoder, *n_written + n_bytes, error))
        return SQ_ERROR_MEMORY;
    memcpy(encoder->run + *n_written, text, n_bytes);
    *n_written += n_bytes;
    return SQ_OK;
}

static sq_status append_composed(sq_encoder *encoder, const char *text, size_t n_bytes, size_t *n_written,
                                 sq_error *error) {
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n_bytes, &composed,
                                      UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (n < 0) /* of valid UTF-8 only memory can be missing */
        return sq_encoder_no_memory(n_bytes, error);
    sq_status status = append(encoder, (const char *)composed, (size_t)n, n_written, error);
    free(composed);
    return status;
}

typedef struct stretch {
    size_t n_bytes;
    bool changes;       /* whether normalizing could */
    uint32_t max_marks; /* combining marks in a row, at most */
} stretch;

/* What is normalized together, at the start of `text`. */
static stretch find_stretch(const sq_nfc *nfc, const char *text, size_t n_bytes) {
    stretch found = {0};
    uint32_t n_marks = 0;
    while (found.n_bytes < n_bytes) {
        uint32_t point;
        size_t length = sq_utf8_read(text + found.n_bytes, n_bytes - found.n_bytes, &point);
        if (length == 0 || (point >= FIRST_MARK && !is_in_ranges(nfc, (int32_t)point)))
            break;
        bool is_mark = utf8proc_get_property((utf8proc_int32_t)point)->combining_class != 0;
        n_marks = is_mark ? n_marks + 1 : 0;
        found.max_marks = n_marks > found.max_marks ? n_marks : found.max_marks;
        found.changes = found.changes || point >= FIRST_MARK;
        found.n_bytes += length;
    }
    return found;
}

sq_status sq_encode_nfc(sq_encoder *encoder, const char *text, size_t n_bytes, size_t *n_written,
                        sq_error *error) {
    sq_status status = sq_encoder_reserve(encoder, n_bytes, error);
    *n_written = 0;
    for (size_t i = 0; i < n_bytes && !status;) {
        stretch next = find_stretch(encoder->nfc, text + i, n_bytes - i);
        size_t n = next.n_bytes;
        if (n == 0) { /* left as it is: a character that stands alone, or a byte that is no UTF-8 */
            n = sq_utf8_read(text + i, n_bytes - i, NULL);
            n = n > 0 ? n : 1;
        }
        if (next.max_marks > N_MARKS_MAX)
            status = sq_fail(error, SQ_ERROR_UNSUPPORTED,
                             "the text has more than %d combining marks in a row, which is no writing; leave "
                             "them out",
                             N_MARKS_MAX);
        else if (next.changes)
            status = append_composed(encoder, text + i, n, n_written, error);
        else
            status = append(encoder, text + i, n, n_written, error);
        i += n;
    }
    return status;
}
