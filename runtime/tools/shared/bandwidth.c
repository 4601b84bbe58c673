#include "bandwidth.h"

#include "clock.h"
#include "text.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct part {
    const uint64_t *data;
    size_t n;
    uint64_t sum;
} part;

/* Sixteen sums at once, so that no addition waits for the one before; the compiler makes vectors of
 * them. */
static inline __attribute__((always_inline)) uint64_t sum_words(const uint64_t *data, size_t n) {
    uint64_t sums[16] = {0}, sum = 0;
    for (size_t i = 0; i + 16 <= n; i += 16) {
        for (size_t j = 0; j < 16; j++) {
            sums[j] += data[i + j];
        }
    }
    for (size_t j = 0; j < 16; j++) {
        sum += sums[j];
    }
    return sum;
}

static uint64_t sum_plain(const uint64_t *data, size_t n) {
    return sum_words(data, n);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint64_t *data, size_t n) {
    return sum_words(data, n);
}

static uint64_t sum_fast(const uint64_t *data, size_t n) {
    return __builtin_cpu_supports("avx2") ? sum_avx2(data, n) : sum_plain(data, n);
}
#else
static uint64_t sum_fast(const uint64_t *data, size_t n) {
    return sum_plain(data, n);
}
#endif

static void *read_part(void *argument) {
    part *p = argument;
    p->sum = sum_fast(p->data, p->n);
    return NULL;
}

bool bandwidth_open(bandwidth *b, unsigned n_threads) {
    void *memory = mmap(NULL, BANDWIDTH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return false;
    }
    madvise(memory, BANDWIDTH_BYTES, MADV_HUGEPAGE); /* page tables are not what we measure */
    memset(memory, 1, BANDWIDTH_BYTES);
    *b = (bandwidth){.data = memory, .n_threads = n_threads};
    return true;
}

void bandwidth_close(bandwidth *b) {
    if (b->data) {
        munmap(b->data, BANDWIDTH_BYTES);
    }
    *b = (bandwidth){0};
}

/* The sums' sum is stored where the compiler cannot know that nobody looks. */
static volatile uint64_t total;

double bandwidth_measure(bandwidth *b) {
    size_t n_words = BANDWIDTH_BYTES / sizeof *b->data / b->n_threads;
    part *parts = memory_resize(NULL, b->n_threads, sizeof *parts);
    pthread_t *threads = memory_resize(NULL, b->n_threads, sizeof *threads);
    bool *started = memory_resize(NULL, b->n_threads, sizeof *started);
    double start = clock_seconds();
    for (unsigned i = 0; i < b->n_threads; i++) {
        parts[i] = (part){.data = b->data + i * n_words, .n = n_words};
        started[i] = i > 0 && pthread_create(&threads[i], NULL, read_part, &parts[i]) == 0;
    }
    for (unsigned i = 0; i < b->n_threads; i++) {
        if (started[i]) {
            pthread_join(threads[i], NULL);
        } else {
            read_part(&parts[i]);
        }
    }
    double seconds = clock_seconds() - start;
    for (unsigned i = 0; i < b->n_threads; i++) {
        total += parts[i].sum;
    }
    double n_bytes = (double)n_words * b->n_threads * sizeof *b->data;
    free(parts);
    free(threads);
    free(started);
    return n_bytes / seconds;
}

void bandwidth_processor(char *name, size_t capacity) {
    char line[512];
    name[0] = '\0';
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && !name[0] && fgets(line, sizeof line, file)) {
        if (strncmp(line, "model name", 10) == 0 && strstr(line, ": ")) {
            snprintf(name, capacity, "%s", strstr(line, ": ") + 2);
            name[strcspn(name, "\n")] = '\0';
        }
    }
    if (file) {
        fclose(file);
    }
}
