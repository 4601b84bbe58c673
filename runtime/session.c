/* A session: one timeline of tokens, its KV cache, its threads and all memory a run needs. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device.h"
#include "lookup.h"
#include "profile.h"
#include "sampler.h"
#include "status.h"

enum { N_ROWS = 1 + SQ_LOOKUP_TOKENS };

struct sq_session {
    const sq_model *model;
    uint32_t n_ctx;
    uint32_t n_tokens;
    bool has_logits;
    atomic_bool cancel;
    sq_pool *pool;
    sq_kv kv; /* of the CPU's layers */
    sq_run run;
    sq_device_session *device; /* of the others; NULL where there are none */
    sq_profile profile;
    bool profiles;
    /* Of what lies ahead of the timeline: tokens that were guessed and computed with the last one. They stand
     * in `tokens` and in the cache as if they were part of it. */
    bool looks_up;
    sq_lookup lookup;
    uint32_t n_guessed, n_ahead; /* at first; those that were not appended yet */
    sq_token *tokens;            /* [n_ctx] */
    float *logits;               /* [N_ROWS, n_vocab]: row n_guessed - n_ahead is that after the last token */
    uint32_t here;               /* bit r: row r is there; else the device has it yet */
    sq_token greedy[N_ROWS];     /* the largest logit of each row that the device has */
    void *memory;                /* all buffers in one piece, mapped so that untouched cache costs nothing */
    size_t memory_bytes;
};

static size_t round_up(size_t n) {
    return (n + 63) & ~(size_t)63;
}

static sq_status context_choose(const sq_model *model, uint32_t asked, uint32_t *n_ctx, sq_error *error) {
    uint32_t trained = model->hparams.n_ctx_train;
    if (asked > trained)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "context: expected at most %u tokens, which the model was trained for, found %u",
                       trained, asked);
    *n_ctx = asked ? asked : sq_kv_default_tokens(&model->hparams);
    return SQ_OK;
}

static sq_status memory_create(sq_session *s, sq_kv_type kv, uint32_t n_threads, sq_error *error) {
    const sq_hparams *h = &s->model->hparams;
    size_t kv_bytes = round_up(sq_kv_bytes(h, s->model->n_cpu_layers, kv, s->n_ctx));
    size_t run_bytes = round_up(sq_cpu_run_bytes(s->model, n_threads));
    size_t token_bytes = round_up(s->n_ctx * sizeof(sq_token));
    size_t logit_bytes = round_up(N_ROWS * (size_t)h->n_vocab * sizeof(float));
    s->memory_bytes = kv_bytes + run_bytes + token_bytes + logit_bytes;
    s->memory = mmap(NULL, s->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->memory == MAP_FAILED) {
        s->memory = NULL;
        return sq_fail(
            error, SQ_ERROR_MEMORY,
            "no memory for a session of %u tokens (%.1f GB, %.1f GB of it KV cache); use a smaller context",
            s->n_ctx, (double)s->memory_bytes * 1e-9, (double)kv_bytes * 1e-9);
    }
    uint8_t *at = s->memory;
    sq_kv_init(&s->kv, h, kv, s->n_ctx, at);
    sq_cpu_run_init(&s->run, s->model, n_threads, at += kv_bytes);
    s->tokens = (sq_token *)(at += run_bytes);
    s->logits = (float *)(at + token_bytes);
    return SQ_OK;
}

sq_status sq_session_create(const sq_model *model, const sq_session_options *options, sq_session **out,
                            sq_error *error) {
    *out = NULL;
    sq_session_options chosen = options ? *options : (sq_session_options){0};
    sq_kv_type kv;
    uint32_t n_ctx = 0;
    sq_status status = sq_kv_parse(chosen.kv, &kv, error);
    if (!status)
        status = context_choose(model, chosen.n_ctx, &n_ctx, error);
    if (status)
        return status;
    sq_session *s = calloc(1, sizeof *s);
    if (!s)
        return sq_fail(error, SQ_ERROR_MEMORY, "no memory for a session");
    s->model = model;
    s->n_ctx = n_ctx;
    uint32_t n_threads = chosen.n_threads          ? chosen.n_threads
                         : model->n_cpu_layers > 0 ? sq_threads_default()
                                                   : 1; /* which waits for the device */
    status = sq_pool_create(n_threads, &s->pool, error);
    if (!status)
        status = memory_create(s, kv, n_threads, error);
    if (!status && model->offload.device)
        status = model->offload.api->session_create(model->offload.device, n_ctx, kv, &s->device, error);
    if (status) {
        sq_session_free(s);
        return status;
    }
    s->run.pool = s->pool;
    s->run.kv = &s->kv;
    s->run.cancel = &s->cancel;
    s->profiles = chosen.profile;
    if (s->profiles)
        sq_profile_init(&s->profile, &s->run);
    *out = s;
    return SQ_OK;
}

