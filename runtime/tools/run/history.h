/* What was typed, across runs: a file of one JSON string a line, readable for its owner alone. Each
 * entry is appended at once, so that neither a crash nor a second terminal loses any. */
#ifndef RUN_HISTORY_H
#define RUN_HISTORY_H

#include "text.h"

/* Creates $XDG_STATE_HOME/squeezellm (by default ~/.local/state/squeezellm) where it is missing. The
 * path of the history in it is the caller's to free; NULL where there is no home to write to. */
char *history_path(void);
/* Calls `add` for each entry, oldest first, at most the last 1000. Lines that are damaged are left out. A
 * file grown past twice that is cut. */
void history_load(const char *path, void (*add)(void *context, const char *entry), void *context);
void history_append(const char *path, const char *entry);

#endif
