/* A dialogue: a system prompt, and turns of a question and its answer. */
#ifndef RUN_DIALOGUE_H
#define RUN_DIALOGUE_H

#include "settings.h"
#include "text.h"

typedef struct turn {
    char *user;
    char *assistant;  /* NULL while there is no answer */
    sq_token *tokens; /* the answer as it was generated, [n_tokens]; NULL where it was loaded */
    size_t n_tokens;
} turn;

/* `{0}` is an empty dialogue. Only the last turn may be without an answer. */
typedef struct dialogue {
    char *system; /* or NULL */
    turn *turns;
    size_t n_turns;
} dialogue;

/* `system` NULL or "": none. */
void dialogue_set_system(dialogue *d, const char *system);
/* Adds a turn without an answer. */
void dialogue_ask(dialogue *d, const char *user);
/* Sets the last turn's answer. */
void dialogue_answer(dialogue *d, const char *assistant, const sq_token *tokens, size_t n_tokens);
/* Removes the last turn. */
void dialogue_undo(dialogue *d);
/* Removes all turns; the system prompt stays. */
void dialogue_clear(dialogue *d);
void dialogue_free(dialogue *d);

/* The prompt for the last turn's answer, whether it has one or not. Earlier answers keep the tokens they
 * were generated with, so that a session need not compute them again. `*tokens` is the caller's to
 * free. Of the settings, `think` counts. */
sq_status dialogue_tokenize(const dialogue *d, const sq_model *model, const settings *s, sq_token **tokens,
                            size_t *n_tokens, sq_error *error);
/* Whether the model's chat table takes the dialogue, whose turns are all answered, and another question. */
sq_status dialogue_check(const dialogue *d, const sq_model *model, const settings *s, sq_error *error);

/* Writes the dialogue and the settings as JSON: the file appears whole or not at all, readable for its
 * owner alone. An existing file is replaced only where it is a dialogue, too. On failure `problem`
 * receives a sentence.
 *
 *     {"model": "…", "settings": {"n": 0, "temp": 0.7, …},
 *      "messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "…"}, …]} */
bool dialogue_save(const dialogue *d, const char *path, const char *model, const option *settings_rows,
                   text *problem);
/* Replaces the dialogue and the settings; on failure neither changes. */
bool dialogue_load(dialogue *d, const char *path, settings *s, const option *settings_rows, text *problem);

#endif
