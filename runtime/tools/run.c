/* sq-run: chat with a model in the terminal, or answer one prompt. */
#include "placement.h"
#include "run/answer.h"
#include "run/chat.h"
#include "run/dialogue.h"
#include "terminal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PROMPT_BYTES = 256 << 20 };

static const char tool_name[] = "sq-run";

typedef struct arguments {
    const char *prompt; /* NULL: none */
    const char *system; /* NULL: none */
    bool raw, lookup;
    sq_model_options model;
    sq_session_options session;
    settings settings;
} arguments;

/* ---- one answer ------------------------------------------------------------------------------ */

/* Appends standard input, less one newline at its end, to the prompt. */
static bool read_input(text *prompt) {
    text piped = {0};
    bool valid = text_read(&piped, stdin, MAX_PROMPT_BYTES);
    if (!valid) {
        tool_complain(tool_name, "cannot read the prompt from standard input: %s", strerror(errno));
    } else if (memchr(text_string(&piped), '\0', piped.n)) {
        tool_complain(tool_name, "standard input holds a zero byte: expected text");
        valid = false;
    } else {
        piped.n -= piped.n > 0 && piped.bytes[piped.n - 1] == '\n';
        text_append_string(prompt, prompt->n > 0 && piped.n > 0 ? "\n\n" : "");
        text_append(prompt, text_string(&piped), piped.n);
    }
    text_free(&piped);
    return valid;
}

static sq_status tokenize_raw(const sq_model *model, const text *prompt, sq_token **tokens, size_t *n_tokens,
                              sq_error *error) {
    const int flags = SQ_TOKENIZE_BOS | SQ_TOKENIZE_SPECIAL;
    const char *bytes = text_string(prompt);
    size_t n;
    sq_status status = sq_tokenize(model, bytes, prompt->n, flags, NULL, 0, &n, error);
    if (status == SQ_OK) {
        *tokens = memory_resize(NULL, n, sizeof **tokens);
        status = sq_tokenize(model, bytes, prompt->n, flags, *tokens, n, n_tokens, error);
    }
    return status;
}

static sq_status tokenize(const sq_model *model, const arguments *a, const text *prompt, sq_token **tokens,
                          size_t *n_tokens, sq_error *error) {
    if (a->raw) {
        return tokenize_raw(model, prompt, tokens, n_tokens, error);
    }
    dialogue d = {0};
    dialogue_set_system(&d, a->system);
    dialogue_ask(&d, text_string(prompt));
    sq_status status = dialogue_tokenize(&d, model, &a->settings, tokens, n_tokens, error);
    dialogue_free(&d);
    return status;
}

static void say_no_room(const generator *g, answer_end end, size_t n_prompt) {
    text line = {0};
    uint32_t n_ctx = sq_session_n_ctx(g->session);
    if (end == ANSWER_FULL) {
        text_printf(&line,
                    "the context is full: it holds %u tokens, and the answer ends here; -n ends it earlier",
                    n_ctx);
    } else {
        text_printf(&line, "the prompt has %zu tokens, the context holds %u", n_prompt, n_ctx);
    }
    text_append_string(&line, "; ");
    answer_append_advice(&line, g->model, g->session);
    tool_complain(tool_name, "%s", text_string(&line));
    text_free(&line);
}

/* Ends the last line of the answer and says what went wrong. Returns the exit code. */
static int finish(const generator *g, const answer *a, answer_end end, const sq_error *error) {
    bool is_line = a->content.n > 0 && a->content.bytes[a->content.n - 1] == '\n';
    bool wants_newline = end != ANSWER_FAILED && !is_line;
    if (end == ANSWER_UNWRITTEN || (wants_newline && !terminal_write(stdout, "\n", 1))) {
        tool_complain_write(tool_name, errno);
        return 1;
    }
    if (end == ANSWER_FULL || (end == ANSWER_FAILED && error->status == SQ_ERROR_CONTEXT)) {
        say_no_room(g, end, a->n_prompt);
        return 1;
    }
    return end == ANSWER_FAILED && !tool_check(tool_name, error->status, error) ? 1 : 0;
}

static int answer_once(const sq_model *model, sq_session *session, const arguments *a, const text *prompt) {
    sq_token *tokens = NULL;
    size_t n_tokens = 0;
    sq_error error = {0};
    if (!tool_check(tool_name, tokenize(model, a, prompt, &tokens, &n_tokens, &error), &error)) {
        free(tokens);
        return 1;
    }
    generator g = {.model = model, .session = session, .settings = &a->settings, .trim = !a->raw};
    answer once = {0};
    answer_end end = answer_generate(&g, tokens, n_tokens, &once, &error);
    int code = finish(&g, &once, end, &error);
    answer_free(&once);
    free(tokens);
    return code;
}

