#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "chat_table.h"
#include "status.h"
#include "tokenizer/utf8.h"

enum { THINKING, NOT_THINKING, N_TABLES };

struct sq_chat {
    const sq_tokenizer *tokenizer;
    const char *reason; /* why there is no table; NULL where there is one */
    sq_chat_table tables[N_TABLES];
    bool can_stop_thinking; /* there is a second table */
};

sq_status sq_chat_load(const sq_gguf *file, const sq_tokenizer *tokenizer, sq_chat **out, sq_error *error) {
    *out = NULL;
    sq_chat *chat = calloc(1, sizeof *chat);
    if (!chat)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a chat table");
    chat->tokenizer = tokenizer;
    chat->reason = sq_gguf_get_string(file, "squeezellm.chat.unsupported");
    if (!chat->reason && !tokenizer)
        chat->reason = "the file holds no tokenizer";
    if (!chat->reason && !sq_gguf_has(file, "squeezellm.chat.begin"))
        chat->reason = "the file holds no chat template";
    chat->can_stop_thinking = sq_gguf_has(file, "squeezellm.chat.no_think.user_generate");
    sq_chat_table *tables = chat->tables;
    sq_status status = SQ_OK;
    if (!chat->reason)
        status = sq_chat_table_load(file, "squeezellm.chat.", NULL, &tables[THINKING], error);
    if (!status && !chat->reason && chat->can_stop_thinking)
        status = sq_chat_table_load(file, "squeezellm.chat.no_think.", &tables[THINKING],
                                    &tables[NOT_THINKING], error);
    if (status) {
        sq_chat_free(chat);
        return status;
    }
    *out = chat;
    return SQ_OK;
}

void sq_chat_free(sq_chat *chat) {
    free(chat);
}

sq_status sq_chat_available(const sq_chat *chat, sq_error *error) {
    if (!chat->reason)
        return SQ_OK;
    return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                   "this model cannot chat: %s; use raw completion, or render the template in Python",
                   chat->reason);
}

/* ---- contents -------------------------------------------------------------------------------- */

typedef struct span {
    const char *text;
    size_t n_bytes;
} span;

/* The white space that Python's str.strip() takes off. */
static bool is_space(uint32_t c) {
    return sq_is_white_space(c) || (c >= 0x1C && c <= 0x1F);
}

static bool is_trimmed(uint32_t point, sq_trim how) {
    return how.newlines_only ? point == '\n' : is_space(point);
}

static span trim_span(span content, sq_trim how) {
    size_t length;
    uint32_t point;
    while ((how.side & SQ_TRIM_LEFT) && (length = sq_utf8_read(content.text, content.n_bytes, &point)) &&
           is_trimmed(point, how)) {
        content.text += length;
        content.n_bytes -= length;
    }
    while ((how.side & SQ_TRIM_RIGHT) &&
           (length = sq_utf8_read_last(content.text, content.n_bytes, &point)) && is_trimmed(point, how))
        content.n_bytes -= length;
    return content;
}

static span span_of(const char *text) {
    return (span){text, strlen(text)};
}

/* What stands behind the last `mark` in the content; all of it where there is none. */
static span behind_last(span content, const char *mark, bool *found) {
    const char *end = content.text + content.n_bytes;
    size_t n_mark = strlen(mark);
    span rest = content;
    *found = false;
    for (const char *at = content.text; (at = memmem(at, (size_t)(end - at), mark, n_mark));) {
        at += n_mark;
        rest = (span){at, (size_t)(end - at)};
        *found = true;
    }
    return rest;
}

static span answer_of(const sq_chat_table *table, span content) {
    bool found = false;
    if (table->answer_after)
        content = behind_last(content, table->answer_after, &found);
    return found ? trim_span(content, table->answer_trim) : content;
}

/* The thinking that an answer begins with; empty where it has none. */
static span thought_of(const sq_chat_table *table, span content) {
    const char *end = strstr(content.text, table->answer_after);
    if (!end)
        return (span){content.text, 0};
    bool found;
    span before = {content.text, (size_t)(end - content.text)};
    return trim_span(behind_last(before, table->thought_after, &found), table->thought_trim);
}

/* ---- dialogues ------------------------------------------------------------------------------- */

