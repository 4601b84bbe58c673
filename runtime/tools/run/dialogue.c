#include "dialogue.h"

#include "answer.h"

#include <stdlib.h>
#include <string.h>

void dialogue_set_system(dialogue *d, const char *system) {
    free(d->system);
    d->system = system && system[0] ? memory_copy_string(system) : NULL;
}

void dialogue_ask(dialogue *d, const char *user) {
    d->turns = memory_resize(d->turns, d->n_turns + 1, sizeof *d->turns);
    d->turns[d->n_turns++] = (turn){.user = memory_copy_string(user)};
}

void dialogue_answer(dialogue *d, const char *assistant, const sq_token *tokens, size_t n_tokens) {
    turn *last = &d->turns[d->n_turns - 1];
    free(last->assistant);
    free(last->tokens);
    last->assistant = memory_copy_string(assistant);
    last->n_tokens = n_tokens;
    last->tokens = NULL;
    if (n_tokens > 0) {
        last->tokens = memory_resize(NULL, n_tokens, sizeof *tokens);
        memcpy(last->tokens, tokens, n_tokens * sizeof *tokens);
    }
}

void dialogue_undo(dialogue *d) {
    turn *last = &d->turns[--d->n_turns];
    free(last->user);
    free(last->assistant);
    free(last->tokens);
}

void dialogue_clear(dialogue *d) {
    while (d->n_turns > 0) {
        dialogue_undo(d);
    }
}

void dialogue_free(dialogue *d) {
    dialogue_clear(d);
    free(d->turns);
    free(d->system);
    *d = (dialogue){0};
}

/* ---- tokens ---------------------------------------------------------------------------------- */

typedef struct token_list {
    sq_token *tokens;
    size_t n;
} token_list;

/* All messages as sq_chat_tokenize wants them, with room for one more. The caller frees the array; the
 * strings stay ours. */
static sq_message *list_messages(const dialogue *d, size_t *n_messages) {
    sq_message *messages = memory_resize(NULL, 2 * d->n_turns + 2, sizeof *messages);
    size_t n = 0;
    if (d->system) {
        messages[n++] = (sq_message){"system", d->system};
    }
    for (size_t i = 0; i < d->n_turns; i++) {
        messages[n++] = (sq_message){"user", d->turns[i].user};
        if (d->turns[i].assistant) {
            messages[n++] = (sq_message){"assistant", d->turns[i].assistant};
        }
    }
    *n_messages = n;
    return messages;
}

static int chat_flags(const settings *s) {
    return SQ_CHAT_GENERATE | (s->think ? 0 : SQ_CHAT_NO_THINKING);
}

static sq_status tokenize_messages(const sq_model *model, const sq_message *messages, size_t n_messages,
                                   int flags, token_list *list, sq_error *error) {
    size_t n;
    sq_status status = sq_chat_tokenize(model, messages, n_messages, flags, NULL, 0, &n, error);
    if (status == SQ_OK) {
        list->tokens = memory_resize(NULL, n, sizeof *list->tokens);
        status = sq_chat_tokenize(model, messages, n_messages, flags, list->tokens, n, &list->n, error);
    }
    return status;
}

static bool is_same_text(const sq_model *model, const sq_token *a, size_t n_a, const sq_token *b,
                         size_t n_b) {
    text text_a = {0}, text_b = {0};
    bool same = answer_decode(model, a, n_a, &text_a) && answer_decode(model, b, n_b, &text_b) &&
                text_a.n == text_b.n && memcmp(text_a.bytes, text_b.bytes, text_a.n) == 0;
    text_free(&text_a);
    text_free(&text_b);
    return same;
}

/* Where the answer that begins at `begin` of `all` ends: at the first control token, for contents have
 * none. SIZE_MAX where nothing marks the end. */
static size_t find_answer_end(const sq_model *model, const token_list *all, size_t begin) {
    for (size_t i = begin; i < all->n; i++) {
        if (sq_token_is_control(model, all->tokens[i])) {
            return i;
        }
    }
    return SIZE_MAX;
}

/* Puts the tokens of turn t's answer as generated in the place of those its text was split into: `all`
 * is the dialogue's, `before` the prompt of that answer, both split from text. Appends to `out` what
 * stands in `all` from *done up to the answer's end, and moves *done there. Where the answer cannot be
 * found for sure, nothing happens. */
static void splice_answer(const sq_model *model, const turn *t, const token_list *all,
                          const token_list *before, token_list *out, size_t *done) {
    if (before->n < *done || before->n > all->n ||
        memcmp(before->tokens, all->tokens, before->n * sizeof *all->tokens) != 0) {
        return;
    }
    size_t begin = before->n, end = find_answer_end(model, all, begin);
    if (end == SIZE_MAX || !is_same_text(model, all->tokens + begin, end - begin, t->tokens, t->n_tokens)) {
        return;
    }
    size_t n_before = begin - *done;
    out->tokens = memory_resize(out->tokens, out->n + n_before + t->n_tokens, sizeof *out->tokens);
    memcpy(out->tokens + out->n, all->tokens + *done, n_before * sizeof *out->tokens);
    memcpy(out->tokens + out->n + n_before, t->tokens, t->n_tokens * sizeof *out->tokens);
    out->n += n_before + t->n_tokens;
    *done = end;
}

/* Two places at least know how a text splits into tokens: the model while it wrote, the tokenizer now.
 * Where they differ, the session would have to compute all from there on again. */
sq_status dialogue_tokenize(const dialogue *d, const sq_model *model, const settings *s, sq_token **tokens,
                            size_t *n_tokens, sq_error *error) {
    int flags = chat_flags(s);
    size_t n_messages, done = 0, at = d->system ? 1 : 0;
    sq_message *messages = list_messages(d, &n_messages);
    n_messages = at + 2 * d->n_turns - 1; /* up to the last question */
    token_list all = {0}, out = {0};
    sq_status status = tokenize_messages(model, messages, n_messages, flags, &all, error);
    for (size_t i = 0; status == SQ_OK && i + 1 < d->n_turns; i++) {
        token_list before = {0};
        if (d->turns[i].tokens) {
            status = tokenize_messages(model, messages, at + 2 * i + 1, flags, &before, error);
        }
        if (status == SQ_OK && before.tokens) {
            splice_answer(model, &d->turns[i], &all, &before, &out, &done);
        }
        free(before.tokens);
    }
    if (status == SQ_OK) {
        out.tokens = memory_resize(out.tokens, out.n + all.n - done, sizeof *out.tokens);
        memcpy(out.tokens + out.n, all.tokens + done, (all.n - done) * sizeof *out.tokens);
        *tokens = out.tokens;
        *n_tokens = out.n + all.n - done;
    } else {
        free(out.tokens);
    }
    free(all.tokens);
    free(messages);
    return status;
}

sq_status dialogue_check(const dialogue *d, const sq_model *model, const settings *s, sq_error *error) {
    size_t n_messages, n_tokens;
    sq_message *messages = list_messages(d, &n_messages);
    messages[n_messages++] = (sq_message){"user", "?"};
    sq_status status =
        sq_chat_tokenize(model, messages, n_messages, chat_flags(s), NULL, 0, &n_tokens, error);
    free(messages);
    return status;
}
