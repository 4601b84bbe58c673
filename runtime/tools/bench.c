/* sq-bench: speed of a model, beside the speed of the machine's memory.
 *
 * Each round measures every case and memory once, so that all see the same state of the machine. A case is a
 * prompt from an empty context, as llama-bench has it, a generation, or runs of several tokens at once, as
 * guessed tokens are verified; the latter two go on from a context of some depth. Tokens are pseudo-random
 * and the same for everyone, so that the hash of the last logits tells whether two builds compute the
 * same. Generation is given its tokens, and takes the largest logit of each. */
#include "bandwidth.h"
#include "clock.h"
#include "json.h"
#include "options.h"
#include "placement.h"
#include "sq.h"
#include "terminal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BATCH_RUNS = 8, MAX_TIMES = 16 };

static const char tool_name[] = "sq-bench";

/* One figure a round. */
typedef struct series {
    double *values; /* [n], sorted by series_sort */
    size_t n;
} series;

typedef enum case_kind { CASE_PROMPT, CASE_GENERATION, CASE_BATCH } case_kind;

static const char *const kind_names[] = {"prompt", "generation", "batch"};

typedef struct bench_case {
    case_kind kind;
    uint32_t n_tokens; /* of the prompt, generated, of one run */
    uint32_t depth;    /* tokens of context before them */
    uint32_t n_threads;
    sq_session *session;
    series rate;             /* tokens per second */
    double times[MAX_TIMES]; /* seconds of each kind of operation, of all rounds */
} bench_case;

typedef struct bench {
    const sq_model *model;
    const char *path, *kv;
    sq_model_info info;
    u32_list prompts, generated, depths, batches, threads;
    uint32_t n_rounds;
    bool profile;
    sq_token *tokens; /* as many as the longest context has */
    float *logits;    /* [largest batch, n_vocab] */
    bandwidth memory;
    series read[OPTION_LIST]; /* bytes per second, of each thread count */
    bench_case *cases;
    size_t n_cases;
    sq_session **sessions;
    size_t n_sessions;
    uint64_t
        logits_hash; /* of the first prompt's last logits, then the first generation's, in the last round */
} bench;

/* ---- figures --------------------------------------------------------------------------------- */