void sq_session_free(sq_session *session) {
    if (!session)
        return;
    if (session->device)
        session->model->offload.api->session_free(session->device);
    sq_pool_free(session->pool);
    if (session->memory)
        munmap(session->memory, session->memory_bytes);
    free(session);
}

uint32_t sq_session_n_ctx(const sq_session *session) {
    return session->n_ctx;
}

uint32_t sq_session_n_threads(const sq_session *session) {
    return sq_pool_n_threads(session->pool);
}

const sq_token *sq_session_tokens(const sq_session *session, size_t *n_tokens) {
    *n_tokens = session->n_tokens;
    return session->tokens;
}

void sq_session_truncate(sq_session *session, size_t n_tokens) {
    if (n_tokens >= session->n_tokens)
        return;
    session->n_tokens = (uint32_t)n_tokens;
    session->has_logits = false;
    session->n_guessed = session->n_ahead = 0;
}

void sq_session_set_lookup(sq_session *session, bool on) {
    if (on && !session->looks_up)
        sq_lookup_init(&session->lookup);
    session->looks_up = on;
}

/* The row of logits after the last token. */
static uint32_t row_of(const sq_session *s) {
    return s->n_guessed - s->n_ahead;
}

static bool row_is_here(const sq_session *s, uint32_t row) {
    return s->here >> row & 1;
}

/* Rows [first, first + n) of what the last run left on the device. */
static sq_status device_read(sq_session *s, uint32_t first, uint32_t n, float *logits, sq_error *error) {
    double start = sq_clock_seconds();
    sq_status status = s->model->offload.api->read_logits(s->device, first, n, logits, error);
    sq_profile_device(&s->profile, start);
    return status;
}

/* Brings the row from the device, where it is there alone. */
static sq_status row_fetch(sq_session *s, uint32_t row, sq_error *error) {
    if (row_is_here(s, row))
        return SQ_OK;
    sq_status status = device_read(s, row, 1, s->logits + (size_t)row * s->model->hparams.n_vocab, error);
    if (!status)
        s->here |= 1u << row;
    return status;
}

const float *sq_session_logits(sq_session *session) {
    uint32_t row = row_of(session);
    if (!session->has_logits || row_fetch(session, row, NULL))
        return NULL;
    return session->logits + (size_t)row * session->model->hparams.n_vocab;
}

sq_status sq_session_sample(sq_session *session, sq_sampler *sampler, sq_token *token, sq_error *error) {
    uint32_t row = row_of(session);
    if (!session->has_logits)
        return sq_fail(error, SQ_ERROR_ARGUMENT,
                       "there are no logits to draw from; append or sync tokens first");
    if (!row_is_here(session, row) && sq_sampler_is_greedy(sampler)) {
        *token = session->greedy[row];
        return SQ_OK;
    }
    sq_status status = row_fetch(session, row, error);
    if (!status)
        *token = sq_sampler_sample(sampler, sq_session_logits(session));
    return status;
}

void sq_session_cancel(sq_session *session) {
    atomic_store_explicit(&session->cancel, true, memory_order_relaxed);
}

const sq_time *sq_session_times(const sq_session *session, size_t *n) {
    *n = session->profiles ? SQ_N_TIMES : 0;
    return session->profile.times;
}

