#include "chat.h"

#include "input.h"
#include "placement.h"
#include "terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void on_interrupt(int number) {
    (void)number;
    answer_interrupt();
}

static void catch_interrupt(void) {
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &action, NULL);
}

/* ---- answers --------------------------------------------------------------------------------- */

static void say_speed(const chat *c) {
    const answer *a = &c->answer;
    size_t n_used;
    sq_session_tokens(c->session, &n_used);
    text line = {0};
    text_printf(&line, "%zu token%s", a->n_tokens, a->n_tokens == 1 ? "" : "s");
    if (a->n_tokens > 0 && a->seconds > 0) {
        text_printf(&line, ", %.1f tok/s", (double)a->n_tokens / a->seconds);
    }
    text_printf(&line, "; prompt %zu tokens, %zu of them new, %.2f s; context %zu of %u", a->n_prompt,
                a->n_prompt - a->n_kept, a->prompt_seconds, n_used, sq_session_n_ctx(c->session));
    terminal_note(stderr, "[%s]", text_string(&line));
    text_free(&line);
}

static void say_no_room(const chat *c, answer_end end, size_t n_prompt) {
    text line = {0};
    uint32_t n_ctx = sq_session_n_ctx(c->session);
    if (end == ANSWER_FULL) {
        text_printf(&line, "the context is full: it holds %u tokens, and the answer ends here", n_ctx);
    } else {
        text_printf(
            &line,
            "the chat has %zu tokens with this message, the context holds %u; the message is taken back",
            n_prompt, n_ctx);
    }
    text_append_string(&line, ". /clear begins a new chat, /undo takes the last turn back; ");
    answer_append_advice(&line, c->model, c->session);
    tool_complain(c->tool, "%s", text_string(&line));
    text_free(&line);
}

static void say_end(const chat *c, answer_end end, size_t n_prompt, const sq_error *error) {
    switch (end) {
    case ANSWER_STOP:
        if (c->answer.content.n == 0) {
            terminal_note(stderr, "(the answer is empty; the message is taken back)");
        }
        break;
    case ANSWER_LIMIT:
        terminal_note(stderr, "(stopped after %zu tokens; /set n 0 lets answers end by themselves)",
                      c->answer.n_tokens);
        break;
    case ANSWER_FULL:
        say_no_room(c, end, n_prompt);
        break;
    case ANSWER_INTERRUPTED:
        terminal_note(stderr, c->answer.content.n > 0 ? "(stopped)" : "(stopped; the message is taken back)");
        break;
    case ANSWER_UNWRITTEN:
        break;
    case ANSWER_FAILED:
        if (error->status == SQ_ERROR_CONTEXT) {
            say_no_room(c, end, n_prompt);
        } else {
            tool_complain(c->tool, "%s", error->message);
        }
        break;
    }
}

/* Keeps the answer, or, where it is empty, takes an unanswered question back: templates need not allow
 * empty answers. What is kept is the tokens' text, with the white space that is not shown at its start,
 * for that is what the model wrote. */
static void keep_answer(chat *c) {
    const answer *a = &c->answer;
    text kept = {0};
    if (a->content.n > 0 && answer_decode(c->model, a->tokens, a->n_tokens, &kept)) {
        kept.bytes[sq_utf8_complete(kept.bytes, kept.n)] = '\0';
        dialogue_answer(&c->dialogue, kept.bytes, a->tokens, a->n_tokens);
    } else if (!c->dialogue.turns[c->dialogue.n_turns - 1].assistant) {
        dialogue_undo(&c->dialogue);
    }
    text_free(&kept);
}

bool chat_answer(chat *c) {
    sq_token *prompt = NULL;
    size_t n_prompt = 0;
    sq_error error = {0};
    answer_end end = ANSWER_FAILED;
    c->answer.n_tokens = 0;
    text_clear(&c->answer.content);
    if (dialogue_tokenize(&c->dialogue, c->model, c->settings, &prompt, &n_prompt, &error) == SQ_OK) {
        end = answer_generate(&c->generator, prompt, n_prompt, &c->answer, &error);
    }
    free(prompt);
    if (end == ANSWER_UNWRITTEN) {
        tool_complain_write(c->tool, errno);
        return false;
    }
    const text *content = &c->answer.content;
    if (content->n > 0 && content->bytes[content->n - 1] != '\n' && !terminal_write(stdout, "\n", 1)) {
        tool_complain_write(c->tool, errno);
        return false;
    }
    say_end(c, end, n_prompt, &error);
    if (end != ANSWER_FAILED) {
        say_speed(c);
    }
    keep_answer(c);
    return true;
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void say_hello(const chat *c) {
    sq_model_info info;
    sq_model_get_info(c->model, &info);
    if (!isatty(STDERR_FILENO)) {
        return;
    }
    text line = {0};
    text_printf(&line, "%s, ", info.name[0] ? info.name : info.architecture);
    if (info.bits_per_weight > 0) {
        text_printf(&line, "%.2f bits a weight, ", info.bits_per_weight);
    }
    placement_append(&line, &info, sq_session_n_threads(c->session));
    text_printf(&line, ", context %u tokens", sq_session_n_ctx(c->session));
    terminal_note(stderr, "%s. /help lists the commands.", text_string(&line));
    text_free(&line);
}

/* Commands are one line; what is pasted with a path at its start is a message. */
static bool is_command(const text *message) {
    return message->bytes[0] == '/' && !strchr(message->bytes, '\n');
}

static command_result handle(chat *c, const text *message) {
    if (is_command(message)) {
        return command_run(c, message->bytes);
    }
    dialogue_ask(&c->dialogue, message->bytes);
    return chat_answer(c) ? COMMAND_DONE : COMMAND_FAILED;
}

static command_result read_and_handle(chat *c, input *in) {
    text message = {0};
    command_result result = COMMAND_LEAVE;
    input_result read;
    while ((read = input_read(in, &message)) != INPUT_LEAVE) {
        if (read == INPUT_NOTHING) {
            continue;
        }
        input_mute(in, true);
        result = handle(c, &message);
        input_mute(in, false);
        if (result != COMMAND_DONE) {
            break;
        }
        result = COMMAND_LEAVE;
    }
    text_free(&message);
    return result;
}

int chat_run(const char *tool, const sq_model *model, sq_session *session, settings *s,
             const option *settings_rows, const char *system) {
    chat c = {.tool = tool,
              .model = model,
              .session = session,
              .settings = s,
              .settings_rows = settings_rows,
              .generator = {.model = model, .session = session, .settings = s, .trim = true}};
    sq_error error;
    dialogue_set_system(&c.dialogue, system);
    if (!tool_check(tool, dialogue_check(&c.dialogue, model, s, &error), &error)) {
        dialogue_free(&c.dialogue);
        return 1;
    }
    input *in = input_open(tool, command_words());
    if (!in) {
        tool_complain(tool, "cannot start the line editor on this terminal; -p PROMPT answers without it");
        dialogue_free(&c.dialogue);
        return 1;
    }
    catch_interrupt();
    say_hello(&c);
    command_result result = read_and_handle(&c, in);
    input_close(in);
    dialogue_free(&c.dialogue);
    answer_free(&c.answer);
    return result == COMMAND_FAILED ? 1 : 0;
}
