/* The chat in a terminal: reads messages and commands, shows answers, keeps the dialogue. */
#ifndef RUN_CHAT_H
#define RUN_CHAT_H

#include "answer.h"
#include "dialogue.h"

typedef struct chat {
    const char *tool; /* "sq-run" */
    const sq_model *model;
    sq_session *session;
    settings *settings;
    const option *settings_rows; /* [N_SETTINGS], of `settings` */
    generator generator;
    dialogue dialogue;
    answer answer;
} chat;

/* Chats until the user leaves. `system` may be NULL. Returns the exit code. */
int chat_run(const char *tool, const sq_model *model, sq_session *session, settings *s,
             const option *settings_rows, const char *system);

/* Answers the last question of the dialogue, anew where it has an answer. False where standard output
 * failed and the chat must end. */
bool chat_answer(chat *c);

/* ---- commands.c ------------------------------------------------------------------------------ */

typedef enum command_result {
    COMMAND_DONE,
    COMMAND_LEAVE,
    COMMAND_FAILED /* standard output failed */
} command_result;

/* Runs "/name argument". */
command_result command_run(chat *c, const char *line);
/* What may stand at the start of a line; ends with NULL, lives for ever. */
const char *const *command_words(void);

#endif
