/* Dialogues as files. */
#include "dialogue.h"
#include "json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILE_BYTES = 64 << 20 };

static bool fail_file(text *problem, const char *what, const char *path) {
    text_printf(problem, "cannot %s %s: %s", what, path, strerror(errno));
    return false;
}

/* ---- saving ---------------------------------------------------------------------------------- */

static void write_message(json_writer *w, const char *role, const char *content) {
    json_open(w, NULL, '{');
    json_string(w, "role", role);
    json_string(w, "content", content);
    json_close(w, '}');
}

static void write_settings(json_writer *w, const option *rows) {
    json_open(w, "settings", '{');
    for (size_t i = 0; i < N_SETTINGS; i++) {
        text value = {0};
        option_format(&rows[i], &value);
        json_literal(w, settings_name(&rows[i]), text_string(&value));
        text_free(&value);
    }
    json_close(w, '}');
}

static void write_dialogue(json_writer *w, const dialogue *d, const char *model, const option *rows) {
    json_open(w, NULL, '{');
    json_string(w, "model", model);
    write_settings(w, rows);
    json_open(w, "messages", '[');
    if (d->system) {
        write_message(w, "system", d->system);
    }
    for (size_t i = 0; i < d->n_turns; i++) {
        write_message(w, "user", d->turns[i].user);
        write_message(w, "assistant", d->turns[i].assistant);
    }
    json_close(w, ']');
    json_close(w, '}');
}

/* Writes beside `path`, then renames; mkstemp makes the file private. */
static bool write_file(const char *path, const text *content, text *problem) {
    text temporary = {0};
    text_printf(&temporary, "%s.XXXXXX", path);
    int fd = mkstemp(temporary.bytes);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    bool written = file && fwrite(content->bytes, 1, content->n, file) == content->n && fflush(file) == 0 &&
                   fsync(fd) == 0;
    int reason = errno;
    if (file) {
        fclose(file);
    }
    if (written && rename(temporary.bytes, path) != 0) {
        written = false;
        reason = errno;
    }
    if (!written && fd >= 0) {
        unlink(temporary.bytes);
    }
    text_free(&temporary);
    errno = reason;
    return written || fail_file(problem, "write", path);
}

/* Whether there is no file that someone would miss. */
static bool may_replace(const char *path, text *problem) {
    struct stat status;
    if (stat(path, &status) != 0) {
        return true;
    }
    text reason = {0};
    dialogue old = {0};
    settings scratch;
    option rows[N_SETTINGS];
    settings_init(&scratch, rows);
    bool is_dialogue = dialogue_load(&old, path, &scratch, rows, &reason);
    if (!is_dialogue) {
        text_printf(problem, "%s exists and is no saved dialogue; choose another name", path);
    }
    dialogue_free(&old);
    text_free(&reason);
    return is_dialogue;
}

bool dialogue_save(const dialogue *d, const char *path, const char *model, const option *rows,
                   text *problem) {
    if (!may_replace(path, problem)) {
        return false;
    }
    json_writer w = {0};
    write_dialogue(&w, d, model, rows);
    bool saved = write_file(path, &w.out, problem);
    text_free(&w.out);
    return saved;
}

/* ---- loading --------------------------------------------------------------------------------- */

static bool read_settings(json_reader *r, const option *rows) {
    text name = {0}, value = {0}, expected = {0};
    size_t n = 0;
    json_enter(r, '{');
    while (json_next(r, '}', &n)) {
        if (!json_read_key(r, &name) || !json_read_number(r, &value)) {
            break;
        }
        const option *row = settings_find(rows, text_string(&name));
        if (!row) {
            json_fail(r, "an unknown setting");
        } else if (!option_set(row, text_string(&value), &expected)) {
            json_fail(r, "a setting out of range");
        }
    }
    text_free(&name);
    text_free(&value);
    text_free(&expected);
    return !r->problem;
}

