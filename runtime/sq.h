/* sq.h: run language models quantized by SqueezeLLM (NAME.sq.gguf).
 *
 * Two nouns. An sq_model is a file, mapped and checked: it never changes, and any number of threads
 * may use it at once. An sq_session is one timeline of tokens with its KV cache: one thread at a time
 * uses it, and several sessions may run on one model side by side.
 *
 *     sq_model *model;
 *     sq_session *session;
 *     sq_error error;
 *     if (sq_model_open("model.sq.gguf", NULL, &model, &error)) puts(error.message);
 *
 * Every function that can fail returns an sq_status, SQ_OK (0) on success, and fills `error` where it
 * is not NULL: what, where, expected against found, what to do. On failure outputs are left unset
 * (pointers NULL). The library never prints, exits or aborts. All text is UTF-8.
 *
 * Closing order: free the sessions, then close their model. NULL may be freed.
 */
#ifndef SQ_H
#define SQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __GNUC__
#pragma GCC visibility push(default) /* all that stands here, and nothing else, is exported */
#endif

/* ---- status ---------------------------------------------------------------------------------- */

typedef enum sq_status {
    SQ_OK = 0,
    SQ_ERROR_IO,          /* a file cannot be opened, read or mapped */
    SQ_ERROR_FORMAT,      /* the file is damaged, or no GGUF file */
    SQ_ERROR_UNSUPPORTED, /* the file is sound, but this library cannot run it */
    SQ_ERROR_MEMORY,      /* an allocation failed */
    SQ_ERROR_ARGUMENT,    /* the caller passed something impossible */
    SQ_ERROR_CONTEXT,     /* the session has no room for the tokens */
    SQ_ERROR_CANCELLED    /* sq_session_cancel stopped the call */
} sq_status;

typedef struct sq_error {
    sq_status status;
    char message[512]; /* one sentence or two, no newline */
} sq_error;

/* "0.1.0"; lives for ever. */
const char *sq_version(void);

/* ---- model ----------------------------------------------------------------------------------- */

typedef struct sq_model sq_model;

typedef struct sq_model_options {
    /* Instruction set of the kernels: "auto" (or NULL), "scalar", "avx2", "avxvnni", "avx512", "avx512vnni",
     * "neon", "dotprod". One that this machine or this build lacks is SQ_ERROR_UNSUPPORTED. */
    const char *cpu;
    /* Prompts in f32 too. Without it matrices multiply pieces of more than 16 tokens in 16-bit fixed
     * point, which is about twice as fast; the KL divergence of the logits from the exact ones is below
     * 1e-4. How a prompt is cut into pieces then shows in the last digits; the number of threads never
     * does. */
    bool exact;
    /* Where layers run: "cpu"; "cuda", on an NVIDIA GPU, SQ_ERROR_UNSUPPORTED where that cannot be; or "auto"
     * (or NULL), there where it can be, else on the CPU, and sq_model_info says why. */
    const char *device;
    /* How many layers the GPU gets, counted from the last; with them the final norm and the head. The CPU
     * runs the others. 0: as many as its free memory holds, beside a session of n_ctx tokens and a KV cache
     * of type `kv`, which are as in sq_session_options. */
    uint32_t gpu_layers;
    uint32_t n_ctx;
    const char *kv;
} sq_model_options;

/* Maps and checks the file. `options` may be NULL. The weights stay in the page cache and are read
 * from there; opening costs milliseconds. */
sq_status sq_model_open(const char *path, const sq_model_options *options, sq_model **model, sq_error *error);
void sq_model_close(sq_model *model);

/* What a model is. Strings live as long as the model. */
typedef struct sq_model_info {
    const char *architecture;  /* "llama" */
    const char *name;          /* general.name, or "" */
    const char *cpu;           /* the instruction set in use: "avx512" */
    const char *prompt;        /* the arithmetic of prompts: "int16", or "f32" where exact */
    const char *device;        /* the GPU that has layers, "NVIDIA H200"; "" where none has */
    const char *device_absent; /* why none has, though "auto" was asked for; else "" */
    uint32_t gpu_layers;       /* how many, counted from the last */
    uint32_t n_layers;
    uint32_t n_embd; /* width of the residual stream */
    uint32_t n_ff;
    uint32_t n_experts;      /* of a layer that mixes feed-forward networks; 0: no layer does */
    uint32_t n_experts_used; /* by one token */
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_vocab;
    uint32_t n_ctx_train; /* the context the model was trained for, in tokens */
    uint64_t n_params;    /* weights of all matrices and vectors */
    uint64_t file_bytes;
    uint64_t token_bytes;   /* bytes of weights read to generate one token, KV cache not counted */
    double bits_per_weight; /* of the blocks' matrices: codes, tables, sparse values, row pointers */
    double sparse_share;    /* kept weights / weights of the blocks' matrices, 0…1 */
} sq_model_info;

void sq_model_get_info(const sq_model *model, sq_model_info *info);

