/* One answer: from the tokens of a prompt to text on standard output, token by token. */
#ifndef RUN_ANSWER_H
#define RUN_ANSWER_H

#include "settings.h"
#include "text.h"

typedef enum answer_end {
    ANSWER_STOP,        /* the model ended it */
    ANSWER_LIMIT,       /* settings.n_max tokens */
    ANSWER_FULL,        /* the context holds no more tokens */
    ANSWER_INTERRUPTED, /* answer_interrupt */
    ANSWER_UNWRITTEN,   /* standard output failed, reason in errno */
    ANSWER_FAILED       /* the error says why; of status SQ_ERROR_CONTEXT: the prompt does not fit */
} answer_end;

/* `{0}` before the first use; answer_generate may use it again. */
typedef struct answer {
    sq_token *tokens; /* as generated, without the token that ended it */
    size_t n_tokens, capacity;
    text content;            /* what was shown */
    text pending;            /* bytes of a character that is not whole yet */
    size_t n_prompt, n_kept; /* tokens of the prompt, and those that were computed before */
    double prompt_seconds, seconds;
} answer;

typedef struct generator {
    const sq_model *model;
    sq_session *session;
    const settings *settings;
    bool trim;          /* leave out white space at the start of an answer */
    uint64_t n_answers; /* so far; each has random numbers of its own */
} generator;

/* Brings the session to `prompt`, then draws tokens and shows them until the answer ends. */
answer_end answer_generate(generator *g, const sq_token *prompt, size_t n_prompt, answer *a, sq_error *error);
void answer_free(answer *a);

/* The text of tokens, as the original tokenizer's decode() has it; replaces what is in `out`. */
bool answer_decode(const sq_model *model, const sq_token *tokens, size_t n_tokens, text *out);

/* What to do about a full context: "--ctx TOKENS makes room, up to 2048", or that the model takes no more. */
void answer_append_advice(text *out, const sq_model *model, const sq_session *session);

/* Ends the running answer soon, or does nothing. For signal handlers. */
void answer_interrupt(void);

#endif
