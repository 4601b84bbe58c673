/* A backend that runs another one's operations (the CPU's) and measures them. */
#ifndef SQ_PROFILE_H
#define SQ_PROFILE_H

#include "backend.h"

typedef enum sq_operation {
    SQ_TIME_EMBED,
    SQ_TIME_QKV,
    SQ_TIME_CACHE,
    SQ_TIME_ATTENTION,
    SQ_TIME_ATTN_OUTPUT,
    SQ_TIME_FFN_UP,
    SQ_TIME_FFN_DOWN,
    SQ_TIME_EXPERTS,
    SQ_TIME_HEAD,
    SQ_TIME_DEVICE,  /* all that an accelerator does */
    SQ_TIME_WAITING, /* for other threads; not part of the others */
    SQ_N_TIMES
} sq_operation;

struct sq_profile {
    sq_time times[SQ_N_TIMES];
    double last, last_waited; /* clocks where the operation that runs began */
};

/* Adds what has passed since `start` (sq_clock_seconds) to the time of the accelerator. */
void sq_profile_device(sq_profile *profile, double start);

/* Makes `run` fill `profile`, which outlives it. */
void sq_profile_init(sq_profile *profile, sq_run *run);

#endif