/* ---- main ------------------------------------------------------------------------------------ */

/* The prompt of a run that answers once: -p, then what comes through a pipe. */
static bool read_prompt(const arguments *a, text *prompt) {
    text_append_string(prompt, a->prompt ? a->prompt : "");
    if (!isatty(STDIN_FILENO) && !read_input(prompt)) {
        return false;
    }
    if (!a->raw && strspn(text_string(prompt), " \t\r\n") == prompt->n) {
        tool_complain(tool_name, "the prompt is empty: expected -p TEXT, or text on standard input");
        return false;
    }
    return true;
}

static int run_session(const sq_model *model, sq_session *session, arguments *a,
                       const option *settings_rows) {
    if (!a->prompt && isatty(STDIN_FILENO)) {
        return chat_run(tool_name, model, session, &a->settings, settings_rows, a->system);
    }
    text prompt = {0};
    int code = read_prompt(a, &prompt) ? answer_once(model, session, a, &prompt) : 1;
    text_free(&prompt);
    return code;
}

static int run_model(const sq_model *model, arguments *a, const option *settings_rows) {
    sq_error error;
    if (!a->raw && sq_chat_check(model, &error)) {
        tool_complain(tool_name, "%s; --raw -p TEXT completes text without a chat", error.message);
        return 1;
    }
    sq_session *session;
    if (!tool_check(tool_name, sq_session_create(model, &a->session, &session, &error), &error)) {
        return 1;
    }
    sq_session_set_lookup(session, a->lookup);
    int code = run_session(model, session, a, settings_rows);
    sq_session_free(session);
    return code;
}

/* -1: all is well; 2: options that contradict each other. */
static int check(const arguments *a) {
    if (a->raw && a->system) {
        tool_complain(tool_name, "--system has no meaning with --raw, which uses no chat template");
        return 2;
    }
    if (a->raw && !a->settings.think) {
        tool_complain(tool_name, "--think has no meaning with --raw, which uses no chat template");
        return 2;
    }
    if (a->raw && !a->prompt && isatty(STDIN_FILENO)) {
        tool_complain(tool_name, "--raw completes one text: expected -p TEXT, or text on standard input");
        return 2;
    }
    return -1;
}

int main(int argc, char **argv) {
    arguments a = {0};
    option rows[N_SETTINGS + 10];
    settings_init(&a.settings, rows);
    const option others[] = {
        {"-p", OPTION_TEXT, &a.prompt, 0, 0, "PROMPT",
         "answer once and end; text on standard input is put behind it"},
        {"--raw", OPTION_FLAG, &a.raw, 0, 0, NULL, "complete the text as it is, without the chat template"},
        {"--system", OPTION_TEXT, &a.system, 0, 0, "TEXT", "the system prompt"},
        {"--ctx", OPTION_U32, &a.session.n_ctx, 1, INT32_MAX, "TOKENS",
         "how many tokens fit; default: what the model was trained for, at most 8192"},
        {"--lookup", OPTION_FLAG, &a.lookup, 0, 0, NULL,
         "compute ahead what followed the same words before; the answer is the same, sooner"},
        {"--threads", OPTION_U32, &a.session.n_threads, 1, 1024, "NUMBER", "default: one per processor core"},
        {"--kv", OPTION_CHOICE, &a.session.kv, 0, 0, "f16|q8|f32", "precision of the KV cache, default f16"},
        {"--exact", OPTION_FLAG, &a.model.exact, 0, 0, NULL, "prompts in f32 too, not in 16-bit fixed point"},
        placement_device(&a.model),
        placement_layers(&a.model),
    };
    memcpy(rows + N_SETTINGS, others, sizeof others);
    const tool t = {.name = tool_name,
                    .about = "Chats in the terminal. With -p, or text on standard input, answers once.",
                    .arguments = "MODEL.sq.gguf",
                    .n_arguments = 1,
                    .options = rows,
                    .n_options = sizeof rows / sizeof rows[0],
                    .epilogue = "Only answers go to standard output. In the chat, /help lists the commands."};
    const char *path;
    int code = options_parse(&t, argc, argv, &path);
    if (code >= 0 || (code = check(&a)) >= 0) {
        return code;
    }
    tool_ignore_closed_pipes();
    a.model.n_ctx = a.session.n_ctx;
    a.model.kv = a.session.kv;
    sq_model *model;
    sq_error error;
    if (!tool_check(tool_name, sq_model_open(path, &a.model, &model, &error), &error)) {
        return 1;
    }
    code = run_model(model, &a, rows);
    sq_model_close(model);
    return code;
}