static void series_add(series *s, double value) {
    s->values = memory_resize(s->values, s->n + 1, sizeof *s->values);
    s->values[s->n++] = value;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void series_sort(series *s) {
    qsort(s->values, s->n, sizeof *s->values, compare);
}

static double series_median(const series *s) {
    return 0.5 * (s->values[(s->n - 1) / 2] + s->values[s->n / 2]);
}

static const uint64_t fnv_start = 0xcbf29ce484222325u;

/* FNV-1a (Fowler, Noll, Vo), 64 bits; `hash` is that of what came before, at first fnv_start. */
static uint64_t hash_bytes(uint64_t hash, const void *data, size_t n_bytes) {
    const unsigned char *bytes = data;
    for (size_t i = 0; i < n_bytes; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    return hash;
}

/* What generating one token, or one run of a batch, reads: all weights, and the KV cache in the middle. */
static double bytes_read(const bench *b, const bench_case *c) {
    uint32_t n = c->kind == CASE_GENERATION ? c->n_tokens : BATCH_RUNS * c->n_tokens;
    return (double)(b->info.token_bytes + sq_model_kv_bytes(b->model, c->depth + n / 2, b->kv));
}

static double bytes_per_second(const bench *b, const bench_case *c) {
    double n_runs = series_median(&c->rate) / (c->kind == CASE_BATCH ? c->n_tokens : 1);
    return bytes_read(b, c) * n_runs;
}

static const series *read_of(const bench *b, const bench_case *c) {
    size_t i = 0;
    while (b->threads.values[i] != c->n_threads) {
        i++;
    }
    return &b->read[i];
}

static const bench_case *first_of(const bench *b, case_kind kind) {
    const bench_case *c = b->cases;
    while (c->kind != kind) {
        c++;
    }
    return c;
}

/* ---- cases ----------------------------------------------------------------------------------- */

static uint32_t largest(const u32_list *list) {
    uint32_t most = 0;
    for (size_t i = 0; i < list->n; i++) {
        most = list->values[i] > most ? list->values[i] : most;
    }
    return most;
}

/* Room behind the depth for the longest generation and batch. */
static uint32_t n_behind(const bench *b) {
    uint32_t batches = BATCH_RUNS * largest(&b->batches), generated = largest(&b->generated);
    return batches > generated ? batches : generated;
}

/* Knuth's linear congruential generator (MMIX). */
static void fill_tokens(bench *b) {
    size_t n = largest(&b->depths) + n_behind(b), n_prompt = largest(&b->prompts);
    n = n > n_prompt ? n : n_prompt;
    uint64_t state = 1;
    b->tokens = memory_resize(NULL, n, sizeof *b->tokens);
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b->tokens[i] = (sq_token)((state >> 33) % b->info.n_vocab);
    }
}

/* A session that holds `depth` tokens of context and `n_more` behind them, which it has computed once: the
 * first run of a process meets pages that are not mapped yet, and its figures do not count. */
static sq_status open_session(bench *b, uint32_t n_threads, uint32_t depth, uint32_t n_more,
                              sq_session **session, sq_error *error) {
    const sq_session_options options = {
        .n_ctx = depth + n_more, .n_threads = n_threads, .kv = b->kv, .profile = b->profile};
    sq_status status = sq_session_create(b->model, &options, session, error);
    if (status) {
        return status;
    }
    b->sessions = memory_resize(b->sessions, b->n_sessions + 1, sizeof *b->sessions);
    b->sessions[b->n_sessions++] = *session;
    return sq_session_append(*session, b->tokens, depth + n_more, NULL, error);
}

static void add_cases(bench *b, const u32_list *list, bench_case like) {
    b->cases = memory_resize(b->cases, b->n_cases + list->n, sizeof *b->cases);
    for (size_t i = 0; i < list->n; i++) {
        b->cases[b->n_cases] = like;
        b->cases[b->n_cases++].n_tokens = list->values[i];
    }
}

static sq_status make_cases(bench *b, sq_error *error) {
    for (size_t t = 0; t < b->threads.n; t++) {
        bench_case c = {.kind = CASE_PROMPT, .n_threads = b->threads.values[t]};
        sq_status status = open_session(b, c.n_threads, 0, largest(&b->prompts), &c.session, error);
        if (status) {
            return status;
        }
        b->threads.values[t] = c.n_threads = sq_session_n_threads(c.session);
        add_cases(b, &b->prompts, c);
        for (size_t d = 0; d < b->depths.n; d++) {
            c.depth = b->depths.values[d];
            status = open_session(b, c.n_threads, c.depth, n_behind(b), &c.session, error);
            if (status) {
                return status;
            }
            c.kind = CASE_GENERATION;
            add_cases(b, &b->generated, c);
            c.kind = CASE_BATCH;
            add_cases(b, &b->batches, c);
        }
    }
    return SQ_OK;
}

/* ---- rounds ---------------------------------------------------------------------------------- */

/* Adds what the session's clocks moved on by since they showed `before`. */
static void add_times(bench_case *c, const double *before) {
    size_t n;
    const sq_time *times = sq_session_times(c->session, &n);
    for (size_t i = 0; i < n; i++) {
        c->times[i] += times[i].seconds - before[i];
    }
}

static void read_times(const bench_case *c, double *seconds) {
    size_t n;
    const sq_time *times = sq_session_times(c->session, &n);
    for (size_t i = 0; i < n; i++) {
        seconds[i] = times[i].seconds;
    }
}

/* Appends n_runs times n_tokens tokens; of a generation the sampler takes the largest logit each time. */
static sq_status run_case(bench *b, bench_case *c, sq_sampler *sampler, sq_error *error) {
    uint32_t n_runs = c->kind == CASE_GENERATION ? c->n_tokens : c->kind == CASE_BATCH ? BATCH_RUNS : 1;
    uint32_t n_tokens = c->kind == CASE_GENERATION ? 1 : c->n_tokens;
    double before[MAX_TIMES];
    sq_session_truncate(c->session, c->depth);
    read_times(c, before);
    double start = clock_seconds();
    for (uint32_t i = 0; i < n_runs; i++) {
        sq_status status = sq_session_append(c->session, b->tokens + c->depth + i * n_tokens, n_tokens,
                                             c->kind == CASE_BATCH ? b->logits : NULL, error);
        sq_token largest_logit;
        if (!status && c->kind == CASE_GENERATION) {
            status = sq_session_sample(c->session, sampler, &largest_logit, error);
        }
        if (status) {
            return status;
        }
    }
    series_add(&c->rate, n_runs * n_tokens / (clock_seconds() - start));
    add_times(c, before);
    return SQ_OK;
}

static void hash_logits(bench *b, const bench_case *c) {
    bool first = c == first_of(b, CASE_PROMPT);
    const float *logits = sq_session_logits(c->session);
    if (logits && (first || c == first_of(b, CASE_GENERATION))) {
        b->logits_hash =
            hash_bytes(first ? fnv_start : b->logits_hash, logits, b->info.n_vocab * sizeof *logits);
    }
}

static void measure_memory(bench *b, size_t i_threads) {
    b->memory.n_threads = b->threads.values[i_threads];
    series_add(&b->read[i_threads], bandwidth_measure(&b->memory));
}

static sq_status run_round(bench *b, sq_sampler *sampler, sq_error *error) {
    size_t i_threads = 0;
    for (bench_case *c = b->cases; c < b->cases + b->n_cases; c++) {
        while (b->threads.values[i_threads] != c->n_threads) {
            measure_memory(b, i_threads++);
        }
        sq_status status = run_case(b, c, sampler, error);
        if (status) {
            return status;
        }
        hash_logits(b, c);
    }
    measure_memory(b, i_threads);
    return SQ_OK;
}

static sq_status run_rounds(bench *b, sq_sampler *sampler, sq_error *error) {
    for (uint32_t i = 0; i < b->n_rounds; i++) {
        if (isatty(STDERR_FILENO)) {
            fprintf(stderr, "\rround %u of %u \033[K", i + 1, b->n_rounds);
        }
        sq_status status = run_round(b, sampler, error);
        if (status) {
            return status;
        }
    }
    if (isatty(STDERR_FILENO)) {
        fputs("\r\033[K", stderr);
    }
    for (size_t i = 0; i < b->n_cases; i++) {
        series_sort(&b->cases[i].rate);
    }
    for (size_t i = 0; i < b->threads.n; i++) {
        series_sort(&b->read[i]);
    }
    return SQ_OK;
}

/* ---- results --------------------------------------------------------------------------------- */

static void write_series(json_writer *w, const char *key, const series *s, double unit) {
    json_open(w, key, '[');
    for (size_t i = 0; i < s->n; i++) {
        json_number(w, NULL, s->values[i] / unit);
    }
    json_close(w, ']');
}

/* Milliseconds a token of one kind of operation. */
static double time_per_token(const bench *b, const bench_case *c, size_t i) {
    double n_runs = c->kind == CASE_BATCH ? BATCH_RUNS : 1;
    return 1e3 * c->times[i] / (n_runs * c->n_tokens * b->n_rounds);
}

/* Of the memory's speed; null where a GPU reads from a memory of its own. */
static void json_share(json_writer *w, const bench *b, const bench_case *c) {
    if (b->info.gpu_layers) {
        json_string(w, "read_share", NULL);
    } else {
        json_number(w, "read_share", bytes_per_second(b, c) / series_median(read_of(b, c)));
    }
}

static void write_case(json_writer *w, const bench *b, const bench_case *c) {
    json_open(w, NULL, '{');
    json_string(w, "kind", kind_names[c->kind]);
    json_u64(w, "tokens", c->n_tokens);
    json_u64(w, "depth", c->depth);
    json_u64(w, "threads", c->n_threads);
    json_number(w, "tokens_per_second", series_median(&c->rate));
    write_series(w, "rounds", &c->rate, 1);
    if (c->kind != CASE_PROMPT) {
        json_number(w, "bytes_read", bytes_read(b, c));
        json_number(w, "gb_per_second", 1e-9 * bytes_per_second(b, c));
        json_share(w, b, c);
    }
    if (b->profile) {
        size_t n;
        const sq_time *times = sq_session_times(c->session, &n);
        json_open(w, "ms_per_token", '{');
        for (size_t i = 0; i < n; i++) {
            json_number(w, times[i].kind, time_per_token(b, c, i));
        }
        json_close(w, '}');
    }
    json_close(w, '}');
}

static void append_json(text *out, const bench *b) {
    const bench_case *prompt = first_of(b, CASE_PROMPT), *generation = first_of(b, CASE_GENERATION);
    json_writer w = {0};
    char hash[17], processor[128];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)b->logits_hash);
    bandwidth_processor(processor, sizeof processor);
    json_open(&w, NULL, '{');
    json_string(&w, "file", b->path);
    json_string(&w, "model", b->info.name);
    json_number(&w, "bits_per_weight", b->info.bits_per_weight);
    json_string(&w, "processor", processor);
    json_string(&w, "cpu", b->info.cpu);
    json_string(&w, "prompt_arithmetic", b->info.prompt);
    placement_write(&w, &b->info);
    json_u64(&w, "threads", prompt->n_threads);
    json_string(&w, "kv", b->kv);
    json_u64(&w, "prompt_tokens", prompt->n_tokens);
    json_u64(&w, "generated_tokens", generation->n_tokens);
    json_u64(&w, "rounds", b->n_rounds);
    json_number(&w, "prompt_tokens_per_second", series_median(&prompt->rate));
    json_number(&w, "generation_tokens_per_second", series_median(&generation->rate));
    json_u64(&w, "weight_bytes_per_token", b->info.token_bytes);
    json_number(&w, "bytes_per_token", bytes_read(b, generation));
    json_number(&w, "generation_gb_per_second", 1e-9 * bytes_per_second(b, generation));
    json_number(&w, "read_gb_per_second", 1e-9 * series_median(&b->read[0]));
    json_share(&w, b, generation);
    write_series(&w, "prompt_rounds", &prompt->rate, 1);
    write_series(&w, "generation_rounds", &generation->rate, 1);
    write_series(&w, "read_rounds", &b->read[0], 1e9);
    json_string(&w, "logits_hash", hash);
    json_open(&w, "cases", '[');
    for (size_t i = 0; i < b->n_cases; i++) {
        write_case(&w, b, &b->cases[i]);
    }
    json_close(&w, ']');
    json_close(&w, '}');
    *out = w.out;
}