static sq_status tokens_check(const sq_session *s, size_t n_before, const sq_token *tokens, size_t n_tokens,
                              sq_error *error) {
    if (n_tokens > s->n_ctx - n_before)
        return sq_fail(
            error, SQ_ERROR_CONTEXT,
            "the context is full: %zu tokens and %zu more do not fit into %u; shorten the text or open "
            "the session with a larger context (the model can take %u)",
            n_before, n_tokens, s->n_ctx, s->model->hparams.n_ctx_train);
    for (size_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= s->model->hparams.n_vocab)
            return sq_fail(error, SQ_ERROR_ARGUMENT, "token %zu: expected 0 to %u, found %d", i,
                           s->model->hparams.n_vocab - 1, tokens[i]);
    return SQ_OK;
}

static void run_task(void *context, uint32_t thread) {
    sq_run *run = context;
    run->model->arch->forward(run, thread);
}

/* Runs the first layers, or, where there is no device, all of the model. */
static void cpu_run(sq_session *s, const sq_token *tokens, uint32_t n_tokens, uint32_t n_logits,
                    float *logits) {
    sq_run *run = &s->run;
    run->tokens = tokens;
    run->n_tokens = n_tokens;
    run->position = s->n_tokens;
    run->logits = logits;
    run->n_logits = s->device ? 0 : n_logits;
    sq_pool_run(s->pool, run_task, run);
}

/* Runs the layers that the CPU has not run. The logits go to `logits`, or, where that is NULL, stay there. */
static sq_status device_run(sq_session *s, const sq_token *tokens, uint32_t n_tokens, uint32_t n_logits,
                            float *logits, sq_error *error) {
    bool whole = !s->model->n_cpu_layers;
    sq_device_job job = {
        .tokens = tokens,
        .n_tokens = n_tokens,
        .position = s->n_tokens,
        .long_rope = s->run.long_rope,
        .x = whole ? NULL : s->run.x.data,
        .stride = s->run.x.stride,
        .n_logits = n_logits,
    };
    double start = sq_clock_seconds();
    sq_status status = s->model->offload.api->run(s->device, &job, logits ? NULL : s->greedy, error);
    sq_profile_device(&s->profile, start);
    return status || !logits ? status : device_read(s, 0, n_logits, logits, error);
}

/* Runs one piece. Logits of the last n_logits tokens go to `logits`, or, where that is NULL, are the rows of
 * s->logits. */
static sq_status piece_run(sq_session *s, const sq_token *tokens, uint32_t n_tokens, uint32_t n_logits,
                           float *logits, sq_error *error) {
    s->has_logits = false;
    s->n_guessed = s->n_ahead = 0;
    s->here = s->device ? 0 : UINT32_MAX;
    s->run.stopped = atomic_load_explicit(&s->cancel, memory_order_relaxed);
    if (!s->run.stopped && s->model->n_cpu_layers)
        cpu_run(s, tokens, n_tokens, n_logits, logits ? logits : s->logits);
    if (s->run.stopped)
        return sq_fail(error, SQ_ERROR_CANCELLED, "stopped after %u tokens, as asked", s->n_tokens);
    sq_status status = s->device ? device_run(s, tokens, n_tokens, n_logits, logits, error) : SQ_OK;
    if (status)
        return status;
    memmove(s->tokens + s->n_tokens, tokens, n_tokens * sizeof *tokens);
    s->n_tokens += n_tokens;
    return SQ_OK;
}

/* Tokens of a piece at most. */
static uint32_t piece_tokens(const sq_session *s) {
    uint32_t n = s->device ? s->model->offload.api->run_tokens : SQ_RUN_TOKENS;
    return s->model->n_cpu_layers && n > SQ_RUN_TOKENS ? SQ_RUN_TOKENS : n;
}

/* Runs the tokens, piece by piece. Logits of all go to `logits`, or, where that is NULL, those of the last
 * one to row 0 of s->logits. */
static sq_status pieces_run(sq_session *s, const sq_token *tokens, size_t n_tokens, float *logits,
                            sq_error *error) {
    size_t n_vocab = s->model->hparams.n_vocab;
    uint32_t n_most = piece_tokens(s);
    for (size_t done = 0; done < n_tokens;) {
        size_t left = n_tokens - done;
        uint32_t n = left < n_most ? (uint32_t)left : n_most;
        bool last = n == left;
        sq_status status = logits ? piece_run(s, tokens + done, n, n, logits + done * n_vocab, error)
                                  : piece_run(s, tokens + done, n, last ? 1 : 0, NULL, error);
        if (status)
            return status;
        done += n;
    }
    return SQ_OK;
}

