/* The reader of references on any bytes: it refuses them, or all rows can be read and scored. */
#include "eval/reference.h"
#include "eval/scores.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void read_all(reference *r) {
    const reference_shape *s = reference_get_shape(r);
    sq_token *tokens = malloc(s->n_window * sizeof *tokens);
    uint16_t *row = malloc(s->n_vocab * sizeof *row);
    float *logits = calloc(s->n_vocab, sizeof *logits);
    scores scored = {0};
    sq_error error;
    sq_status status = SQ_OK;
    for (uint32_t w = 0; !status && w < s->n_windows; w++) {
        status = reference_read_tokens(r, tokens, &error);
        for (size_t i = 0; !status && i < reference_n_scored(s); i++) {
            status = reference_read_row(r, row, &error);
            if (!status)
                scores_add(&scored, logits, row, s->n_vocab, tokens[s->n_first + i + 1]);
        }
    }
    if (scored.divergence.n)
        scores_quantile(&scored, 0.99);
    scores_free(&scored);
    free(tokens);
    free(row);
    free(logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/sq-fuzz-reference-%d", (int)getpid());
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, n_bytes, file) != n_bytes)
        abort();
    fclose(file);
    reference *r;
    sq_error error;
    if (reference_open(path, &r, &error) == SQ_OK)
        read_all(r);
    else if (!error.status || !error.message[0])
        abort();
    reference_close(r);
    unlink(path);
    return 0;
}
