/* sq-eval: perplexity of a model over a text.
 *
 * The protocol is that of GPTQ's code (Frantar et al., arXiv 2210.17323, section 4): the text is split
 * into tokens once, cut into windows that do not overlap, each window is read from an empty context, and
 * the mean runs over all tokens predicted, window - 1 of each. A window is 2048 tokens, or the model's
 * context where that is shorter; a text shorter than one window is one window. What is left at the end
 * is not used. */
#include "clock.h"
#include "json.h"
#include "options.h"
#include "sq.h"
#include "terminal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GPTQ_WINDOW = 2048, MAX_TEXT_BYTES = 1 << 30, LOGITS_BYTES = 64 << 20 };

static const char tool_name[] = "sq-eval";

typedef struct evaluation {
    const sq_model *model;
    sq_session *session;
    const char *model_path, *text_path;
    sq_model_info info;
    sq_token *tokens; /* [n_tokens], of the whole text */
    size_t n_tokens;
    size_t n_window, n_windows;
    float *logits; /* [n_chunk, n_vocab] */
    size_t n_chunk;
    size_t n_predicted;
    double sum, sum_of_squares; /* of the negative log-probabilities, in nats */
    double start;
} evaluation;

static double perplexity(const evaluation *e) {
    return exp(e->sum / (double)e->n_predicted);
}

/* Of the perplexity, from the spread of the log-probabilities: the derivative of exp is exp. */
static double standard_error(const evaluation *e) {
    double n = (double)e->n_predicted, mean = e->sum / n;
    double variance = fmax(0, e->sum_of_squares / n - mean * mean);
    return n > 1 ? perplexity(e) * sqrt(variance / (n - 1)) : NAN;
}

static void say_progress(const evaluation *e, size_t n_done) {
    if (!isatty(STDERR_FILENO)) {
        return;
    }
    double passed = clock_seconds() - e->start;
    double left = passed / (double)n_done * (double)(e->n_windows - n_done);
    fprintf(stderr, "\rwindow %zu of %zu, perplexity %.4f, %d:%02d left \033[K", n_done, e->n_windows,
            perplexity(e), (int)(left / 60), (int)left % 60);
    if (n_done == e->n_windows) {
        fputs("\r\033[K", stderr);
    }
}

static sq_status evaluate_window(evaluation *e, const sq_token *window, sq_error *error) {
    sq_session_truncate(e->session, 0);
    for (size_t begin = 0; begin + 1 < e->n_window; begin += e->n_chunk) {
        size_t n = e->n_window - 1 - begin;
        n = n < e->n_chunk ? n : e->n_chunk;
        sq_status status = sq_session_append(e->session, window + begin, n, e->logits, error);
        if (status) {
            return status;
        }
        for (size_t i = 0; i < n; i++) {
            double nll =
                -sq_log_probability(e->logits + i * e->info.n_vocab, e->info.n_vocab, window[begin + i + 1]);
            e->sum += nll;
            e->sum_of_squares += nll * nll;
        }
        e->n_predicted += n;
    }
    return SQ_OK;
}

static sq_status evaluate(evaluation *e, sq_error *error) {
    e->start = clock_seconds();
    for (size_t i = 0; i < e->n_windows; i++) {
        sq_status status = evaluate_window(e, e->tokens + i * e->n_window, error);
        if (status) {
            return status;
        }
        say_progress(e, i + 1);
    }
    return SQ_OK;
}

/* ---- preparation ----------------------------------------------------------------------------- */

static bool read_tokens(evaluation *e) {
    text content = {0};
    FILE *file = fopen(e->text_path, "r");
    bool valid = file && text_read(&content, file, MAX_TEXT_BYTES);
    if (!valid) {
        tool_complain(tool_name, "cannot read %s: %s", e->text_path, strerror(errno));
    }
    if (file) {
        fclose(file);
    }
    sq_error error;
    const char *bytes = text_string(&content);
    valid = valid && tool_check(tool_name,
                                sq_tokenize(e->model, bytes, content.n, SQ_TOKENIZE_BOS, NULL, 0,
                                            &e->n_tokens, &error),
                                &error);
    if (valid) {
        e->tokens = memory_resize(NULL, e->n_tokens, sizeof *e->tokens);
        valid = tool_check(tool_name,
                           sq_tokenize(e->model, bytes, content.n, SQ_TOKENIZE_BOS, e->tokens, e->n_tokens,
                                       &e->n_tokens, &error),
                           &error);
    }
    text_free(&content);
    return valid;
}

