#include "rows.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { MAX_THREADS = 256 };

typedef struct crew {
    const sq_row_work *work;
    const void *context;
    uint32_t n_rows;
    atomic_uint n_taken; /* in turns */
    atomic_bool failed;
} crew;

static void *thread_run(void *argument) {
    crew *c = argument;
    void *scratch = c->work->scratch_create ? c->work->scratch_create(c->context) : NULL;
    if (c->work->scratch_create && !scratch) {
        atomic_store(&c->failed, true);
        return NULL;
    }
    uint64_t row, step = c->work->n_rows;
    while ((row = step * atomic_fetch_add(&c->n_taken, 1)) < c->n_rows)
        c->work->run(c->context, scratch, (uint32_t)row,
                     row + step < c->n_rows ? (uint32_t)(row + step) : c->n_rows);
    if (scratch)
        c->work->scratch_free(scratch);
    return NULL;
}

int sq_rows_run(const sq_row_work *work, const void *context, uint32_t n_rows, uint32_t n_threads) {
    crew c = {.work = work, .context = context, .n_rows = n_rows};
    pthread_t threads[MAX_THREADS];
    uint32_t n_started = 0;
    if (n_threads > MAX_THREADS)
        n_threads = MAX_THREADS;
    while (n_started + 1 < n_threads && !pthread_create(&threads[n_started], NULL, thread_run, &c))
        n_started++; /* fewer threads than asked for still do all the work */
    thread_run(&c);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    return atomic_load(&c.failed) ? -1 : 0;
}