static void append_case(text *out, const bench *b, const bench_case *c) {
    const series *s = &c->rate;
    text_printf(out, "%-10s %6u %6u %7u %9.2f  (%.2f … %.2f)", kind_names[c->kind], c->n_tokens, c->depth,
                c->n_threads, series_median(s), s->values[0], s->values[s->n - 1]);
    if (c->kind != CASE_PROMPT) {
        text_printf(out, "  %.2f MB, %.2f GB/s", 1e-6 * bytes_read(b, c), 1e-9 * bytes_per_second(b, c));
    }
    if (c->kind != CASE_PROMPT && !b->info.gpu_layers) {
        text_printf(out, ", %.1f %% of the memory's",
                    100 * bytes_per_second(b, c) / series_median(read_of(b, c)));
    }
    text_append_string(out, "\n");
    size_t n;
    const sq_time *times = sq_session_times(c->session, &n);
    for (size_t i = 0; b->profile && i < n; i++) {
        double all = 1e3 / series_median(s), part = time_per_token(b, c, i);
        if (part > 0) {
            text_printf(out, "    %-18s %9.4f ms a token, %5.1f %%\n", times[i].kind, part, 100 * part / all);
        }
    }
}

static void append_summary(text *out, const bench *b) {
    char processor[128];
    bandwidth_processor(processor, sizeof processor);
    const sq_model_info *info = &b->info;
    text_printf(out, "%s, %.2f bits a weight; ", info->name[0] ? info->name : b->path, info->bits_per_weight);
    placement_append_gpu(out, info);
    text_printf(out, "%s%s", info->gpu_layers ? "; " : "", processor);
    if (info->gpu_layers < info->n_layers) {
        text_printf(out, ", %s, prompts in %s", info->cpu, info->prompt);
    }
    text_printf(out, ", %s cache; median (least … most) of %u rounds\n", b->kv, b->n_rounds);
    text_append_string(out, "           tokens  depth threads     tok/s\n");
    for (size_t i = 0; i < b->n_cases; i++) {
        append_case(out, b, &b->cases[i]);
    }
    for (size_t i = 0; i < b->threads.n; i++) {
        const series *s = &b->read[i];
        text_printf(out, "%-24s %7u %9.2f GB/s (%.2f … %.2f)\n", "memory", b->threads.values[i],
                    1e-9 * series_median(s), 1e-9 * s->values[0], 1e-9 * s->values[s->n - 1]);
    }
    text_printf(out, "%-10s %016llx\n", "logits", (unsigned long long)b->logits_hash);
}