static bool cut_windows(evaluation *e, size_t n_ctx) {
    if (e->n_tokens < 2) {
        tool_complain(tool_name, "%s: expected 2 tokens of text or more, found %zu", e->text_path,
                      e->n_tokens);
        return false;
    }
    size_t longest = e->info.n_ctx_train < GPTQ_WINDOW ? e->info.n_ctx_train : GPTQ_WINDOW;
    e->n_window = n_ctx ? n_ctx : longest;
    e->n_window = e->n_window < e->n_tokens ? e->n_window : e->n_tokens;
    e->n_windows = e->n_tokens / e->n_window;
    e->n_chunk = LOGITS_BYTES / sizeof *e->logits / e->info.n_vocab;
    e->n_chunk = e->n_chunk < 1 ? 1 : e->n_chunk > e->n_window ? e->n_window : e->n_chunk;
    e->logits = memory_resize(NULL, e->n_chunk * e->info.n_vocab, sizeof *e->logits);
    return true;
}

/* ---- results --------------------------------------------------------------------------------- */

static void append_json(text *out, const evaluation *e) {
    json_writer w = {0};
    json_open(&w, NULL, '{');
    json_string(&w, "file", e->model_path);
    json_string(&w, "model", e->info.name);
    json_string(&w, "text", e->text_path);
    json_number(&w, "perplexity", perplexity(e));
    json_number(&w, "standard_error", standard_error(e));
    json_number(&w, "nats_per_token", e->sum / (double)e->n_predicted);
    json_u64(&w, "n_predicted", e->n_predicted);
    json_u64(&w, "n_windows", e->n_windows);
    json_u64(&w, "window_tokens", e->n_window);
    json_u64(&w, "text_tokens", e->n_tokens);
    json_number(&w, "bits_per_weight", e->info.bits_per_weight);
    json_number(&w, "seconds", clock_seconds() - e->start);
    json_string(&w, "cpu", e->info.cpu);
    json_string(&w, "prompt_arithmetic", e->info.prompt);
    json_u64(&w, "threads", sq_session_n_threads(e->session));
    json_close(&w, '}');
    *out = w.out;
}

static void append_summary(text *out, const evaluation *e) {
    text_printf(out, "perplexity %.4f ± %.4f\n", perplexity(e), standard_error(e));
    text_printf(out, "over %zu tokens predicted in %zu window%s of %zu, of %zu tokens of text; %.1f s\n",
                e->n_predicted, e->n_windows, e->n_windows == 1 ? "" : "s", e->n_window, e->n_tokens,
                clock_seconds() - e->start);
}

static int evaluate_text(evaluation *e, sq_session_options *options, bool json) {
    if (!read_tokens(e) || !cut_windows(e, options->n_ctx)) {
        return 1;
    }
    sq_error error;
    options->n_ctx = (uint32_t)e->n_window;
    if (!tool_check(tool_name, sq_session_create(e->model, options, &e->session, &error), &error) ||
        !tool_check(tool_name, evaluate(e, &error), &error)) {
        return 1;
    }
    text out = {0};
    (json ? append_json : append_summary)(&out, e);
    return tool_print(tool_name, &out);
}

int main(int argc, char **argv) {
    sq_model_options model_options = {0};
    sq_session_options session = {0};
    bool json = false;
    const option options[] = {
        {"--ctx", OPTION_U32, &session.n_ctx, 2, INT32_MAX, "TOKENS",
         "window; default: 2048, or what the model was trained for if that is less"},
        {"--threads", OPTION_U32, &session.n_threads, 1, 1024, "NUMBER", "default: one per processor core"},
        {"--kv", OPTION_CHOICE, &session.kv, 0, 0, "f16|q8|f32", "precision of the KV cache, default f16"},
        {"--exact", OPTION_FLAG, &model_options.exact, 0, 0, NULL,
         "prompts in f32 too, not in 16-bit fixed point"},
        {"--json", OPTION_FLAG, &json, 0, 0, NULL, "print JSON"},
    };
    const tool t = {
        .name = tool_name,
        .about = "Measures a model's perplexity over a text file: one tokenization, windows that do not\n"
                 "overlap, the mean over all tokens predicted (GPTQ's protocol). Lower is better.",
        .arguments = "MODEL.sq.gguf TEXT",
        .n_arguments = 2,
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const char *paths[2];
    int code = options_parse(&t, argc, argv, paths);
    if (code >= 0) {
        return code;
    }
    tool_ignore_closed_pipes();
    sq_model *model;
    sq_error error;
    if (!tool_check(tool_name, sq_model_open(paths[0], &model_options, &model, &error), &error)) {
        return 1;
    }
    evaluation e = {.model = model, .model_path = paths[0], .text_path = paths[1]};
    sq_model_get_info(model, &e.info);
    code = evaluate_text(&e, &session, json);
    sq_session_free(e.session);
    free(e.tokens);
    free(e.logits);
    sq_model_close(model);
    return code;
}
