#include "table.h"

#include <stddef.h>

#include "rows.h"

enum { ROWS_PER_TURN = 16, MAX_ENTRIES = 16, N_SUMS = 4 };

typedef struct job {
    const uint8_t *indices;
    uint32_t n_cols, k;
    const float *from;
    float *to;
} job;

static void find_values(const void *context, void *scratch, uint32_t row0, uint32_t row1) {
    const job *j = context;
    (void)scratch;
    for (uint32_t row = row0; row < row1; row++) {
        const uint8_t *indices = j->indices + (size_t)row * j->n_cols;
        const float *table = j->from + (size_t)row * j->k;
        float *values = j->to + (size_t)row * j->n_cols;
        for (uint32_t i = 0; i < j->n_cols; i++)
            values[i] = table[indices[i]];
    }
}

void sq_table_values(const float *table, const uint8_t *indices, uint32_t n_rows, uint32_t n_cols, uint32_t k,
                     uint32_t n_threads, float *values) {
    static const sq_row_work work = {ROWS_PER_TURN, NULL, NULL, find_values};
    job j = {indices, n_cols, k, table, values};
    sq_rows_run(&work, &j, n_rows, n_threads);
}

/* Neighbours often share an entry: sums of their own need not wait for each other. */
static void sum_row(const float *values, const uint8_t *indices, uint32_t n, uint32_t k, float *sums) {
    float parts[N_SUMS][MAX_ENTRIES] = {0};
    for (uint32_t i = 0; i < n; i++)
        parts[i % N_SUMS][indices[i]] += values[i];
    for (uint32_t c = 0; c < k; c++)
        sums[c] = (parts[0][c] + parts[1][c]) + (parts[2][c] + parts[3][c]);
}

static void sum_up(const void *context, void *scratch, uint32_t row0, uint32_t row1) {
    const job *j = context;
    (void)scratch;
    for (uint32_t row = row0; row < row1; row++)
        sum_row(j->from + (size_t)row * j->n_cols, j->indices + (size_t)row * j->n_cols, j->n_cols, j->k,
                j->to + (size_t)row * j->k);
}

void sq_table_sums(const float *values, const uint8_t *indices, uint32_t n_rows, uint32_t n_cols, uint32_t k,
                   uint32_t n_threads, float *sums) {
    static const sq_row_work work = {ROWS_PER_TURN, NULL, NULL, sum_up};
    job j = {indices, n_cols, k, values, sums};
    sq_rows_run(&work, &j, n_rows, n_threads);
}