/* ---- main ------------------------------------------------------------------------------------ */

static int measure(bench *b, bool json) {
    sq_sampler *sampler;
    sq_sampler_options greedy;
    sq_error error;
    sq_sampler_defaults(&greedy);
    greedy.temperature = 0;
    fill_tokens(b);
    b->logits = memory_resize(NULL, (size_t)largest(&b->batches) * b->info.n_vocab + 1, sizeof *b->logits);
    if (!tool_check(tool_name, make_cases(b, &error), &error)) {
        return 1;
    }
    if (!bandwidth_open(&b->memory, 1)) {
        tool_complain(tool_name, "no memory for the %d MB that measure its speed", BANDWIDTH_BYTES >> 20);
        return 1;
    }
    if (!tool_check(tool_name, sq_sampler_create(b->model, &greedy, &sampler, &error), &error)) {
        return 1;
    }
    bool measured = tool_check(tool_name, run_rounds(b, sampler, &error), &error);
    sq_sampler_free(sampler);
    if (!measured) {
        return 1;
    }
    text out = {0};
    (json ? append_json : append_summary)(&out, b);
    return tool_print(tool_name, &out);
}

static void bench_free(bench *b) {
    bandwidth_close(&b->memory);
    for (size_t i = 0; i < b->n_sessions; i++) {
        sq_session_free(b->sessions[i]);
    }
    for (size_t i = 0; i < b->n_cases; i++) {
        free(b->cases[i].rate.values);
    }
    for (size_t i = 0; i < OPTION_LIST; i++) {
        free(b->read[i].values);
    }
    free(b->sessions);
    free(b->cases);
    free(b->tokens);
    free(b->logits);
}

