/* Memory that ends where an unreadable page begins: an access past the end, be it by a vector load that
 * sanitizers do not see, is a crash. */
#ifndef GUARD_H
#define GUARD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

typedef struct guarded {
    void *pages, *data; /* data + n_bytes is the unreadable page */
    size_t n_pages_bytes;
} guarded;

static guarded guard_alloc(size_t n_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n_bytes + page - 1) / page * page;
    guarded g = {.n_pages_bytes = body + page};
    g.pages = mmap(NULL, g.n_pages_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.pages == MAP_FAILED || mprotect((char *)g.pages + body, page, PROT_NONE)) {
        perror("guard_alloc");
        exit(2);
    }
    g.data = (char *)g.pages + body - n_bytes;
    return g;
}

/* n floats from -size to size; `state` as for check_random. */
__attribute__((unused)) static guarded guard_random(uint64_t *state, size_t n, float size) {
    guarded g = guard_alloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        ((float *)g.data)[i] = check_random_float(state, size);
    }
    return g;
}

static void guard_free(guarded g) {
    munmap(g.pages, g.n_pages_bytes);
}

#endif
