/* The chat's commands: one table row and one function each. */
#include "chat.h"
#include "placement.h"
#include "terminal.h"

#include <stdlib.h>
#include <string.h>

typedef struct command {
    const char *name;
    const char *argument; /* as the help shows it; NULL: takes none */
    bool needs_argument;
    const char *help;
    command_result (*run)(chat *c, const char *argument);
} command;

static command_result run_help(chat *c, const char *argument);

static command_result run_exit(chat *c, const char *argument) {
    (void)c, (void)argument;
    return COMMAND_LEAVE;
}

static command_result run_clear(chat *c, const char *argument) {
    (void)argument;
    dialogue_clear(&c->dialogue);
    sq_session_truncate(c->session, 0);
    terminal_note(stderr, "(a new chat)");
    return COMMAND_DONE;
}

static command_result run_retry(chat *c, const char *argument) {
    (void)argument;
    if (c->dialogue.n_turns == 0) {
        tool_complain(c->tool, "there is no answer yet that could be tried again");
        return COMMAND_DONE;
    }
    return chat_answer(c) ? COMMAND_DONE : COMMAND_FAILED;
}

/* The start of a message, for a remark. */
static void say_question(const char *what, const char *question) {
    size_t n = strcspn(question, "\n");
    n = n > 60 ? 60 : n;
    n = sq_utf8_complete(question, n);
    terminal_note(stderr, "(%s: %.*s%s)", what, (int)n, question, question[n] ? " …" : "");
}

static command_result run_undo(chat *c, const char *argument) {
    (void)argument;
    if (c->dialogue.n_turns == 0) {
        tool_complain(c->tool, "there is nothing to take back");
        return COMMAND_DONE;
    }
    say_question("taken back", c->dialogue.turns[c->dialogue.n_turns - 1].user);
    dialogue_undo(&c->dialogue);
    return COMMAND_DONE;
}

static command_result run_system(chat *c, const char *argument) {
    char *before = c->dialogue.system ? memory_copy_string(c->dialogue.system) : NULL;
    sq_error error;
    dialogue_set_system(&c->dialogue, argument);
    if (dialogue_check(&c->dialogue, c->model, c->settings, &error)) {
        tool_complain(c->tool, "%s", error.message);
        dialogue_set_system(&c->dialogue, before);
    } else {
        terminal_note(stderr, argument[0] ? "(the system prompt is set)" : "(no system prompt)");
    }
    free(before);
    return COMMAND_DONE;
}

static void say_names(const chat *c) {
    text names = {0};
    for (size_t i = 0; i < N_SETTINGS; i++) {
        text_printf(&names, "%s%s", i ? ", " : "", settings_name(&c->settings_rows[i]));
    }
    tool_complain(c->tool, "/set: expected NAME VALUE; names are %s", text_string(&names));
    text_free(&names);
}

static command_result run_set(chat *c, const char *argument) {
    char *name = memory_copy_string(argument);
    size_t n_name = strcspn(name, " \t");
    const char *value = name + n_name + strspn(name + n_name, " \t");
    name[n_name] = '\0';
    const option *row = settings_find(c->settings_rows, name + strspn(name, "-"));
    settings before = *c->settings;
    text problem = {0};
    sq_error error;
    if (!row || !value[0] || name + n_name == value) {
        say_names(c);
    } else if (!option_set(row, value, &problem)) {
        tool_complain(c->tool, "/set %s: expected %s, found \"%s\"", name, text_string(&problem), value);
    } else if (dialogue_check(&c->dialogue, c->model, c->settings, &error)) {
        tool_complain(c->tool, "%s", error.message);
        *c->settings = before;
    } else {
        terminal_note(stderr, "(%s is %s)", settings_name(row), value);
    }
    text_free(&problem);
    free(name);
    return COMMAND_DONE;
}

/* A file name as typed: "~/" is the home, a backslash takes the meaning from the character after it
 * (completion writes them). */
static void read_path(const char *argument, text *path) {
    const char *home = getenv("HOME");
    if (strncmp(argument, "~/", 2) == 0 && home) {
        text_append_string(path, home);
        argument++;
    }
    for (; *argument; argument++) {
        argument += argument[0] == '\\' && argument[1];
        text_append(path, argument, 1);
    }
}

static command_result run_save(chat *c, const char *argument) {
    text path = {0}, problem = {0};
    sq_model_info info;
    sq_model_get_info(c->model, &info);
    read_path(argument, &path);
    if (dialogue_save(&c->dialogue, path.bytes, info.name, c->settings_rows, &problem)) {
        terminal_note(stderr, "(saved %zu turn%s in %s)", c->dialogue.n_turns,
                      c->dialogue.n_turns == 1 ? "" : "s", path.bytes);
    } else {
        tool_complain(c->tool, "%s", text_string(&problem));
    }
    text_free(&path);
    text_free(&problem);
    return COMMAND_DONE;
}

