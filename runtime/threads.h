/* A pool of threads that runs one function on all of them, with barriers in between. */
#ifndef SQ_THREADS_H
#define SQ_THREADS_H

#include "sq.h"

typedef struct sq_pool sq_pool;

/* Physical cores that this process may run on, at least 1. */
uint32_t sq_threads_default(void);

/* n_threads - 1 threads are started; the caller of sq_pool_run is the last. At most 1024. */
sq_status sq_pool_create(uint32_t n_threads, sq_pool **pool, sq_error *error);
void sq_pool_free(sq_pool *pool);

uint32_t sq_pool_n_threads(const sq_pool *pool);

/* Calls task(context, i) for i in [0, n_threads), each on its own thread, the caller as i = 0, and
 * returns when all have returned. */
void sq_pool_run(sq_pool *pool, void (*task)(void *context, uint32_t thread), void *context);

/* Within a task: waits until every thread of the pool is here. Spins
 * first: barriers are microseconds apart. */
void sq_pool_barrier(sq_pool *pool);

/* Seconds since some fixed moment; never runs backwards. */
double sq_clock_seconds(void);

/* From now on the time that threads wait in barriers is measured. */
void sq_pool_time_waits(sq_pool *pool);
/* Seconds that the calling thread has waited so far, in all pools. */
double sq_pool_waited(void);

#endif
