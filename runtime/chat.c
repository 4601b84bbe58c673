#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "status.h"
#include "tokenizer/utf8.h"

/* ---- the table ------------------------------------------------------------------------------- */

/* What is taken off the ends of a content before it is placed. */
typedef enum trim_side { TRIM_NONE = 0, TRIM_LEFT = 1, TRIM_RIGHT = 2, TRIM_BOTH = 3 } trim_side;

typedef struct trim {
    trim_side side;
    bool newlines_only; /* else all white space */
} trim;

typedef enum role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, N_ROLES } role;

static const char *const role_names[N_ROLES] = {"system", "user", "assistant"};

/* Texts are NULL where the template has no such place. */
struct sq_chat {
    const sq_tokenizer *tokenizer;
    const char *reason; /* why there is no table; NULL where there is one */
    const char *begin, *begin_system, *system_user, *user_assistant, *assistant_user;
    const char *user_end, *user_generate, *assistant_end;
    const char *no_system;    /* why begin_system is NULL; may be NULL itself */
    const char *answer_after; /* an assistant's content begins behind the last of these, or NULL */
    trim answer_trim;         /* where it did */
    trim trims[N_ROLES];
    trim first_user_trim; /* of a user's content that follows a system message */
    bool no_empty[N_ROLES];
    bool empty_system_is_none;
};

static sq_status load_trim(const sq_gguf *file, const char *key, trim *value, sq_error *error) {
    static const struct {
        const char *name;
        trim value;
    } trims[] = {{"none", {TRIM_NONE, false}},         {"left", {TRIM_LEFT, false}},
                 {"right", {TRIM_RIGHT, false}},       {"both", {TRIM_BOTH, false}},
                 {"left newlines", {TRIM_LEFT, true}}, {"right newlines", {TRIM_RIGHT, true}},
                 {"both newlines", {TRIM_BOTH, true}}};
    if (!sq_gguf_has(file, key))
        return SQ_OK;
    const char *name = sq_gguf_get_string(file, key);
    for (size_t i = 0; name && i < sizeof trims / sizeof *trims; i++) {
        if (strcmp(name, trims[i].name) == 0) {
            *value = trims[i].value;
            return SQ_OK;
        }
    }
    return sq_fail(error, SQ_ERROR_FORMAT,
                   "%s: \"%.40s\", expected none, left, right or both, with or without \" newlines\"; the "
                   "file is damaged or from a newer version",
                   key, name ? name : "");
}

static sq_status load_trims(const sq_gguf *file, sq_chat *chat, sq_error *error) {
    sq_status status = load_trim(file, "squeezellm.chat.system_trim", &chat->trims[ROLE_SYSTEM], error);
    if (!status)
        status = load_trim(file, "squeezellm.chat.user_trim", &chat->trims[ROLE_USER], error);
    chat->first_user_trim = chat->trims[ROLE_USER];
    if (!status)
        status = load_trim(file, "squeezellm.chat.first_user_trim", &chat->first_user_trim, error);
    if (!status)
        status = load_trim(file, "squeezellm.chat.assistant_trim", &chat->trims[ROLE_ASSISTANT], error);
    if (!status)
        status = load_trim(file, "squeezellm.chat.answer_trim", &chat->answer_trim, error);
    return status;
}

static sq_status load_no_empty(const sq_gguf *file, sq_chat *chat, sq_error *error) {
    static const char key[] = "squeezellm.chat.no_empty";
    uint64_t n;
    if (!sq_gguf_has(file, key))
        return SQ_OK;
    if (!sq_gguf_get_strings(file, key, &n))
        return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected a list of roles; the file is damaged", key);
    for (uint64_t i = 0; i < n; i++) {
        sq_gguf_string name = sq_gguf_string_at(file, key, i);
        for (int role = 0; role < N_ROLES; role++)
            if (strlen(role_names[role]) == name.n_bytes &&
                memcmp(role_names[role], name.text, name.n_bytes) == 0)
                chat->no_empty[role] = true;
    }
    return SQ_OK;
}

