/* How fast the machine reads memory: the measure that generating tokens is held against. */
#ifndef TOOLS_BANDWIDTH_H
#define TOOLS_BANDWIDTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BANDWIDTH_BYTES = 1 << 30 }; /* far more than any cache holds */

typedef struct bandwidth {
    uint64_t *data; /* [BANDWIDTH_BYTES / 8] */
    unsigned n_threads;
} bandwidth;

/* Takes the memory and touches all of it. False where there is too little. */
bool bandwidth_open(bandwidth *b, unsigned n_threads);
void bandwidth_close(bandwidth *b);
/* Reads all of it once, each thread its part; bytes per second. */
double bandwidth_measure(bandwidth *b);

/* What the processor calls itself, "" where the system does not say. */
void bandwidth_processor(char *name, size_t capacity);

#endif