/* Bytes of KV cache of a session with n_ctx tokens. `kv` is "f16" (or NULL), "q8" or "f32". */
uint64_t sq_model_kv_bytes(const sq_model *model, uint32_t n_ctx, const char *kv);

/* One matrix or vector as the model uses it. Strings live as long as the model. */
typedef struct sq_tensor_info {
    const char *name; /* "blk.0.attn_q.weight" */
    const char *type; /* "lut4", "lut3", "lut2", "q8_0", "f16", "f32" */
    uint32_t n_out;   /* rows; 1 for a vector */
    uint32_t n_in;    /* columns */
    uint64_t n_sparse;
    uint64_t bytes; /* all of it: codes, tables, sparse values, row pointers */
    double bits;    /* 8 · bytes / (n_out · n_in) */
} sq_tensor_info;

size_t sq_model_n_tensors(const sq_model *model);
sq_status sq_model_get_tensor(const sq_model *model, size_t index, sq_tensor_info *info, sq_error *error);

/* Decodes row `row` of tensor `index` to f32, dense plus sparse; `out` is [n_in]. */
sq_status sq_model_read_row(const sq_model *model, size_t index, uint32_t row, float *out, sq_error *error);

/* A string of the file's metadata, or NULL where the key is missing or no string ("general.name").
 * Lives as long as the model. */
const char *sq_model_meta(const sq_model *model, const char *key);

/* ---- tokens ---------------------------------------------------------------------------------- */

typedef int32_t sq_token;

enum {
    SQ_TOKENIZE_BOS = 1,     /* put the beginning-of-sequence token first, where the model has one
                                and was trained to see it */
    SQ_TOKENIZE_SPECIAL = 2, /* read "<|im_end|>" and its like as the control tokens they name;
                                without it they are plain text, which is what untrusted text wants */
    SQ_TOKENIZE_CONTINUE = 4 /* the text continues earlier text: no space is put before it */
};

/* Writes at most `capacity` tokens to `tokens` and the number the text has to `n_tokens`. Where that
 * is more than `capacity` nothing is lost: call again with room (capacity 0 and tokens NULL asks for
 * the number alone). `text` need not be zero-terminated; invalid UTF-8 is taken byte by byte. */
sq_status sq_tokenize(const sq_model *model, const char *text, size_t n_bytes, int flags, sq_token *tokens,
                      size_t capacity, size_t *n_tokens, sq_error *error);

/* The bytes of one token as they appear in running text (a token may be part of a character). Control
 * tokens have none unless `special`. Lives as long as the model; NULL for an id out of range. */
const char *sq_token_text(const sq_model *model, sq_token token, bool special, size_t *n_bytes);

/* The bytes of a whole sequence, as the original tokenizer's decode() gives them: the space that
 * SentencePiece puts before a text is taken away. `capacity` and `n_bytes` as in sq_tokenize; no
 * terminating zero. */
sq_status sq_detokenize(const sq_model *model, const sq_token *tokens, size_t n_tokens, bool special,
                        char *text, size_t capacity, size_t *n_bytes, sq_error *error);

/* Length of the longest prefix of `text` that does not end inside a UTF-8 character: what a stream
 * may print now. Bytes that can never become valid count as whole. */
size_t sq_utf8_complete(const char *text, size_t n_bytes);

sq_token sq_token_bos(const sq_model *model);                 /* -1 where the model has none */
sq_token sq_token_eos(const sq_model *model);                 /* -1 where the model has none */
bool sq_token_is_stop(const sq_model *model, sq_token token); /* ends an answer */
bool sq_token_is_control(const sq_model *model, sq_token token);

/* ---- chat ------------------------------------------------------------------------------------ */

typedef struct sq_message {
    const char *role; /* "system" (first only), "user" or "assistant" */
    const char *content;
} sq_message;

/* SQ_OK where the file holds a table of prefixes for chats; else SQ_ERROR_UNSUPPORTED and the reason
 * the converter gave. */
sq_status sq_chat_check(const sq_model *model, sq_error *error);

enum {
    SQ_CHAT_GENERATE = 1,   /* put the prompt for the next answer behind the dialogue */
    SQ_CHAT_NO_THINKING = 2 /* ask for answers without thinking before them; SQ_ERROR_UNSUPPORTED where the
                               model's template has no such switch */
};

/* The tokens of a dialogue as the model was trained to see it. Contents are plain text: control tokens in
 * them have no power. `capacity` and `n_tokens` as in sq_tokenize. */
sq_status sq_chat_tokenize(const sq_model *model, const sq_message *messages, size_t n_messages, int flags,
                           sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error);

/* ---- session --------------------------------------------------------------------------------- */

typedef struct sq_session sq_session;

typedef struct sq_session_options {
    uint32_t n_ctx;     /* tokens the timeline can hold; 0: the trained context, at most 8192 */
    uint32_t n_threads; /* 0: one per physical core this process may use */
    const char *kv;     /* KV cache: "f16" (or NULL), "q8" or "f32" */
    bool profile;       /* measure what sq_session_times tells */
} sq_session_options;