static sq_status load_table(const sq_gguf *file, sq_chat *chat, sq_error *error) {
    const struct {
        const char *key;
        const char **text;
        bool optional;
    } texts[] = {{"squeezellm.chat.begin", &chat->begin, false},
                 {"squeezellm.chat.begin_system", &chat->begin_system, true},
                 {"squeezellm.chat.system_user", &chat->system_user, true},
                 {"squeezellm.chat.user_assistant", &chat->user_assistant, false},
                 {"squeezellm.chat.assistant_user", &chat->assistant_user, false},
                 {"squeezellm.chat.user_end", &chat->user_end, false},
                 {"squeezellm.chat.user_generate", &chat->user_generate, false},
                 {"squeezellm.chat.assistant_end", &chat->assistant_end, true},
                 {"squeezellm.chat.no_system", &chat->no_system, true},
                 {"squeezellm.chat.answer_after", &chat->answer_after, true}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        *texts[i].text = sq_gguf_get_string(file, texts[i].key);
        if (!*texts[i].text && (!texts[i].optional || sq_gguf_has(file, texts[i].key)))
            return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected a string; the file is damaged",
                           texts[i].key);
    }
    if (!chat->begin_system != !chat->system_user)
        return sq_fail(error, SQ_ERROR_FORMAT,
                       "squeezellm.chat.begin_system and .system_user: one is missing; the file is damaged");
    if (chat->answer_after && !*chat->answer_after)
        return sq_fail(error, SQ_ERROR_FORMAT, "squeezellm.chat.answer_after: empty; the file is damaged");
    sq_gguf_get_bool(file, "squeezellm.chat.empty_system_is_none", &chat->empty_system_is_none);
    sq_status status = load_trims(file, chat, error);
    return status ? status : load_no_empty(file, chat, error);
}

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
    sq_status status = chat->reason ? SQ_OK : load_table(file, chat, error);
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

static bool is_trimmed(uint32_t point, trim how) {
    return how.newlines_only ? point == '\n' : is_space(point);
}

static span trim_span(span content, trim how) {
    size_t length;
    uint32_t point;
    while ((how.side & TRIM_LEFT) && (length = sq_utf8_read(content.text, content.n_bytes, &point)) &&
           is_trimmed(point, how)) {
        content.text += length;
        content.n_bytes -= length;
    }
    while ((how.side & TRIM_RIGHT) && (length = sq_utf8_read_last(content.text, content.n_bytes, &point)) &&
           is_trimmed(point, how))
        content.n_bytes -= length;
    return content;
}

/* An answer without the thinking before it. */
static span skip_thinking(const sq_chat *chat, span content) {
    if (!chat->answer_after)
        return content;
    const char *answer = NULL, *found = content.text;
    while ((found = strstr(found, chat->answer_after)))
        answer = found += strlen(chat->answer_after);
    if (!answer)
        return content;
    return trim_span((span){answer, strlen(answer)}, chat->answer_trim);
}

static span content_of(const sq_chat *chat, const sq_message *message, role role, bool after_system) {
    span content = {message->content, strlen(message->content)};
    if (role == ROLE_ASSISTANT)
        content = skip_thinking(chat, content);
    return trim_span(content, role == ROLE_USER && after_system ? chat->first_user_trim : chat->trims[role]);
}

/* ---- dialogues ------------------------------------------------------------------------------- */

static sq_status find_role(const sq_message *messages, size_t index, role *role, sq_error *error) {
    const char *name = messages[index].role;
    if (!name || !messages[index].content)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "message %zu: role or content is NULL", index + 1);
    for (int i = 0; i < N_ROLES; i++) {
        if (strcmp(name, role_names[i]) == 0) {
            *role = (enum role)i;
            return SQ_OK;
        }
    }
    return sq_fail(error, SQ_ERROR_ARGUMENT,
                   "message %zu: role \"%.40s\", expected system, user or assistant", index + 1, name);
}