static command_result run_load(chat *c, const char *argument) {
    text path = {0}, problem = {0};
    dialogue loaded = {0};
    settings before = *c->settings;
    sq_error error;
    read_path(argument, &path);
    if (!dialogue_load(&loaded, path.bytes, c->settings, c->settings_rows, &problem)) {
        tool_complain(c->tool, "%s", text_string(&problem));
    } else if (dialogue_check(&loaded, c->model, c->settings, &error)) {
        tool_complain(c->tool, "%s does not fit this model: %s", path.bytes, error.message);
        *c->settings = before;
        dialogue_free(&loaded);
    } else {
        dialogue_free(&c->dialogue);
        c->dialogue = loaded;
        terminal_note(stderr, "(loaded %zu turn%s from %s)", loaded.n_turns, loaded.n_turns == 1 ? "" : "s",
                      path.bytes);
    }
    text_free(&path);
    text_free(&problem);
    return COMMAND_DONE;
}

static command_result run_info(chat *c, const char *argument) {
    (void)argument;
    sq_model_info info;
    sq_model_get_info(c->model, &info);
    size_t n_used;
    sq_session_tokens(c->session, &n_used);
    text out = {0};
    text_printf(&out, "model     %s (%s), %.1f M weights, %.1f MB\n", info.name, info.architecture,
                1e-6 * (double)info.n_params, 1e-6 * (double)info.file_bytes);
    if (info.bits_per_weight > 0) {
        text_printf(&out, "bits      %.2f a weight, %.2f %% kept sparse\n", info.bits_per_weight,
                    100 * info.sparse_share);
    }
    text_append_string(&out, "runs on   ");
    placement_append(&out, &info, sq_session_n_threads(c->session));
    text_printf(&out, info.device_absent[0] ? "\nno GPU:   %s\n" : "\n", info.device_absent);
    text_printf(&out, "context   %zu of %u tokens, %zu turn%s\n", n_used, sq_session_n_ctx(c->session),
                c->dialogue.n_turns, c->dialogue.n_turns == 1 ? "" : "s");
    text_printf(&out, "system    %s\n",
                c->dialogue.system ? c->dialogue.system : "(the model's own, if any)");
    text_append_string(&out, "settings ");
    for (size_t i = 0; i < N_SETTINGS; i++) {
        text_printf(&out, " %s ", settings_name(&c->settings_rows[i]));
        option_format(&c->settings_rows[i], &out);
    }
    text_append(&out, "\n", 1);
    terminal_write(stderr, out.bytes, out.n);
    text_free(&out);
    return COMMAND_DONE;
}

static const command commands[] = {
    {"/help", NULL, false, "this list", run_help},
    {"/exit", NULL, false, "leave; so does Ctrl-D", run_exit},
    {"/clear", NULL, false, "start a new chat with the same system prompt", run_clear},
    {"/retry", NULL, false, "answer the last message again", run_retry},
    {"/undo", NULL, false, "take the last message and its answer back", run_undo},
    {"/system", "TEXT", false, "set the system prompt; without TEXT: have none", run_system},
    {"/set", "NAME VALUE", true,
     "change a setting: n, temp, top-k, top-p, min-p, repeat-penalty, think, seed", run_set},
    {"/save", "FILE", true, "write the chat to a file (JSON)", run_save},
    {"/load", "FILE", true, "go on with a saved chat", run_load},
    {"/info", NULL, false, "model, context and settings", run_info},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static command_result run_help(chat *c, const char *argument) {
    (void)c, (void)argument;
    text out = {0};
    for (size_t i = 0; i < N_COMMANDS; i++) {
        text left = {0};
        text_printf(&left, "%s %s", commands[i].name, commands[i].argument ? commands[i].argument : "");
        text_printf(&out, "%-18s %s\n", text_string(&left), commands[i].help);
        text_free(&left);
    }
    text_append_string(&out, "\"\"\" begins a message of several lines, \"\"\" at the end of a line ends it; "
                             "pasted lines are one message.\nCtrl-C stops an answer or clears the line.\n");
    terminal_write(stderr, out.bytes, out.n);
    text_free(&out);
    return COMMAND_DONE;
}

const char *const *command_words(void) {
    static const char *const words[] = {
        "/help",      "/exit",      "/clear",     "/retry",     "/undo",
        "/system",    "/save",      "/load",      "/info",      "/set n",
        "/set temp",  "/set top-k", "/set top-p", "/set min-p", "/set repeat-penalty",
        "/set think", "/set seed",  NULL};
    return words;
}

command_result command_run(chat *c, const char *line) {
    size_t n_name = strcspn(line, " \t");
    const char *argument = line + n_name + strspn(line + n_name, " \t");
    for (size_t i = 0; i < N_COMMANDS; i++) {
        const command *k = &commands[i];
        if (strlen(k->name) != n_name || strncmp(k->name, line, n_name) != 0) {
            continue;
        }
        if (k->argument ? k->needs_argument && !argument[0] : argument[0] != '\0') {
            tool_complain(c->tool, "%s: expected %s", k->name,
                          k->argument ? k->argument : "nothing after it");
            return COMMAND_DONE;
        }
        return k->run(c, argument);
    }
    tool_complain(c->tool, "unknown command %.*s; /help lists them, and a space before / sends a message",
                  (int)n_name, line);
    return COMMAND_DONE;
}