/* `options` may be NULL. Everything a session needs is allocated here, nothing while it runs. */
sq_status sq_session_create(const sq_model *model, const sq_session_options *options, sq_session **session,
                            sq_error *error);
void sq_session_free(sq_session *session);

uint32_t sq_session_n_ctx(const sq_session *session);
uint32_t sq_session_n_threads(const sq_session *session);

/* The timeline so far; valid until the next call that changes the session. */
const sq_token *sq_session_tokens(const sq_session *session, size_t *n_tokens);

/* Makes the timeline exactly `tokens`: keeps the longest common prefix, computes the rest. The usual
 * way to prepare a prompt. At least one token. `n_kept` (may be NULL) is set to the tokens that were
 * kept (which a model with LongRoPE computes again where its rotation changes). On SQ_ERROR_CONTEXT nothing
 * has changed; on SQ_ERROR_CANCELLED the timeline is a prefix. */
sq_status sq_session_sync(sq_session *session, const sq_token *tokens, size_t n_tokens, size_t *n_kept,
                          sq_error *error);

/* Appends tokens to the timeline. `logits`, where not NULL, receives [n_tokens, n_vocab]: after each
 * token, the logits of the next. On SQ_ERROR_CANCELLED the timeline is a prefix of what it would be. */
sq_status sq_session_append(sq_session *session, const sq_token *tokens, size_t n_tokens, float *logits,
                            sq_error *error);

/* Forgets all but the first n_tokens tokens. The logits are those of no token until the next append
 * or sync. */
void sq_session_truncate(sq_session *session, size_t n_tokens);

/* Prompt lookup, off at first. Where it is on and a single token is appended (or synced) without `logits`,
 * the session may compute with it what followed the same tokens earlier in the timeline. Where those tokens
 * are then appended one by one, that costs nothing. The timeline and all logits stay what they are without
 * it, to the last bit. */
void sq_session_set_lookup(sq_session *session, bool on);

/* Logits after the last token, [n_vocab]; NULL while there are none, or where a GPU that has them failed.
 * Valid until the session changes. */
const float *sq_session_logits(sq_session *session);

/* Where the time of all runs so far went, as the thread saw it that called them. */
typedef struct sq_time {
    const char *kind; /* of operation: "attention"; lives for ever */
    double seconds;
} sq_time;

/* All kinds, in the order of a layer; `n` is 0 without the option `profile`. Valid as long as the session. */
const sq_time *sq_session_times(const sq_session *session, size_t *n);

/* Makes a running sync or append return SQ_ERROR_CANCELLED soon, usually within a layer's time; without
 * one it does nothing. May be called from another thread or a signal handler. */
void sq_session_cancel(sq_session *session);

/* ---- sampler --------------------------------------------------------------------------------- */

typedef struct sq_logit_bias {
    sq_token token;
    float bias; /* added to the token's logit; -INFINITY forbids it */
} sq_logit_bias;

/* Order: bias, penalties, temperature, top-k, top-p, min-p, draw. Temperature 0 takes the largest
 * logit, the lowest id at ties. sq_sampler_defaults fills in what the comments say. */
typedef struct sq_sampler_options {
    float temperature;           /* 0.7 */
    uint32_t top_k;              /* 40; 0: off */
    float top_p;                 /* 0.95; 1: off */
    float min_p;                 /* 0.05; 0: off */
    float repeat_penalty;        /* 1.0: off; divides positive, multiplies negative logits */
    float presence_penalty;      /* 0.0: off; subtracted once for a token seen */
    float frequency_penalty;     /* 0.0: off; subtracted for each time a token was seen */
    uint32_t penalty_window;     /* 64: how many accepted tokens the penalties look back on */
    uint64_t seed;               /* 0 */
    const sq_logit_bias *biases; /* [n_biases], copied */
    size_t n_biases;
} sq_sampler_options;

typedef struct sq_sampler sq_sampler;

void sq_sampler_defaults(sq_sampler_options *options);
/* `options` NULL: the defaults. */
sq_status sq_sampler_create(const sq_model *model, const sq_sampler_options *options, sq_sampler **sampler,
                            sq_error *error);
void sq_sampler_free(sq_sampler *sampler);
/* Draws the next token from `logits` [n_vocab], which stay as they are. */
sq_token sq_sampler_sample(sq_sampler *sampler, const float *logits);
/* The same from the session's logits. Where a GPU has these and the largest is all that the sampler asks for
 * (temperature 0, no biases, no penalties), they stay there. */
sq_status sq_session_sample(sq_session *session, sq_sampler *sampler, sq_token *token, sq_error *error);
/* Tells the sampler what was really appended, prompt included where the penalties shall see it. */
void sq_sampler_accept(sq_sampler *sampler, sq_token token);
/* Forgets what was accepted and starts the random numbers at `seed` again. */
void sq_sampler_reset(sq_sampler *sampler, uint64_t seed);

/* Natural logarithm of the softmax probability of `token` under `logits` [n_vocab]. */
double sq_log_probability(const float *logits, size_t n_vocab, sq_token token);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
