#include "answer.h"

#include "clock.h"
#include "terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t is_interrupted;
static sq_session *volatile running; /* NULL while no answer is generated */

void answer_interrupt(void) {
    is_interrupted = 1;
    if (running) {
        sq_session_cancel(running);
    }
}

void answer_free(answer *a) {
    free(a->tokens);
    text_free(&a->content);
    text_free(&a->pending);
    *a = (answer){0};
}

bool answer_decode(const sq_model *model, const sq_token *tokens, size_t n_tokens, text *out) {
    size_t n, n_again;
    if (sq_detokenize(model, tokens, n_tokens, false, NULL, 0, &n, NULL)) {
        return false;
    }
    out->bytes = memory_resize(out->bytes, n + 1, 1);
    out->capacity = n + 1;
    if (sq_detokenize(model, tokens, n_tokens, false, out->bytes, n, &n_again, NULL)) {
        return false;
    }
    out->n = n;
    out->bytes[n] = '\0';
    return true;
}

void answer_append_advice(text *out, const sq_model *model, const sq_session *session) {
    sq_model_info info;
    sq_model_get_info(model, &info);
    if (sq_session_n_ctx(session) < info.n_ctx_train) {
        text_printf(out, "--ctx TOKENS makes room, up to %u", info.n_ctx_train);
    } else {
        text_append_string(out, "this model takes no more");
    }
}

static void restart(answer *a) {
    a->n_tokens = 0;
    text_clear(&a->content);
    text_clear(&a->pending);
    a->prompt_seconds = a->seconds = 0;
}

static void append_token(answer *a, sq_token token) {
    if (a->n_tokens == a->capacity) {
        a->capacity = 2 * a->capacity + 256;
        a->tokens = memory_resize(a->tokens, a->capacity, sizeof *a->tokens);
    }
    a->tokens[a->n_tokens++] = token;
}

/* Shows the first n pending bytes. */
static bool show(const generator *g, answer *a, size_t n) {
    if (g->trim && a->content.n == 0) {
        size_t n_space = n ? strspn(a->pending.bytes, " \t\r\n") : 0;
        n_space = n_space < n ? n_space : n;
        text_drop(&a->pending, n_space);
        n -= n_space;
    }
    if (n == 0) {
        return true;
    }
    text_append(&a->content, a->pending.bytes, n);
    bool written = terminal_write(stdout, a->pending.bytes, n);
    text_drop(&a->pending, n);
    return written;
}

static bool show_token(const generator *g, answer *a, sq_token token) {
    size_t n_bytes;
    const char *bytes = sq_token_text(g->model, token, false, &n_bytes);
    if (bytes && n_bytes > 0) {
        text_append(&a->pending, bytes, n_bytes);
    }
    return show(g, a, sq_utf8_complete(text_string(&a->pending), a->pending.n));
}

/* A character that stayed incomplete is shown as U+FFFD. */
static bool show_rest(const generator *g, answer *a) {
    if (a->pending.n > 0) {
        text_clear(&a->pending);
        utf8_append(&a->pending, 0xFFFD);
    }
    return show(g, a, a->pending.n);
}

static answer_end end_of_status(sq_status status) {
    return status == SQ_ERROR_CANCELLED ? ANSWER_INTERRUPTED : ANSWER_FAILED;
}

static answer_end draw_tokens(generator *g, sq_sampler *sampler, answer *a, sq_error *error) {
    for (;;) {
        if (is_interrupted) {
            return ANSWER_INTERRUPTED;
        }
        if (g->settings->n_max && a->n_tokens == g->settings->n_max) {
            return ANSWER_LIMIT;
        }
        sq_token token;
        sq_status status = sq_session_sample(g->session, sampler, &token, error);
        if (status) {
            return ANSWER_FAILED;
        }
        if (sq_token_is_stop(g->model, token)) {
            return ANSWER_STOP;
        }
        sq_sampler_accept(sampler, token);
        append_token(a, token);
        if (!show_token(g, a, token)) {
            return ANSWER_UNWRITTEN;
        }
        status = sq_session_append(g->session, &token, 1, NULL, error);
        if (status == SQ_ERROR_CONTEXT) {
            return ANSWER_FULL;
        }
        if (status) {
            return end_of_status(status);
        }
    }
}

static answer_end generate(generator *g, const sq_token *prompt, size_t n_prompt, answer *a,
                           sq_error *error) {
    sq_sampler_options options = g->settings->sampler;
    options.seed += g->n_answers++;
    sq_sampler *sampler;
    if (sq_sampler_create(g->model, &options, &sampler, error)) {
        return ANSWER_FAILED;
    }
    double start = clock_seconds();
    a->n_prompt = n_prompt;
    sq_status status = sq_session_sync(g->session, prompt, n_prompt, &a->n_kept, error);
    double first = clock_seconds();
    a->prompt_seconds = first - start;
    answer_end end = status ? end_of_status(status) : draw_tokens(g, sampler, a, error);
    a->seconds = clock_seconds() - first;
    sq_sampler_free(sampler);
    return end;
}

answer_end answer_generate(generator *g, const sq_token *prompt, size_t n_prompt, answer *a,
                           sq_error *error) {
    restart(a);
    is_interrupted = 0;
    running = g->session;
    answer_end end = generate(g, prompt, n_prompt, a, error);
    running = NULL;
    if (end != ANSWER_UNWRITTEN && !show_rest(g, a)) {
        end = ANSWER_UNWRITTEN;
    }
    return end;
}