/* System first or not at all, then user and assistant in turns. */
static sq_status check_turn(const sq_chat *chat, role role, size_t index, bool has_system, sq_error *error) {
    if (role == ROLE_SYSTEM && index > 0)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "message %zu: a system message can only be the first one",
                       index + 1);
    if (role == ROLE_SYSTEM && !chat->begin_system)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "this model takes no system message (%s); put its text into the first user message",
                       chat->no_system ? chat->no_system : "its template has no place for one");
    enum role expected = (index - has_system) % 2 ? ROLE_ASSISTANT : ROLE_USER;
    if (role != ROLE_SYSTEM && role != expected)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "message %zu: role %s, expected %s; user and assistant take turns, the user first",
                       index + 1, role_names[role], role_names[expected]);
    return SQ_OK;
}

/* The text before a message. */
static const char *text_before(const sq_chat *chat, role role, size_t index) {
    if (role == ROLE_SYSTEM)
        return chat->begin_system;
    if (index == 0)
        return chat->begin;
    if (role == ROLE_ASSISTANT)
        return chat->user_assistant;
    return chat->assistant_user;
}

static sq_status text_behind(const sq_chat *chat, role last, bool generate, const char **text,
                             sq_error *error) {
    if (last == ROLE_USER) {
        *text = generate ? chat->user_generate : chat->user_end;
        return SQ_OK;
    }
    if (generate || last == ROLE_SYSTEM)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "the last message is the %s's, expected one by the user",
                       role_names[last]);
    if (!chat->assistant_end)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "this model's template writes an answer at the end of a dialogue in another way than "
                       "the table of its file can; end with a message by the user");
    *text = chat->assistant_end;
    return SQ_OK;
}

static void push(sq_text_part **part, const char *text, size_t n_bytes, bool special) {
    *(*part)++ = (sq_text_part){text, n_bytes, special};
}

/* Writes 2 n_messages + 1 parts at most. */
static sq_status place(const sq_chat *chat, const sq_message *messages, size_t n_messages, bool generate,
                       sq_text_part *parts, size_t *n_parts, sq_error *error) {
    sq_text_part *part = parts;
    bool has_system = false;
    role role = ROLE_SYSTEM;
    for (size_t i = 0; i < n_messages; i++) {
        sq_status status = find_role(messages, i, &role, error);
        if (!status)
            status = check_turn(chat, role, i, has_system, error);
        if (status)
            return status;
        span content = content_of(chat, &messages[i], role, has_system && i == 1);
        if (content.n_bytes == 0 && chat->no_empty[role])
            return sq_fail(error, SQ_ERROR_ARGUMENT,
                           "message %zu is empty, which this model's template does not allow for the %s",
                           i + 1, role_names[role]);
        const char *before = has_system && i == 1 ? chat->system_user : text_before(chat, role, i);
        push(&part, before, strlen(before), true);
        push(&part, content.text, content.n_bytes, false);
        has_system = has_system || role == ROLE_SYSTEM;
    }
    const char *behind = NULL;
    sq_status status = text_behind(chat, role, generate, &behind, error);
    if (status)
        return status;
    push(&part, behind, strlen(behind), true);
    *n_parts = (size_t)(part - parts);
    return SQ_OK;
}

/* Whether the template takes the first message for none at all. */
static bool is_no_message(const sq_chat *chat, const sq_message *message) {
    return chat->empty_system_is_none && message->role && message->content &&
           strcmp(message->role, role_names[ROLE_SYSTEM]) == 0 &&
           content_of(chat, message, ROLE_SYSTEM, false).n_bytes == 0;
}

sq_status sq_chat_encode(const sq_chat *chat, const sq_message *messages, size_t n_messages, bool generate,
                         sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error) {
    sq_status status = sq_chat_available(chat, error);
    if (status)
        return status;
    if (n_messages > 0 && is_no_message(chat, messages))
        messages++, n_messages--;
    if (n_messages == 0)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "the dialogue has no message");
    if (n_messages > SIZE_MAX / sizeof(sq_text_part) / 4)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "the dialogue has too many messages");
    sq_text_part *parts = malloc((2 * n_messages + 1) * sizeof *parts);
    if (!parts)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a dialogue of %zu messages", n_messages);
    size_t n_parts = 0;
    status = place(chat, messages, n_messages, generate, parts, &n_parts, error);
    if (!status)
        status = sq_tokenizer_encode(chat->tokenizer, parts, n_parts, 0, tokens, capacity, n_tokens, error);
    free(parts);
    return status;
}
