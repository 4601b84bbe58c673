/* What the user types: messages of one or more lines, edited with libedit, with history, completion and
 * paste. The keyboard is standard input, which is a terminal. */
#ifndef RUN_INPUT_H
#define RUN_INPUT_H

#include "text.h"

typedef struct input input;

typedef enum input_result {
    INPUT_MESSAGE,
    INPUT_NOTHING, /* Ctrl-C: the line is gone */
    INPUT_LEAVE    /* Ctrl-D, Ctrl-C on an empty line twice, or the terminal went away */
} input_result;

/* `words` end with NULL and outlive the input: what Tab completes at the start of a line; after "/save "
 * and "/load " it completes file names. Until input_close the terminal reports pastes, and deadly
 * signals set it right before they kill. `name` is the program's. NULL where the line editor cannot be
 * started. */
input *input_open(const char *name, const char *const *words);
void input_close(input *in);

/* Reads a message without its last newline; one in """ loses these. It is never blank. */
input_result input_read(input *in, text *message);

/* While an answer is written: keys are kept for later, and not shown. */
void input_mute(input *in, bool mute);

#endif
