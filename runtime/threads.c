#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "status.h"

enum {
    MAX_THREADS = 1024,
    /* A wait spins for some tens of microseconds, then sleeps: on a busy machine the thread that is waited
     * for may need this very core. Between two tokens a worker stays awake longer. */
    SPINS_BARRIER = 3000,
    SPINS_IDLE = 30000,
};

struct sq_pool {
    uint32_t n_threads;
    pthread_t threads[MAX_THREADS];
    uint32_t n_started;

    void (*task)(void *, uint32_t);
    void *context;
    atomic_uint n_runs; /* counts the runs; a worker that sees it change takes up the task */
    atomic_bool closing;
    pthread_mutex_t mutex; /* for sleeping only */
    pthread_cond_t wake;
    atomic_uint n_asleep;
    bool times_waits;

    /* A barrier that needs no reset: the last to arrive moves the generation on. */
    _Alignas(64) atomic_uint n_arrived;
    _Alignas(64) atomic_uint generation;
};

typedef struct worker {
    sq_pool *pool;
    uint32_t index;
} worker;

static inline void spin_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* True where `cpu` is the first of the hardware threads of its core that the process may use. */
static bool first_of_core(int cpu, const cpu_set_t *allowed) {
    char path[96], line[256];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "r");
    if (!file)
        return true;
    char *text = fgets(line, sizeof line, file);
    fclose(file);
    while (text && *text) { /* "0,16" or "0-1" */
        char *end;
        long low = strtol(text, &end, 10), high = low;
        if (end == text)
            break;
        if (*end == '-')
            high = strtol(end + 1, &end, 10);
        for (long i = low; i <= high && i < cpu && i < CPU_SETSIZE; i++)
            if (i >= 0 && CPU_ISSET(i, allowed))
                return false;
        text = *end == ',' ? end + 1 : NULL;
    }
    return true;
}

uint32_t sq_threads_default(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) {
        long n = sysconf(_SC_NPROCESSORS_ONLN);
        return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (uint32_t)n;
    }
    uint32_t n_cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        n_cores += CPU_ISSET(cpu, &allowed) && first_of_core(cpu, &allowed);
    return n_cores ? n_cores : 1;
}

/* Waits until `counter` is no longer `seen`: spins, then sleeps until counter_advance. */
static void counter_await(sq_pool *pool, atomic_uint *counter, uint32_t seen, uint32_t n_spins) {
    for (uint32_t spin = 0; spin < n_spins; spin++) {
        if (atomic_load_explicit(counter, memory_order_acquire) != seen)
            return;
        spin_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->n_asleep, 1);
    while (atomic_load(counter) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->n_asleep, 1);
    pthread_mutex_unlock(&pool->mutex);
}

/* A sleeper counts itself before it looks at the counter, and here the counter moves before the sleepers
 * are looked at: in one order of all four, so that no wake-up is lost. */
static void counter_advance(sq_pool *pool, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (!atomic_load(&pool->n_asleep))
        return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static _Thread_local double waited;

double sq_pool_waited(void) {
    return waited;
}

void sq_pool_time_waits(sq_pool *pool) {
    pool->times_waits = true;
}

double sq_clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void barrier_await(sq_pool *pool, uint32_t generation) {
    double start = pool->times_waits ? sq_clock_seconds() : 0;
    counter_await(pool, &pool->generation, generation, SPINS_BARRIER);
    if (pool->times_waits)
        waited += sq_clock_seconds() - start;
}

void sq_pool_barrier(sq_pool *pool) {
    if (pool->n_threads == 1)
        return;
    uint32_t generation = atomic_load_explicit(&pool->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->n_arrived, 1, memory_order_acq_rel) + 1 == pool->n_threads) {
        atomic_store_explicit(&pool->n_arrived, 0, memory_order_relaxed);
        counter_advance(pool, &pool->generation);
    } else {
        barrier_await(pool, generation);
    }
}

static void *worker_main(void *argument) {
    worker me = *(worker *)argument;
    free(argument);
    for (uint32_t n_seen = 0;; n_seen++) {
        counter_await(me.pool, &me.pool->n_runs, n_seen, SPINS_IDLE);
        if (atomic_load(&me.pool->closing))
            return NULL;
        me.pool->task(me.pool->context, me.index);
        sq_pool_barrier(me.pool);
    }
}

void sq_pool_run(sq_pool *pool, void (*task)(void *, uint32_t), void *context) {
    pool->task = task;
    pool->context = context;
    if (pool->n_threads > 1)
        counter_advance(pool, &pool->n_runs);
    task(context, 0);
    sq_pool_barrier(pool);
}

/* Signals belong to the caller's threads: Ctrl-C must not land on a worker. */
static int worker_start(sq_pool *pool, uint32_t index) {
    worker *argument = malloc(sizeof *argument);
    if (!argument)
        return -1;
    *argument = (worker){pool, index};
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&pool->threads[index], NULL, worker_main, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        free(argument);
    return failed;
}

sq_status sq_pool_create(uint32_t n_threads, sq_pool **out, sq_error *error) {
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "threads: expected 1 to %d, found %u", MAX_THREADS,
                       n_threads);
    sq_pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for %u threads", n_threads);
    memset(pool, 0, sizeof *pool);
    pool->n_threads = n_threads;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (uint32_t i = 1; i < n_threads; i++, pool->n_started++) {
        if (worker_start(pool, i)) {
            sq_pool_free(pool);
            return sq_fail(error, SQ_ERROR_MEMORY, "thread %u of %u cannot be started; use fewer threads",
                           i + 1, n_threads);
        }
    }
    *out = pool;
    return SQ_OK;
}

void sq_pool_free(sq_pool *pool) {
    if (!pool)
        return;
    atomic_store(&pool->closing, true);
    counter_advance(pool, &pool->n_runs);
    for (uint32_t i = 1; i <= pool->n_started; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

uint32_t sq_pool_n_threads(const sq_pool *pool) {
    return pool->n_threads;
}