/* A dialogue on its way to parts of text. */
typedef struct dialogue {
    const sq_chat_table *table;
    bool generate;
    bool has_system;
    span system;
    const sq_message *turns;  /* [n_turns]: user, assistant, user, … */
    size_t n_turns, n_before; /* the messages before them */
    sq_text_part *parts, *end;
} dialogue;

static bool is_role(const sq_message *message, sq_role role) {
    return message->role && strcmp(message->role, sq_role_names[role]) == 0;
}

static sq_role turn_role(size_t index) {
    return index % 2 ? SQ_ROLE_ASSISTANT : SQ_ROLE_USER;
}

static bool is_known_role(const sq_message *message) {
    for (int role = 0; role < SQ_N_ROLES; role++)
        if (is_role(message, (sq_role)role))
            return true;
    return false;
}

/* System first or not at all, then user and assistant in turns. */
static sq_status check_messages(const sq_message *messages, size_t n_messages, bool has_system,
                                sq_error *error) {
    for (size_t i = 0; i < n_messages; i++) {
        const sq_message *message = &messages[i];
        if (!message->role || !message->content)
            return sq_fail(error, SQ_ERROR_ARGUMENT, "message %zu: role or content is NULL", i + 1);
        if (!is_known_role(message))
            return sq_fail(error, SQ_ERROR_ARGUMENT,
                           "message %zu: role \"%.40s\", expected system, user or assistant", i + 1,
                           message->role);
        if (i == 0 && has_system)
            continue;
        if (is_role(message, SQ_ROLE_SYSTEM))
            return sq_fail(error, SQ_ERROR_ARGUMENT,
                           "message %zu: a system message can only be the first one", i + 1);
        sq_role expected = turn_role(i - has_system);
        if (!is_role(message, expected))
            return sq_fail(error, SQ_ERROR_ARGUMENT,
                           "message %zu: role %s, expected %s; user and assistant take turns, the user first",
                           i + 1, message->role, sq_role_names[expected]);
    }
    return SQ_OK;
}

static sq_status check_empty(const dialogue *d, span content, sq_role role, size_t number, sq_error *error) {
    if (content.n_bytes > 0 || !d->table->no_empty[role])
        return SQ_OK;
    return sq_fail(error, SQ_ERROR_ARGUMENT,
                   "message %zu is empty, which this model's template does not allow for the %s", number,
                   sq_role_names[role]);
}

/* Takes every `word` out of the text; true where there was one. */
static bool remove_word(char *text, const char *word) {
    size_t n_word = strlen(word);
    char *out = text;
    const char *from = text, *at;
    while ((at = strstr(from, word))) {
        memmove(out, from, (size_t)(at - from));
        out += at - from;
        from = at + n_word;
    }
    memmove(out, from, strlen(from) + 1);
    return from != text;
}

/* The system message, and the table that it chooses by a word in it. `copy` receives memory to free. */
static sq_status read_system(const sq_chat *chat, const sq_message *message, dialogue *d, char **copy,
                             sq_error *error) {
    const char *content = message->content;
    if (d->table->think_word && d->table->no_think_word) {
        content = *copy = strdup(content);
        if (!content)
            return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a system message");
        bool stop = remove_word(*copy, d->table->no_think_word);
        bool think = remove_word(*copy, d->table->think_word);
        if (chat->can_stop_thinking && (stop || think))
            d->table = &chat->tables[stop ? NOT_THINKING : THINKING];
    }
    d->system = trim_span(span_of(content), d->table->trims[SQ_ROLE_SYSTEM]);
    d->has_system = d->system.n_bytes > 0 || !d->table->empty_system_is_none;
    if (d->has_system && !d->table->system_user)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "this model takes no system message (%s); put its text into the first user message",
                       d->table->no_system ? d->table->no_system : "its template has no place for one");
    return d->has_system ? check_empty(d, d->system, SQ_ROLE_SYSTEM, 1, error) : SQ_OK;
}

static void push(dialogue *d, span text, bool special) {
    *d->end++ = (sq_text_part){text.text, text.n_bytes, special};
}

static void push_text(dialogue *d, const char *text) {
    push(d, span_of(text), true);
}

/* An answer that ends the dialogue, with its thinking. */
static sq_status push_final(dialogue *d, size_t index, sq_error *error) {
    span content = span_of(d->turns[index].content);
    span answer = trim_span(answer_of(d->table, content), d->table->final_trim);
    push_text(d, d->table->final_begin);
    push(d, thought_of(d->table, content), false);
    push_text(d, d->table->final_middle);
    push(d, answer, false);
    return check_empty(d, answer, SQ_ROLE_ASSISTANT, d->n_before + index + 1, error);
}