/* Keys that were rotated by one table do not go with queries rotated by the other, so a timeline that
 * passes n_ctx_short, either way, runs again from the start. transformers' generate does the same. */
static sq_status rope_choose(sq_session *s, size_t n_tokens, sq_error *error) {
    uint32_t n_before = s->n_tokens;
    bool long_rope = n_tokens > s->model->hparams.n_ctx_short;
    if (long_rope == s->run.long_rope)
        return SQ_OK;
    s->run.long_rope = long_rope;
    s->n_tokens = 0;
    return pieces_run(s, s->tokens, n_before, NULL, error);
}

/* Appends a token: one that was computed ahead, or else with a guess of what follows it. */
static sq_status token_run(sq_session *s, sq_token token, sq_error *error) {
    if (s->n_ahead && s->tokens[s->n_tokens] == token) {
        s->n_tokens++;
        s->n_ahead--;
        return SQ_OK;
    }
    if (s->n_guessed)
        sq_lookup_learn(&s->lookup, s->n_guessed, s->n_guessed - s->n_ahead);
    uint32_t limit =
        s->run.long_rope ? s->n_ctx : s->model->hparams.n_ctx_short; /* up to which rotations stay */
    limit = limit < s->n_ctx ? limit : s->n_ctx;
    sq_token batch[N_ROWS] = {token};
    s->tokens[s->n_tokens] = token;
    uint32_t n = sq_lookup_guess(&s->lookup, s->tokens, s->n_tokens + 1, limit - s->n_tokens - 1, batch + 1);
    sq_status status = piece_run(s, batch, 1 + n, 1 + n, NULL, error);
    if (!status) {
        s->n_tokens -= n;
        s->n_guessed = s->n_ahead = n;
    }
    return status;
}

static sq_status tokens_run(sq_session *s, const sq_token *tokens, size_t n_tokens, float *logits,
                            sq_error *error) {
    size_t n_vocab = s->model->hparams.n_vocab;
    atomic_store_explicit(&s->cancel, false, memory_order_relaxed);
    sq_status status = rope_choose(s, s->n_tokens + n_tokens, error);
    if (!status)
        status = n_tokens == 1 && !logits && s->looks_up ? token_run(s, *tokens, error)
                                                         : pieces_run(s, tokens, n_tokens, logits, error);
    if (status)
        return status;
    if (logits) {
        memcpy(s->logits, logits + (n_tokens - 1) * n_vocab, n_vocab * sizeof *logits);
        s->here = 1;
    }
    s->has_logits = true;
    return SQ_OK;
}

sq_status sq_session_append(sq_session *session, const sq_token *tokens, size_t n_tokens, float *logits,
                            sq_error *error) {
    if (!n_tokens)
        return SQ_OK;
    sq_status status = tokens_check(session, session->n_tokens, tokens, n_tokens, error);
    return status ? status : tokens_run(session, tokens, n_tokens, logits, error);
}

sq_status sq_session_sync(sq_session *session, const sq_token *tokens, size_t n_tokens, size_t *n_kept,
                          sq_error *error) {
    if (!n_tokens)
        return sq_fail(error, SQ_ERROR_ARGUMENT, "tokens: expected at least one, found none");
    sq_status status = tokens_check(session, 0, tokens, n_tokens, error);
    if (status)
        return status;
    size_t n_same = 0;
    while (n_same < session->n_tokens && n_same < n_tokens && session->tokens[n_same] == tokens[n_same])
        n_same++;
    bool complete = n_same == n_tokens && n_same == session->n_tokens && session->has_logits;
    if (n_same == n_tokens && !complete)
        n_same--; /* the last token runs again for its logits */
    if (n_kept)
        *n_kept = n_same;
    if (complete)
        return SQ_OK;
    sq_session_truncate(session, n_same);
    return tokens_run(session, tokens + n_same, n_tokens - n_same, NULL, error);
}
