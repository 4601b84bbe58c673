/* Rows of a matrix dealt out to threads. */
#ifndef SQ_CONVERT_ROWS_H
#define SQ_CONVERT_ROWS_H

#include <stdint.h>

typedef struct sq_row_work {
    uint32_t n_rows;                              /* that a thread takes at a time */
    void *(*scratch_create)(const void *context); /* of one thread; NULL where memory ran out. NULL: none */
    void (*scratch_free)(void *scratch);
    void (*run)(const void *context, void *scratch, uint32_t row0, uint32_t row1);
} sq_row_work;

/* Runs `work` on rows [0, n_rows) with up to n_threads threads, the caller's among them. Which thread gets
 * which rows is left to chance: `run` must not let it matter. Returns 0, or -1 where memory ran out. */
int sq_rows_run(const sq_row_work *work, const void *context, uint32_t n_rows, uint32_t n_threads);

#endif