int main(int argc, char **argv) {
    bench b = {.prompts = {{512}, 1}, .generated = {{128}, 1}, .depths = {{0}, 1}, .threads = {{0}, 1}};
    b.n_rounds = 5;
    b.kv = "f16";
    sq_model_options model_options = {0};
    bool json = false;
    const option options[] = {
        {"-p", OPTION_U32S, &b.prompts, 1, 1 << 24, "TOKENS", "length of the prompt, default 512"},
        {"-n", OPTION_U32S, &b.generated, 1, 1 << 24, "TOKENS", "tokens generated, default 128"},
        {"-d", OPTION_U32S, &b.depths, 0, 1 << 24, "TOKENS", "context before them, default 0"},
        {"--batch", OPTION_U32S, &b.batches, 1, 1 << 16, "TOKENS",
         "tokens that are run at once, default none"},
        {"-r", OPTION_U32, &b.n_rounds, 1, 10000, "ROUNDS", "how often, default 5"},
        {"--threads", OPTION_U32S, &b.threads, 1, 1024, "NUMBER", "default: one per processor core"},
        {"--kv", OPTION_CHOICE, &b.kv, 0, 0, "f16|q8|f32", "precision of the KV cache, default f16"},
        {"--exact", OPTION_FLAG, &model_options.exact, 0, 0, NULL,
         "prompts in f32 too, not in 16-bit fixed point"},
        placement_device(&model_options),
        placement_layers(&model_options),
        {"--profile", OPTION_FLAG, &b.profile, 0, 0, NULL, "show where the time goes, by kind of operation"},
        {"--json", OPTION_FLAG, &json, 0, 0, NULL, "print JSON"},
    };
    const tool t = {
        .name = tool_name,
        .about =
            "Measures how fast a model reads a prompt and generates, and how fast the machine reads\n"
            "memory. TOKENS and NUMBER may be lists, \"1,2,4\": all combinations are measured. The MB\n"
            "(10^6 bytes) are what a token or a batch reads: the weights, and the KV cache at the middle\n"
            "of the generation.",
        .arguments = "MODEL.sq.gguf",
        .n_arguments = 1,
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    int code = options_parse(&t, argc, argv, &b.path);
    if (code >= 0) {
        return code;
    }
    tool_ignore_closed_pipes();
    model_options.kv = b.kv;
    sq_model *model;
    sq_error error;
    if (!tool_check(tool_name, sq_model_open(b.path, &model_options, &model, &error), &error)) {
        return 1;
    }
    b.model = model;
    sq_model_get_info(model, &b.info);
    code = measure(&b, json);
    bench_free(&b);
    sq_model_close(model);
    return code;
}
