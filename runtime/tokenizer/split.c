#include "split.h"

#include <string.h>

#include "../status.h"
#include "utf8.h"

/* Patterns come from files that nobody vouches for. PCRE2 counts steps and memory, so that a pattern can
 * neither hang nor exhaust the machine; real ones need a handful of steps a character. */
enum {
    PATTERN_BYTES_MAX = 1 << 16,
    MATCH_STEPS = 10000, /* allowed from one place in the text, and for each of its bytes: */
    MATCH_STEPS_PER_BYTE = 32,
    HEAP_KIB_MAX = 512 * 1024,
    JIT_STACK_BYTES_MIN = 32 * 1024,
    JIT_STACK_BYTES_MAX = 1024 * 1024
};

/* ---- loading --------------------------------------------------------------------------------- */

/* Unicode properties for \d and the like, and ^ and $ at every line, which is how Oniguruma (Hugging
 * Face's tokenizers) reads a pattern. */
static sq_status compile(sq_gguf_string pattern, size_t index, pcre2_code **code, sq_error *error) {
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    int number;
    PCRE2_SIZE offset;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for the tokenizer's patterns");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length(context, PATTERN_BYTES_MAX);
    *code = pcre2_compile((PCRE2_SPTR)pattern.text, pattern.n_bytes, options, &number, &offset, context);
    pcre2_compile_context_free(context);
    if (!*code) {
        char reason[128] = "";
        pcre2_get_error_message(number, (PCRE2_UCHAR *)reason, sizeof reason);
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "squeezellm.tokenizer.patterns: entry %zu, at byte %zu: %s; the file is damaged",
                       index, (size_t)offset, reason);
    }
    pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE); /* where it cannot, the interpreter runs the pattern */
    return SQ_OK;
}

sq_status sq_splitter_load(const sq_gguf *file, sq_splitter *splitter, sq_error *error) {
    static const char key[] = "squeezellm.tokenizer.patterns";
    uint64_t n;
    if (!sq_gguf_has(file, key))
        return SQ_OK;
    if (!sq_gguf_get_strings(file, key, &n) || n > SQ_N_PATTERNS_MAX)
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected at most %d strings; the file is damaged", key,
                       SQ_N_PATTERNS_MAX);
    for (size_t i = 0; i < n; i++) {
        sq_status status = compile(sq_gguf_string_at(file, key, i), i, &splitter->patterns[i], error);
        if (status)
            return status;
        splitter->n++;
    }
    return SQ_OK;
}

void sq_splitter_free(sq_splitter *splitter) {
    for (size_t i = 0; i < splitter->n; i++)
        pcre2_code_free(splitter->patterns[i]);
}

bool sq_split_work_create(sq_split_work *work) {
    work->data = pcre2_match_data_create(1, NULL);
    work->limits = pcre2_match_context_create(NULL);
    work->stack = pcre2_jit_stack_create(JIT_STACK_BYTES_MIN, JIT_STACK_BYTES_MAX, NULL);
    if (!work->data || !work->limits)
        return false;
    pcre2_set_heap_limit(work->limits, HEAP_KIB_MAX);
    if (work->stack) /* without it the JIT uses 32 KiB of the thread's own */
        pcre2_jit_stack_assign(work->limits, NULL, work->stack);
    return true;
}

void sq_split_work_free(sq_split_work *work) {
    pcre2_match_data_free(work->data);
    pcre2_match_context_free(work->limits);
    pcre2_jit_stack_free(work->stack);
}

/* ---- splitting ------------------------------------------------------------------------------- */

typedef struct split_job {
    const sq_splitter *splitter;
    const sq_split_work *work;
    sq_piece_fn piece;
    void *context;
    sq_error *error;
} split_job;

/* The first match at or after `offset`: 1, none: 0, failure: negative (PCRE2's number). */
static int find(const split_job *job, size_t pattern, const char *text, size_t n_bytes, size_t offset,
                size_t *start, size_t *end) {
    const pcre2_code *code = job->splitter->patterns[pattern];
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    uint64_t steps = MATCH_STEPS + (uint64_t)MATCH_STEPS_PER_BYTE * n_bytes;
    pcre2_set_match_limit(job->work->limits, steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX);
    int rc =
        pcre2_match(code, subject, n_bytes, offset, PCRE2_NO_UTF_CHECK, job->work->data, job->work->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its stack on the heap */
        rc = pcre2_match(code, subject, n_bytes, offset, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, job->work->data,
                         job->work->limits);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0)
        return rc;
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(job->work->data);
    *start = found[0], *end = found[1];
    return 1;
}

static sq_status match_failed(int rc, size_t pattern, sq_error *error) {
    char reason[128] = "";
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof reason);
    return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                   "squeezellm.tokenizer.patterns: entry %zu cannot be matched against this text (%s); "
                   "try a shorter text",
                   pattern, reason);
}

static sq_status split_valid(const split_job *job, size_t pattern, const char *text, size_t n_bytes) {
    if (n_bytes == 0)
        return SQ_OK;
    if (pattern == job->splitter->n)
        return job->piece(job->context, text, n_bytes, job->error);
    size_t done = 0; /* pieces before this are handed out */
    for (size_t offset = 0; offset < n_bytes;) {
        size_t start, end;
        int found = find(job, pattern, text, n_bytes, offset, &start, &end);
        if (found < 0)
            return match_failed(found, pattern, job->error);
        /* \K within a lookaround can give a match that ends before it starts, or lies behind us. */
        if (!found || start < done || end < start)
            break;
        if (end > start || start > done) { /* an empty match cuts too */
            sq_status status = split_valid(job, pattern + 1, text + done, start - done);
            if (!status)
                status = split_valid(job, pattern + 1, text + start, end - start);
            if (status)
                return status;
            done = end;
        }
        offset = end > start || end >= n_bytes ? end : end + sq_utf8_read(text + end, n_bytes - end, NULL);
    }
    return split_valid(job, pattern + 1, text + done, n_bytes - done);
}

sq_status sq_split(const sq_splitter *splitter, const sq_split_work *work, const char *text, size_t n_bytes,
                   sq_piece_fn piece, void *context, sq_error *error) {
    split_job job = {splitter, work, piece, context, error};
    sq_status status = SQ_OK;
    for (size_t start = 0, end = 0; end < n_bytes && !status; start = end) {
        end += sq_utf8_valid_bytes(text + end, n_bytes - end);
        status = split_valid(&job, 0, text + start, end - start);
        start = end;
        while (end < n_bytes && sq_utf8_read(text + end, n_bytes - end, NULL) == 0)
            end++;
        if (!status && end > start)
            status = piece(context, text + start, end - start, error);
    }
    return status;
}
