/* sq-bench: speed of a model, beside the speed of the machine's memory.
 *
 * Each round reads a prompt, memory, and generates, so that all three see the same state of the machine.
 * Prompt and generation both start from an empty context, as llama-bench has it. Tokens are pseudo-random
 * and the same for everyone, so that the hash of the last logits tells whether two builds compute the
 * same. Generation is given its tokens, and takes the largest logit of each. */
#include "bandwidth.h"
#include "clock.h"
#include "json.h"
#include "options.h"
#include "sq.h"
#include "terminal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char tool_name[] = "sq-bench";

/* One figure a round. */
typedef struct series {
    double *values; /* [n], sorted by series_sort */
    size_t n;
} series;

typedef struct bench {
    const sq_model *model;
    sq_session *session;
    const char *path, *kv;
    sq_model_info info;
    uint32_t n_prompt, n_generated, n_rounds;
    sq_token *tokens; /* [max(n_prompt, n_generated)] */
    bandwidth memory;
    series prompt, generation; /* tokens per second */
    series read;               /* bytes per second */
    uint64_t logits_hash;      /* of the prompt's last logits, then the generation's, in the last round */
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

/* What generating one token reads: all weights, and the KV cache at the middle of the generation. */
static double bytes_per_token(const bench *b) {
    return (double)(b->info.token_bytes + sq_model_kv_bytes(b->model, b->n_generated / 2, b->kv));
}

static double generation_bytes_per_second(const bench *b) {
    return bytes_per_token(b) * series_median(&b->generation);
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static uint32_t longest_run(const bench *b) {
    return b->n_prompt > b->n_generated ? b->n_prompt : b->n_generated;
}

/* Knuth's linear congruential generator (MMIX). */
static void fill_tokens(bench *b) {
    size_t n = longest_run(b);
    uint64_t state = 1;
    b->tokens = memory_resize(NULL, n, sizeof *b->tokens);
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b->tokens[i] = (sq_token)((state >> 33) % b->info.n_vocab);
    }
}

static sq_status run_prompt(bench *b, sq_error *error) {
    sq_session_truncate(b->session, 0);
    double start = clock_seconds();
    sq_status status = sq_session_append(b->session, b->tokens, b->n_prompt, NULL, error);
    series_add(&b->prompt, b->n_prompt / (clock_seconds() - start));
    if (status == SQ_OK) {
        b->logits_hash =
            hash_bytes(fnv_start, sq_session_logits(b->session), b->info.n_vocab * sizeof(float));
    }
    return status;
}

static sq_status run_generation(bench *b, sq_sampler *sampler, sq_error *error) {
    sq_session_truncate(b->session, 0);
    double start = clock_seconds();
    for (uint32_t i = 0; i < b->n_generated; i++) {
        sq_status status = sq_session_append(b->session, &b->tokens[i], 1, NULL, error);
        if (status) {
            return status;
        }
        sq_sampler_sample(sampler, sq_session_logits(b->session));
    }
    series_add(&b->generation, b->n_generated / (clock_seconds() - start));
    b->logits_hash =
        hash_bytes(b->logits_hash, sq_session_logits(b->session), b->info.n_vocab * sizeof(float));
    return SQ_OK;
}

/* The first run of a process meets pages that are not mapped yet; its figures do not count. */
static sq_status warm_up(bench *b, sq_error *error) {
    return sq_session_append(b->session, b->tokens, b->n_prompt, NULL, error);
}

static sq_status run_rounds(bench *b, sq_sampler *sampler, sq_error *error) {
    sq_status warm = warm_up(b, error);
    if (warm) {
        return warm;
    }
    for (uint32_t i = 0; i < b->n_rounds; i++) {
        if (isatty(STDERR_FILENO)) {
            fprintf(stderr, "\rround %u of %u \033[K", i + 1, b->n_rounds);
        }
        sq_status status = run_prompt(b, error);
        if (status == SQ_OK) {
            series_add(&b->read, bandwidth_measure(&b->memory));
            status = run_generation(b, sampler, error);
        }
        if (status) {
            return status;
        }
    }
    if (isatty(STDERR_FILENO)) {
        fputs("\r\033[K", stderr);
    }
    series_sort(&b->prompt);
    series_sort(&b->generation);
    series_sort(&b->read);
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

static void append_json(text *out, const bench *b) {
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
    json_u64(&w, "threads", sq_session_n_threads(b->session));
    json_string(&w, "kv", b->kv);
    json_u64(&w, "prompt_tokens", b->n_prompt);
    json_u64(&w, "generated_tokens", b->n_generated);
    json_u64(&w, "rounds", b->n_rounds);
    json_number(&w, "prompt_tokens_per_second", series_median(&b->prompt));
    json_number(&w, "generation_tokens_per_second", series_median(&b->generation));
    json_u64(&w, "weight_bytes_per_token", b->info.token_bytes);
    json_number(&w, "bytes_per_token", bytes_per_token(b));
    json_number(&w, "generation_gb_per_second", 1e-9 * generation_bytes_per_second(b));
    json_number(&w, "read_gb_per_second", 1e-9 * series_median(&b->read));
    json_number(&w, "read_share", generation_bytes_per_second(b) / series_median(&b->read));
    write_series(&w, "prompt_rounds", &b->prompt, 1);
    write_series(&w, "generation_rounds", &b->generation, 1);
    write_series(&w, "read_rounds", &b->read, 1e9);
    json_string(&w, "logits_hash", hash);
    json_close(&w, '}');
    *out = w.out;
}

static void append_series(text *out, const char *name, const series *s, double unit, const char *unit_name,
                          const char *remark) {
    text_printf(out, "%-12s %9.2f %s (%.2f … %.2f)%s\n", name, series_median(s) / unit, unit_name,
                s->values[0] / unit, s->values[s->n - 1] / unit, remark);
}

static void append_summary(text *out, const bench *b) {
    char processor[128], remark[64];
    bandwidth_processor(processor, sizeof processor);
    text_printf(out, "%s, %.2f bits a weight; %s, %s, %u threads; median (least … most) of %u rounds\n",
                b->info.name[0] ? b->info.name : b->path, b->info.bits_per_weight, processor, b->info.cpu,
                sq_session_n_threads(b->session), b->n_rounds);
    snprintf(remark, sizeof remark, ", %u tokens", b->n_prompt);
    append_series(out, "prompt", &b->prompt, 1, "tok/s", remark);
    snprintf(remark, sizeof remark, ", %u tokens", b->n_generated);
    append_series(out, "generation", &b->generation, 1, "tok/s", remark);
    append_series(out, "memory", &b->read, 1e9, "GB/s", " read with as many threads");
    text_printf(out, "%-12s %9.2f MB, of them %.2f MB weights\n", "a token reads", 1e-6 * bytes_per_token(b),
                1e-6 * (double)b->info.token_bytes);
    text_printf(out, "%-12s %9.2f GB/s, %.1f %% of the memory's\n", "that is",
                1e-9 * generation_bytes_per_second(b),
                100 * generation_bytes_per_second(b) / series_median(&b->read));
    text_printf(out, "%-12s %016llx\n", "logits hash", (unsigned long long)b->logits_hash);
}

/* ---- main ------------------------------------------------------------------------------------ */

static int measure(bench *b, bool json) {
    sq_sampler *sampler;
    sq_sampler_options greedy;
    sq_error error;
    sq_sampler_defaults(&greedy);
    greedy.temperature = 0;
    fill_tokens(b);
    if (!bandwidth_open(&b->memory, sq_session_n_threads(b->session))) {
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

int main(int argc, char **argv) {
    bench b = {.n_prompt = 512, .n_generated = 128, .n_rounds = 5, .kv = "f16"};
    sq_session_options session = {0};
    bool json = false;
    const option options[] = {
        {"-p", OPTION_U32, &b.n_prompt, 1, 1 << 24, "TOKENS", "length of the prompt, default 512"},
        {"-n", OPTION_U32, &b.n_generated, 1, 1 << 24, "TOKENS", "tokens generated, default 128"},
        {"-r", OPTION_U32, &b.n_rounds, 1, 10000, "ROUNDS", "how often, default 5"},
        {"--threads", OPTION_U32, &session.n_threads, 1, 1024, "NUMBER", "default: one per processor core"},
        {"--kv", OPTION_CHOICE, &b.kv, 0, 0, "f16|q8|f32", "precision of the KV cache, default f16"},
        {"--json", OPTION_FLAG, &json, 0, 0, NULL, "print JSON"},
    };
    const tool t = {
        .name = tool_name,
        .about = "Measures how fast a model reads a prompt and generates, and how fast the machine reads\n"
                 "memory. GB are 10^9 bytes. \"A token reads\" counts the weights, and the KV cache at\n"
                 "the middle of the generation.",
        .arguments = "MODEL.sq.gguf",
        .n_arguments = 1,
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    int code = options_parse(&t, argc, argv, &b.path);
    if (code >= 0) {
        return code;
    }
    tool_ignore_closed_pipes();
    sq_model *model;
    sq_error error;
    if (!tool_check(tool_name, sq_model_open(b.path, NULL, &model, &error), &error)) {
        return 1;
    }
    b.model = model;
    sq_model_get_info(model, &b.info);
    session.n_ctx = longest_run(&b);
    session.kv = b.kv;
    code = 1;
    if (tool_check(tool_name, sq_session_create(model, &session, &b.session, &error), &error)) {
        code = measure(&b, json);
    }
    bandwidth_close(&b.memory);
    sq_session_free(b.session);
    sq_model_close(model);
    free(b.tokens);
    free(b.prompt.values);
    free(b.generation.values);
    free(b.read.values);
    return code;
}