static sq_status push_turn(dialogue *d, size_t index, sq_error *error) {
    const sq_chat_table *table = d->table;
    sq_role role = turn_role(index);
    bool is_last = index + 1 == d->n_turns;
    bool behind_system = d->has_system && role == SQ_ROLE_USER && (table->system_last ? is_last : index == 0);
    if (index > 0)
        push_text(d, role == SQ_ROLE_ASSISTANT ? table->user_assistant : table->assistant_user);
    else
        push_text(d, behind_system && !table->system_last ? table->begin_system : table->begin);
    if (role == SQ_ROLE_ASSISTANT && is_last && table->final_begin)
        return push_final(d, index, error);
    span content = span_of(d->turns[index].content);
    if (role == SQ_ROLE_ASSISTANT)
        content = answer_of(table, content);
    content = trim_span(content, behind_system ? table->first_user_trim : table->trims[role]);
    if (behind_system) {
        bool bare = content.n_bytes == 0 && table->system_user_empty;
        push(d, d->system, false);
        push_text(d, bare ? table->system_user_empty : table->system_user);
    }
    push(d, content, false);
    return check_empty(d, content, role, d->n_before + index + 1, error);
}

static sq_status push_end(dialogue *d, sq_error *error) {
    const sq_chat_table *table = d->table;
    sq_role last = d->n_turns > 0 ? turn_role(d->n_turns - 1) : SQ_ROLE_SYSTEM;
    if (last == SQ_ROLE_USER) {
        push_text(d, d->generate ? table->user_generate : table->user_end);
        return SQ_OK;
    }
    if (d->generate || last == SQ_ROLE_SYSTEM)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "the last message is the %s's, expected one by the user",
                       sq_role_names[last]);
    if (!table->assistant_end)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "this model's template writes an answer at the end of a dialogue in another way than "
                       "the table of its file can; end with a message by the user");
    push_text(d, table->assistant_end);
    return SQ_OK;
}

/* Writes 2 n_messages + 5 parts at most. */
static sq_status place(dialogue *d, sq_error *error) {
    sq_status status = SQ_OK;
    for (size_t i = 0; i < d->n_turns && !status; i++)
        status = push_turn(d, i, error);
    return status ? status : push_end(d, error);
}

static sq_status encode(const sq_chat *chat, dialogue *d, const sq_message *messages, size_t n_messages,
                        char **copy, sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error) {
    bool system = n_messages > 0 && is_role(&messages[0], SQ_ROLE_SYSTEM);
    sq_status status = check_messages(messages, n_messages, system, error);
    if (!status && system)
        status = read_system(chat, &messages[0], d, copy, error);
    if (status)
        return status;
    d->turns = messages + system;
    d->n_turns = n_messages - system;
    d->n_before = system;
    if (d->n_turns == 0 && !d->has_system)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "the dialogue has no message");
    status = place(d, error);
    if (status)
        return status;
    return sq_tokenizer_encode(chat->tokenizer, d->parts, (size_t)(d->end - d->parts), 0, tokens, capacity,
                               n_tokens, error);
}

sq_status sq_chat_encode(const sq_chat *chat, const sq_message *messages, size_t n_messages, int flags,
                         sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error) {
    sq_status status = sq_chat_available(chat, error);
    if (status)
        return status;
    bool thinks = !(flags & SQ_CHAT_NO_THINKING);
    if (!thinks && !chat->can_stop_thinking)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                       "this model's chat template has no switch for thinking before an answer");
    if (n_messages > SIZE_MAX / sizeof(sq_text_part) / 4)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "the dialogue has too many messages");
    dialogue d = {.table = &chat->tables[thinks ? THINKING : NOT_THINKING],
                  .generate = flags & SQ_CHAT_GENERATE};
    d.parts = d.end = malloc((2 * n_messages + 5) * sizeof *d.parts);
    if (!d.parts)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a dialogue of %zu messages", n_messages);
    char *copy = NULL;
    status = encode(chat, &d, messages, n_messages, &copy, tokens, capacity, n_tokens, error);
    free(copy);
    free(d.parts);
    return status;
}
