/* What the command line, /set and a saved dialogue may change about answers. */
#ifndef RUN_SETTINGS_H
#define RUN_SETTINGS_H

#include "options.h"
#include "sq.h"

typedef struct settings {
    sq_sampler_options sampler;
    uint32_t n_max; /* tokens of an answer; 0: as many as fit */
    uint32_t think; /* before answering, where the model has a switch for it: 1, or 0 */
} settings;

enum { N_SETTINGS = 8 };

/* Fills in the defaults, a random seed among them, and the options that change them. `rows`
 * [N_SETTINGS] point into `s`. */
void settings_init(settings *s, option *rows);
/* The row called `name`, which has no dashes ("top-k", "n"); NULL where there is none. */
const option *settings_find(const option *rows, const char *name);
/* "top-k" of "--top-k". */
const char *settings_name(const option *row);

#endif
