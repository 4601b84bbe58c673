/* What a tool writes, and what a terminal may be shown. Answers and results go to standard output,
 * everything else to standard error. */
#ifndef TOOLS_TERMINAL_H
#define TOOLS_TERMINAL_H

#include "sq.h"
#include "text.h"

/* Whether `file` is a terminal that wants colours: NO_COLOR is unset or empty (https://no-color.org),
 * TERM is not "dumb". */
bool terminal_has_colour(FILE *file);

/* Writes text that is not ours (a model's, a file's): a terminal gets it without control characters
 * other than newline and tab, so that it cannot move the cursor, set the title or answer for the user;
 * anything else gets it as it is. False on a write error, reason in errno. */
bool terminal_write(FILE *file, const char *bytes, size_t n);

/* A remark in dim type where there are colours, with a newline. */
void terminal_note(FILE *file, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "sq-run: sentence" on standard error. */
void tool_complain(const char *tool, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* True where `status` is SQ_OK; else complains with the error's message. */
bool tool_check(const char *tool, sq_status status, const sq_error *error);

/* Makes a write to a closed pipe fail with EPIPE, which has a sentence, where a signal would kill. */
void tool_ignore_closed_pipes(void);
/* Writes `t` to standard output, frees it, and makes sure that it arrived (a full disk, a closed pipe).
 * Returns the tool's exit code: 0, or 1 after a complaint. */
int tool_print(const char *tool, text *t);
/* The sentence for a failed write to standard output. */
void tool_complain_write(const char *tool, int error_number);

#endif
