/* What a test tells the plugin of fake_device.c, and learns from it. The plugin is a shared library with a
 * copy of libsq in it; the test finds this struct by its name, fake_device_state. */
#ifndef FAKE_DEVICE_H
#define FAKE_DEVICE_H

#include "device.h"

enum {
    FAKE_LAYER_BYTES = 1000,
    FAKE_TOKEN_BYTES = 10
}; /* of a layer; of a session's token, twice that in f32 */

typedef struct fake_device {
    uint32_t version, run_tokens;
    uint64_t n_bytes_free;
    const char *no_device, *cannot_run, *cannot_open, *cannot_create; /* sentences; NULL: it can */
    uint32_t first_able;                                              /* layers before it are refused */
    uint32_t failing_run;                                             /* 1: the next; 0: none */
    void (*on_run)(void *context);                                    /* before each run, or NULL */
    void *context;

    uint32_t n_devices, n_sessions; /* that are open */
    uint32_t n_runs, n_reads, n_tokens_most;
    bool got_x; /* by the last run */
} fake_device;

#endif
