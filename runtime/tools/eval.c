/* sq-eval: perplexity of models over a text, and their divergence from a reference.
 *
 * Two protocols cut the text, which is split into tokens once. Windows do not overlap, and each is read
 * from an empty context; what is left at the end is not used.
 *
 * - gptq (Frantar et al., arXiv 2210.17323, section 4, and their code): windows of 2048 tokens, all of a
 *   window's tokens but the first are predicted.
 * - llama.cpp (its perplexity tool): windows of 512 tokens, each beginning with the beginning-of-sequence
 *   token where the model was trained to see it; the second half is predicted.
 *
 * A window is no longer than the context the model was trained for; a text shorter than one window is one
 * window. A reference (eval/reference.h) holds windows of its own. */
#include "clock.h"
#include "eval/plot.h"
#include "eval/reference.h"
#include "eval/scores.h"
#include "json.h"
#include "options.h"
#include "placement.h"
#include "sq.h"
#include "terminal.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TEXT_BYTES = 1 << 30, LOGITS_BYTES = 64 << 20 };

static const char tool_name[] = "sq-eval";

typedef struct protocol {
    const char *name;
    uint32_t n_window;
    bool second_half; /* only that is predicted, behind a beginning-of-sequence token */
} protocol;

static const protocol gptq = {"gptq", 2048, false}, llama_cpp = {"llama.cpp", 512, true};

typedef struct settings {
    sq_model_options model;
    sq_session_options session; /* n_ctx: the window asked for, 0: the protocol's */
    const char *protocol, *save_reference;
    const char *plot, *peers; /* the picture to draw, and a file of points for it */
    uint32_t n_windows;       /* at most; 0: all */
    bool json;
} settings;

/* One model's evaluation. */
typedef struct evaluation {
    const settings *settings;
    size_t n_behind;                    /* models to come */
    const char *model_path, *text_path; /* the text may be a reference */
    sq_model *model;
    sq_session *session;
    sq_model_info info;
    reference *reference, *saved; /* or NULL */
    reference_shape shape;
    sq_token *tokens; /* [n_tokens], of the whole text; none where a reference has them */
    size_t n_tokens;
    sq_token *window; /* [n_window] */
    float *logits;    /* [n_chunk, n_vocab] */
    uint16_t *row;    /* [n_vocab] */
    size_t n_chunk;
    scores scores;
    double start, seconds;
    uint32_t n_threads;
} evaluation;

static const protocol *protocol_of(const reference_shape *s) {
    return s->n_first ? &llama_cpp : &gptq;
}

/* ---- evaluation ------------------------------------------------------------------------------ */

static const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void say_progress(const evaluation *e, size_t n_done) {
    if (!isatty(STDERR_FILENO)) {
        return;
    }
    size_t n_windows = e->shape.n_windows;
    double passed = clock_seconds() - e->start;
    double left = passed / (double)n_done * (double)(n_windows * (1 + e->n_behind) - n_done);
    fprintf(stderr, "\r%s: window %zu of %zu, perplexity %.4f, %d:%02d left%s \033[K",
            file_name(e->model_path), n_done, n_windows, scores_perplexity(&e->scores.nats), (int)(left / 60),
            (int)left % 60, e->n_behind ? " for all models" : "");
    if (n_done == n_windows) {
        fputs("\r\033[K", stderr);
    }
}

/* The beginning-of-sequence token, where the model was trained to see it first. */
static bool first_token(const sq_model *model, sq_token *token) {
    size_t n = 0;
    sq_error error;
    return sq_tokenize(model, "", 0, SQ_TOKENIZE_BOS, token, 1, &n, &error) == SQ_OK && n == 1;
}

static sq_status load_window(evaluation *e, size_t index, sq_error *error) {
    sq_status status = SQ_OK;
    if (e->reference) {
        status = reference_read_tokens(e->reference, e->window, error);
    } else {
        size_t n_window = e->shape.n_window;
        memcpy(e->window, e->tokens + index * n_window, n_window * sizeof *e->window);
        if (protocol_of(&e->shape)->second_half) {
            first_token(e->model, &e->window[0]);
        }
    }
    return status || !e->saved ? status : reference_write_tokens(e->saved, e->window, error);
}

static sq_status score_position(evaluation *e, const float *logits, sq_token next, sq_error *error) {
    sq_status status = SQ_OK;
    if (e->reference) {
        status = reference_read_row(e->reference, e->row, error);
    }
    if (!status && e->saved) {
        status = reference_write_logits(e->saved, logits, error);
    }
    if (!status) {
        scores_add(&e->scores, logits, e->reference ? e->row : NULL, e->info.n_vocab, next);
    }
    return status;
}

