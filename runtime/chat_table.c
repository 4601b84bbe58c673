#include "chat_table.h"

#include <stdio.h>
#include <string.h>

#include "status.h"

const char *const sq_role_names[SQ_N_ROLES] = {"system", "user", "assistant"};

enum { KEY_BYTES_MAX = 64 };

/* One table's keys while they are read. */
typedef struct reader {
    const sq_gguf *file;
    const char *prefix;
    char key[KEY_BYTES_MAX]; /* the last one asked for */
    sq_error *error;
} reader;

static bool has(reader *r, const char *name) {
    snprintf(r->key, sizeof r->key, "%s%s", r->prefix, name);
    return sq_gguf_has(r->file, r->key);
}

static sq_status damaged(const reader *r, const char *expected) {
    return sq_fail(r->error, SQ_ERROR_FORMAT, "%s: expected %s; the file is damaged", r->key, expected);
}

typedef enum text_kind { REQUIRED, OPTIONAL, MARK /* optional, searched for, not empty */ } text_kind;

static sq_status read_text(reader *r, const char *name, text_kind kind, const char **text) {
    if (!has(r, name))
        return kind != REQUIRED || *text ? SQ_OK : damaged(r, "a string");
    *text = sq_gguf_get_string(r->file, r->key);
    if (!*text)
        return damaged(r, "a string");
    return kind == MARK && !**text ? damaged(r, "a string that is not empty") : SQ_OK;
}

static sq_status read_texts(reader *r, sq_chat_table *table) {
    const struct {
        const char *name;
        const char **text;
        text_kind kind;
    } texts[] = {{"begin", &table->begin, REQUIRED},
                 {"begin_system", &table->begin_system, OPTIONAL},
                 {"system_user", &table->system_user, OPTIONAL},
                 {"system_user_empty", &table->system_user_empty, OPTIONAL},
                 {"user_assistant", &table->user_assistant, REQUIRED},
                 {"assistant_user", &table->assistant_user, REQUIRED},
                 {"user_end", &table->user_end, REQUIRED},
                 {"user_generate", &table->user_generate, REQUIRED},
                 {"assistant_end", &table->assistant_end, OPTIONAL},
                 {"no_system", &table->no_system, OPTIONAL},
                 {"answer_after", &table->answer_after, MARK},
                 {"thought_after", &table->thought_after, MARK},
                 {"final_begin", &table->final_begin, OPTIONAL},
                 {"final_middle", &table->final_middle, OPTIONAL},
                 {"think_word", &table->think_word, MARK},
                 {"no_think_word", &table->no_think_word, MARK}};
    sq_status status = SQ_OK;
    for (size_t i = 0; i < sizeof texts / sizeof *texts && !status; i++)
        status = read_text(r, texts[i].name, texts[i].kind, texts[i].text);
    return status;
}

static sq_status read_trim(reader *r, const char *name, sq_trim *value) {
    static const struct {
        const char *name;
        sq_trim value;
    } trims[] = {
        {"none", {SQ_TRIM_NONE, false}},         {"left", {SQ_TRIM_LEFT, false}},
        {"right", {SQ_TRIM_RIGHT, false}},       {"both", {SQ_TRIM_BOTH, false}},
        {"left newlines", {SQ_TRIM_LEFT, true}}, {"right newlines", {SQ_TRIM_RIGHT, true}},
        {"both newlines", {SQ_TRIM_BOTH, true}},
    };
    if (!has(r, name))
        return SQ_OK;
    const char *found = sq_gguf_get_string(r->file, r->key);
    for (size_t i = 0; found && i < sizeof trims / sizeof *trims; i++) {
        if (strcmp(found, trims[i].name) == 0) {
            *value = trims[i].value;
            return SQ_OK;
        }
    }
    return sq_fail(r->error, SQ_ERROR_FORMAT,
                   "%s: \"%.40s\", expected none, left, right or both, with or without \" newlines\"; the "
                   "file is damaged or from a newer version",
                   r->key, found ? found : "");
}

static sq_status read_trims(reader *r, sq_chat_table *table, bool has_base) {
    sq_status status = read_trim(r, "user_trim", &table->trims[SQ_ROLE_USER]);
    if (!has_base)
        table->first_user_trim = table->trims[SQ_ROLE_USER];
    const struct {
        const char *name;
        sq_trim *value;
    } trims[] = {{"system_trim", &table->trims[SQ_ROLE_SYSTEM]},
                 {"first_user_trim", &table->first_user_trim},
                 {"assistant_trim", &table->trims[SQ_ROLE_ASSISTANT]},
                 {"answer_trim", &table->answer_trim},
                 {"thought_trim", &table->thought_trim},
                 {"final_trim", &table->final_trim}};
    for (size_t i = 0; i < sizeof trims / sizeof *trims && !status; i++)
        status = read_trim(r, trims[i].name, trims[i].value);
    return status;
}

static sq_status read_no_empty(reader *r, sq_chat_table *table) {
    uint64_t n;
    if (!has(r, "no_empty"))
        return SQ_OK;
    if (!sq_gguf_get_strings(r->file, r->key, &n))
        return damaged(r, "a list of roles");
    memset(table->no_empty, 0, sizeof table->no_empty);
    for (uint64_t i = 0; i < n; i++) {
        sq_gguf_string name = sq_gguf_string_at(r->file, r->key, i);
        for (int role = 0; role < SQ_N_ROLES; role++)
            if (strlen(sq_role_names[role]) == name.n_bytes &&
                memcmp(sq_role_names[role], name.text, name.n_bytes) == 0)
                table->no_empty[role] = true;
    }
    return SQ_OK;
}

static void read_bool(reader *r, const char *name, bool *value) {
    if (has(r, name))
        sq_gguf_get_bool(r->file, r->key, value);
}

/* What belongs together is there together. */
static sq_status check(reader *r, const sq_chat_table *table) {
    if (!table->system_user != !(table->begin_system || table->system_last)) {
        has(r, "system_user");
        return damaged(r, "a string where there is begin_system or system_last, and only there");
    }
    if (!table->final_begin != !table->final_middle ||
        (table->final_begin && !(table->thought_after && table->answer_after))) {
        has(r, "final_begin");
        return damaged(r, "a string where there are final_middle, thought_after and answer_after");
    }
    return SQ_OK;
}

sq_status sq_chat_table_load(const sq_gguf *file, const char *prefix, const sq_chat_table *base,
                             sq_chat_table *table, sq_error *error) {
    reader r = {.file = file, .prefix = prefix, .error = error};
    *table = base ? *base : (sq_chat_table){0};
    sq_status status = read_texts(&r, table);
    if (!status)
        status = read_trims(&r, table, base != NULL);
    if (!status)
        status = read_no_empty(&r, table);
    read_bool(&r, "system_last", &table->system_last);
    read_bool(&r, "empty_system_is_none", &table->empty_system_is_none);
    return status ? status : check(&r, table);
}
