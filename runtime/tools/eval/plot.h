/* A picture of an evaluation, which the Python package draws (python/sqllm/plot.py, with matplotlib). */
#ifndef TOOLS_EVAL_PLOT_H
#define TOOLS_EVAL_PLOT_H

#include "text.h"

/* Whether `out` can be drawn, with the points of the file `peers` or NULL. False after a sentence. */
bool plot_check(const char *tool, const char *out, const char *peers);

/* Draws what sq-eval --json prints. False after a sentence. */
bool plot_draw(const char *tool, const char *out, const char *peers, const text *json);

#endif