static sq_status evaluate_window(evaluation *e, sq_error *error) {
    size_t n_first = e->shape.n_first, n_vocab = e->info.n_vocab;
    sq_session_truncate(e->session, 0);
    sq_status status = SQ_OK;
    if (n_first > 0) {
        status = sq_session_append(e->session, e->window, n_first, NULL, error);
    }
    for (size_t begin = n_first; !status && begin + 1 < e->shape.n_window; begin += e->n_chunk) {
        size_t n = e->shape.n_window - 1 - begin;
        n = n < e->n_chunk ? n : e->n_chunk;
        status = sq_session_append(e->session, e->window + begin, n, e->logits, error);
        for (size_t i = 0; !status && i < n; i++) {
            status = score_position(e, e->logits + i * n_vocab, e->window[begin + i + 1], error);
        }
    }
    return status;
}

static sq_status evaluate(evaluation *e, sq_error *error) {
    e->start = clock_seconds();
    for (size_t i = 0; i < e->shape.n_windows; i++) {
        sq_status status = load_window(e, i, error);
        if (!status) {
            status = evaluate_window(e, error);
        }
        if (status) {
            return status;
        }
        say_progress(e, i + 1);
    }
    e->seconds = clock_seconds() - e->start;
    e->n_threads = sq_session_n_threads(e->session);
    return e->saved ? reference_commit(e->saved, error) : SQ_OK;
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

static bool cut_windows(evaluation *e) {
    const settings *s = e->settings;
    const protocol *p = strcmp(s->protocol, llama_cpp.name) == 0 ? &llama_cpp : &gptq;
    size_t n_least = p->second_half ? 3 : 2;
    if (e->n_tokens < n_least || (s->session.n_ctx && s->session.n_ctx < n_least)) {
        tool_complain(tool_name, "%s: expected %zu tokens of text or more in a window, found %zu",
                      e->text_path, n_least, s->session.n_ctx ? s->session.n_ctx : e->n_tokens);
        return false;
    }
    size_t n_window = p->n_window < e->info.n_ctx_train ? p->n_window : e->info.n_ctx_train;
    n_window = s->session.n_ctx ? s->session.n_ctx : n_window;
    n_window = n_window < e->n_tokens ? n_window : e->n_tokens;
    size_t n_windows = e->n_tokens / n_window;
    e->shape = (reference_shape){
        .n_vocab = e->info.n_vocab,
        .n_window = (uint32_t)n_window,
        .n_first = p->second_half ? (uint32_t)n_window / 2 : 0,
        .n_windows = (uint32_t)(s->n_windows && s->n_windows < n_windows ? s->n_windows : n_windows)};
    return true;
}

static bool open_reference(evaluation *e) {
    sq_error error;
    if (!tool_check(tool_name, reference_open(e->text_path, &e->reference, &error), &error)) {
        return false;
    }
    e->shape = *reference_get_shape(e->reference);
    if (e->shape.n_vocab != e->info.n_vocab) {
        tool_complain(tool_name, "%s has a vocabulary of %u tokens, the reference %s one of %u",
                      e->model_path, e->info.n_vocab, e->text_path, e->shape.n_vocab);
        return false;
    }
    e->n_tokens = (size_t)e->shape.n_window * e->shape.n_windows;
    e->row = memory_resize(NULL, e->info.n_vocab, sizeof *e->row);
    return true;
}

static char *unfinished; /* a file that an interrupted run leaves behind */

static void remove_unfinished(int signal_number) {
    unlink(unfinished);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static bool create_reference(evaluation *e) {
    sq_error error;
    if (!e->settings->save_reference) {
        return true;
    }
    if (!tool_check(tool_name, reference_create(e->settings->save_reference, &e->shape, &e->saved, &error),
                    &error)) {
        return false;
    }
    unfinished = memory_copy_string(reference_partial(e->saved));
    signal(SIGINT, remove_unfinished);
    signal(SIGTERM, remove_unfinished);
    return true;
}

static bool prepare(evaluation *e) {
    bool is_reference = reference_recognize(e->text_path);
    if (is_reference ? !open_reference(e) : !read_tokens(e) || !cut_windows(e)) {
        return false;
    }
    size_t n_rows = LOGITS_BYTES / sizeof *e->logits / e->info.n_vocab,
           n_scored = reference_n_scored(&e->shape);
    e->n_chunk = n_rows < 1 ? 1 : n_rows < n_scored ? n_rows : n_scored;
    e->logits = memory_resize(NULL, e->n_chunk * e->info.n_vocab, sizeof *e->logits);
    e->window = memory_resize(NULL, e->shape.n_window, sizeof *e->window);
    sq_session_options options = e->settings->session;
    options.n_ctx = e->shape.n_window;
    sq_error error;
    return tool_check(tool_name, sq_session_create(e->model, &options, &e->session, &error), &error) &&
           create_reference(e);
}

/* All but the model and the results. */
static void release(evaluation *e) {
    reference_close(e->reference);
    reference_close(e->saved);
    sq_session_free(e->session);
    free(e->tokens);
    free(e->window);
    free(e->logits);
    free(e->row);
}

static bool run(evaluation *e) {
    sq_error error;
    bool done = prepare(e) && tool_check(tool_name, evaluate(e, &error), &error);
    release(e);
    return done;
}

/* ---- results --------------------------------------------------------------------------------- */

static void write_divergence(json_writer *w, scores *s) {
    json_number(w, "reference_perplexity", scores_perplexity(&s->reference_nats));
    json_number(w, "kl_divergence", moments_mean(&s->divergence));
    json_number(w, "kl_standard_error", moments_standard_error(&s->divergence));
    json_number(w, "kl_median", scores_quantile(s, 0.5));
    json_number(w, "kl_99_percent", scores_quantile(s, 0.99));
    json_number(w, "top1_agreement", moments_mean(&s->top));
    json_number(w, "top1_standard_error", moments_standard_error(&s->top));
}

static void write_json(json_writer *w, evaluation *e) {
    json_open(w, NULL, '{');
    json_string(w, "file", e->model_path);
    json_string(w, "model", e->info.name);
    json_string(w, "text", e->text_path);
    json_string(w, "protocol", protocol_of(&e->shape)->name);
    json_number(w, "perplexity", scores_perplexity(&e->scores.nats));
    json_number(w, "standard_error", scores_perplexity_error(&e->scores.nats));
    json_number(w, "nats_per_token", moments_mean(&e->scores.nats));
    if (e->scores.divergence.n) {
        write_divergence(w, &e->scores);
    }
    json_u64(w, "n_predicted", e->scores.nats.n);
    json_u64(w, "n_windows", e->shape.n_windows);
    json_u64(w, "window_tokens", e->shape.n_window);
    json_u64(w, "text_tokens", e->n_tokens);
    json_number(w, "bits_per_weight", e->info.bits_per_weight);
    json_number(w, "seconds", e->seconds);
    json_string(w, "cpu", e->info.cpu);
    json_string(w, "prompt_arithmetic", e->info.prompt);
    placement_write(w, &e->info);
    json_u64(w, "threads", e->n_threads);
    json_close(w, '}');
}

/* An object, or an array of several. */
static void append_json(text *out, evaluation *all, size_t n) {
    json_writer w = {0};
    if (n > 1) {
        json_open(&w, NULL, '[');
    }
    for (size_t i = 0; i < n; i++) {
        write_json(&w, &all[i]);
    }
    if (n > 1) {
        json_close(&w, ']');
    }
    *out = w.out;
}

static void append_row(text *out, evaluation *e, int width) {
    scores *s = &e->scores;
    text_printf(out, "%-*s  %5.2f  %10.4f ± %7.4f", width, file_name(e->model_path), e->info.bits_per_weight,
                scores_perplexity(&s->nats), scores_perplexity_error(&s->nats));
    if (s->divergence.n) {
        text_printf(out, "  %8.5f ± %7.5f  %8.5f  %8.5f  %6.2f ± %4.2f %%", moments_mean(&s->divergence),
                    moments_standard_error(&s->divergence), scores_quantile(s, 0.5), scores_quantile(s, 0.99),
                    100 * moments_mean(&s->top), 100 * moments_standard_error(&s->top));
    }
    text_append_string(out, "\n");
}

static void append_table(text *out, evaluation *all, size_t n) {
    int width = 5;
    for (size_t i = 0; i < n; i++) {
        int length = (int)strlen(file_name(all[i].model_path));
        width = length > width ? length : width;
    }
    bool compared = all[0].scores.divergence.n > 0;
    text_printf(out, "%-*s   bits           perplexity", width, "model");
    text_append_string(out, compared ? "       KL divergence    median      99 %           top-1\n" : "\n");
    for (size_t i = 0; i < n; i++) {
        append_row(out, &all[i], width);
    }
    const reference_shape *s = &all[0].shape;
    text_printf(out, "over %zu tokens predicted in %u window%s of %u, %s's protocol; %.1f s\n",
                all[0].scores.nats.n, s->n_windows, s->n_windows == 1 ? "" : "s", s->n_window,
                protocol_of(s)->name, all[n - 1].seconds + (all[n - 1].start - all[0].start));
    if (compared) {
        text_printf(out, "nats, against the reference, whose perplexity is %.4f\n",
                    scores_perplexity(&all[0].scores.reference_nats));
    }
    for (size_t i = 0; i < n; i++) {
        if (all[i].info.gpu_layers) {
            text_printf(out, "%s on ", file_name(all[i].model_path));
            placement_append(out, &all[i].info, all[i].n_threads);
            text_append_string(out, "\n");
        }
    }
}

/* ---- main ------------------------------------------------------------------------------------ */

static int evaluate_all(evaluation *all, size_t n, const settings *s) {
    sq_error error;
    if (s->plot && !plot_check(tool_name, s->plot, s->peers)) {
        return 1;
    }
    for (size_t i = 0; i < n; i++) { /* all of them first, so that a wrong path costs no time */
        if (!tool_check(tool_name, sq_model_open(all[i].model_path, &s->model, &all[i].model, &error),
                        &error)) {
            return 1;
        }
        sq_model_get_info(all[i].model, &all[i].info);
    }
    for (size_t i = 0; i < n; i++) {
        if (!run(&all[i])) {
            return 1;
        }
    }
    text out = {0};
    (s->json ? append_json : append_table)(&out, all, n);
    int code = tool_print(tool_name, &out);
    text json = {0};
    if (s->plot) {
        append_json(&json, all, n);
        code = plot_draw(tool_name, s->plot, s->peers, &json) ? code : 1;
    }
    text_free(&json);
    return code;
}

/* The combinations that make no sense. */
static bool check_settings(const settings *s, const char *text_path, size_t n_models) {
    if (s->save_reference && n_models > 1) {
        tool_complain(tool_name, "--save-reference: expected one model, found %zu", n_models);
        return false;
    }
    if (s->peers && !s->plot) {
        tool_complain(tool_name, "--peers: expected --plot, which draws them");
        return false;
    }
    if (reference_recognize(text_path) && (s->protocol || s->n_windows || s->session.n_ctx)) {
        tool_complain(tool_name,
                      "%s is a reference and says protocol and windows itself; leave --protocol, "
                      "--windows and --ctx out",
                      text_path);
        return false;
    }
    return true;
}

int main(int argc, char **argv) {
    settings s = {0};
    size_t n_paths;
    const option options[] = {
        {"--protocol", OPTION_CHOICE, &s.protocol, 0, 0, "gptq|llama.cpp",
         "windows of 2048, all tokens scored (default); or of 512, the second half"},
        {"--ctx", OPTION_U32, &s.session.n_ctx, 2, INT32_MAX, "TOKENS",
         "window; default: the protocol's, or what the model was trained for if that is less"},
        {"--windows", OPTION_U32, &s.n_windows, 1, INT32_MAX, "NUMBER",
         "only the first so many; default: all"},
        {"--save-reference", OPTION_TEXT, &s.save_reference, 0, 0, "FILE",
         "keep this model's probabilities, to compare others with"},
        {"--threads", OPTION_U32, &s.session.n_threads, 1, 1024, "NUMBER", "default: one per processor core"},
        {"--kv", OPTION_CHOICE, &s.session.kv, 0, 0, "f16|q8|f32", "precision of the KV cache, default f16"},
        {"--exact", OPTION_FLAG, &s.model.exact, 0, 0, NULL, "prompts in f32 too, not in 16-bit fixed point"},
        placement_device(&s.model),
        placement_layers(&s.model),
        {"--json", OPTION_FLAG, &s.json, 0, 0, NULL, "print JSON"},
        {"--plot", OPTION_TEXT, &s.plot, 0, 0, "FILE.png", "draw quality against true bits, with matplotlib"},
        {"--peers", OPTION_TEXT, &s.peers, 0, 0, "FILE.json",
         "points of others, for --plot: what --json prints, or as README.md says"},
    };
    const tool t = {
        .name = tool_name,
        .about =
            "Measures the perplexity of models over a text file; lower is better. In place of the text may\n"
            "stand a reference that --save-reference made of it (from a Hugging Face model: python -m\n"
            "sq_convert.reference): then also how far the models diverge from it.",
        .arguments = "MODEL.sq.gguf... TEXT|REFERENCE",
        .n_arguments = 2,
        .n_found = &n_paths,
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const char **paths = memory_resize(NULL, (size_t)argc, sizeof *paths);
    int code = options_parse(&t, argc, argv, paths);
    size_t n = code < 0 ? n_paths - 1 : 0;
    if (code < 0 && !check_settings(&s, paths[n], n)) {
        code = 2;
    }
    s.protocol = s.protocol ? s.protocol : gptq.name;
    s.model.n_ctx = s.session.n_ctx;
    s.model.kv = s.session.kv;
    evaluation *all = memory_resize(NULL, n, sizeof *all);
    for (size_t i = 0; i < n; i++) {
        all[i] = (evaluation){
            .settings = &s, .n_behind = n - 1 - i, .model_path = paths[i], .text_path = paths[n]};
    }
    if (code < 0) {
        tool_ignore_closed_pipes();
        code = evaluate_all(all, n, &s);
    }
    for (size_t i = 0; i < n; i++) {
        scores_free(&all[i].scores);
        sq_model_close(all[i].model);
    }
    free(all);
    free(paths);
    free(unfinished);
    return code;
}