/* {"role": "…", "content": "…"}, each once. */
static bool read_message(json_reader *r, text *role, text *content) {
    text key = {0};
    bool has_role = false, has_content = false;
    size_t n = 0;
    json_enter(r, '{');
    while (json_next(r, '}', &n)) {
        json_read_key(r, &key);
        if (!has_role && strcmp(text_string(&key), "role") == 0) {
            has_role = json_read_string(r, role);
        } else if (!has_content && strcmp(text_string(&key), "content") == 0) {
            has_content = json_read_string(r, content);
        } else {
            json_fail(r, "expected \"role\" and \"content\", each once");
        }
    }
    text_free(&key);
    return !r->problem && ((has_role && has_content) || json_fail(r, "a message without role or content"));
}

static bool add_message(json_reader *r, dialogue *d, const char *role, const char *content) {
    bool open = d->n_turns > 0 && !d->turns[d->n_turns - 1].assistant;
    if (strcmp(role, "system") == 0 && d->n_turns == 0 && !d->system) {
        dialogue_set_system(d, content);
    } else if (strcmp(role, "user") == 0 && !open) {
        dialogue_ask(d, content);
    } else if (strcmp(role, "assistant") == 0 && open) {
        dialogue_answer(d, content, NULL, 0);
    } else {
        return json_fail(r, "messages out of order: expected system (first, or not at all), then user and "
                            "assistant in turn");
    }
    return true;
}

static bool read_messages(json_reader *r, dialogue *d) {
    text role = {0}, content = {0};
    size_t n = 0;
    json_enter(r, '[');
    while (json_next(r, ']', &n)) {
        if (read_message(r, &role, &content)) {
            add_message(r, d, text_string(&role), text_string(&content));
        }
    }
    text_free(&role);
    text_free(&content);
    bool open = d->n_turns > 0 && !d->turns[d->n_turns - 1].assistant;
    return !r->problem && (!open || json_fail(r, "the last question has no answer"));
}

static bool read_dialogue(json_reader *r, dialogue *d, const option *rows) {
    text key = {0}, model = {0};
    bool has_messages = false, has_settings = false, has_model = false;
    size_t n = 0;
    json_enter(r, '{');
    while (json_next(r, '}', &n)) {
        json_read_key(r, &key);
        if (!has_messages && strcmp(text_string(&key), "messages") == 0) {
            has_messages = read_messages(r, d);
        } else if (!has_settings && strcmp(text_string(&key), "settings") == 0) {
            has_settings = read_settings(r, rows);
        } else if (!has_model && strcmp(text_string(&key), "model") == 0) {
            has_model = json_read_string(r, &model); /* for people: any model may go on with it */
        } else {
            json_fail(r, "expected \"messages\", \"settings\" and \"model\", each at most once");
        }
    }
    text_free(&key);
    text_free(&model);
    return json_read_end(r) && (has_messages || json_fail(r, "no \"messages\""));
}

static bool read_file(const char *path, text *content, text *problem) {
    FILE *file = fopen(path, "r");
    bool read = file && text_read(content, file, MAX_FILE_BYTES);
    int reason = errno;
    if (file) {
        fclose(file);
    }
    errno = reason;
    return read || fail_file(problem, "read", path);
}

bool dialogue_load(dialogue *d, const char *path, settings *s, const option *rows, text *problem) {
    text content = {0};
    if (!read_file(path, &content, problem)) {
        text_free(&content);
        return false;
    }
    dialogue loaded = {0};
    settings before = *s;
    json_reader r = {.bytes = text_string(&content), .n = content.n};
    bool valid = read_dialogue(&r, &loaded, rows);
    if (valid) {
        dialogue_free(d);
        *d = loaded;
    } else {
        *s = before;
        dialogue_free(&loaded);
        text_printf(problem, "%s is no saved dialogue: line %zu: %s", path, json_line(&r), r.problem);
    }
    text_free(&content);
    return valid;
}
