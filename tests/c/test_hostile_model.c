/* A whole model, sound and damaged: it opens and runs, or one sentence says what is wrong. */
#include "check.h"
#include "model_use.h"
#include "tiny_model.h"

/* Opens and uses the bytes in a block of their own. */
static sq_status use_bytes(const gguf_build *b, size_t n_bytes, sq_error *error) {
    void *copy = build_copy(b, n_bytes);
    sq_status status = model_use_memory(copy, n_bytes, error);
    if (status)
        CHECK(strlen(error->message) > 20 && !strchr(error->message, '\n'));
    free(copy);
    return status;
}

/* Writes the model, then forgets it. */
static sq_status use_model(tiny_model *m, sq_error *error) {
    gguf_build b;
    tiny_write(m, &b);
    sq_status status = use_bytes(&b, b.n_bytes, error);
    build_free(&b);
    tiny_free(m);
    return status;
}

static void test_sound(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        tiny_model m;
        sq_error error;
        tiny_create(&m, family);
        CHECK_OK(use_model(&m, &error), &error);
    }
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static void check_missing(tiny_family family, size_t index) {
    tiny_model m;
    sq_error error;
    tiny_create(&m, family);
    tiny_tensor *t = &m.tensors[index];
    bool optional = strstr(t->name, ".bias") && !strstr(t->name, "norm.bias");
    char base[64];
    snprintf(base, sizeof base, "%s", t->name);
    if (strstr(base, ".weight"))
        strstr(base, ".weight")[7] = 0;
    t->name[0] = 'x'; /* the file holds a stranger instead */
    if (optional)
        CHECK_OK(use_model(&m, &error), &error);
    else
        CHECK_FAILS(use_model(&m, &error), &error, SQ_ERROR_FORMAT, base);
}

/* One row or column short, or another type of the same size. */
static void check_shape(tiny_family family, size_t index, int damage) {
    tiny_model m;
    sq_error error;
    tiny_create(&m, family);
    tiny_tensor *t = &m.tensors[index];
    char name[64];
    snprintf(name, sizeof name, "%s", t->name);
    if (strstr(name, ".weight"))
        strstr(name, ".weight")[7] = 0;
    if (damage == 0)
        t->dims[0] -= t->type == SQ_GGUF_Q8_0 ? 32 : 1;
    if (damage == 1)
        t->dims[1] += t->n_dims == 2 ? (uint64_t)-1 : 0, t->dims[0] += t->n_dims == 1;
    if (damage == 2)
        t->type = t->type == SQ_GGUF_I8 ? SQ_GGUF_Q8_0 : SQ_GGUF_I8;
    if (damage == 3)
        t->type = 2; /* Q4_0: not for us */
    if (damage == 0 && t->type == SQ_GGUF_Q8_0)
        t->dims[0] = 64, t->dims[1] /= 2;
    sq_status status = use_model(&m, &error);
    CHECK_SAY(status == SQ_ERROR_FORMAT || status == SQ_ERROR_UNSUPPORTED, "%s, damage %d: status %d", name,
              damage, (int)status);
    /* Q8_0 rows that are no whole blocks are refused by the reader, by number of weights. */
    if (status)
        CHECK_SAY(strstr(error.message, name) != NULL, "%s: %s", name, error.message);
}

static void test_tensors(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        tiny_model m;
        tiny_create(&m, family);
        size_t n = m.n_tensors;
        tiny_free(&m);
        for (size_t i = 0; i < n; i++) {
            check_missing(family, i);
            for (int damage = 0; damage < 4; damage++)
                check_shape(family, i, damage);
        }
    }
}

static void test_table_width(void) {
    static const uint64_t widths[] = {1, 2, 3, 5, 15, 17, 32, 64, 1024};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        tiny_model m;
        sq_error error;
        tiny_create(&m, TINY_LLAMA);
        tiny_tensor *lut = tiny_find(&m, "blk.1.attn_v.weight.lut");
        lut->dims[0] = widths[i];
        lut->n_bytes = widths[i] * lut->dims[1] * 2;
        lut->data = realloc(lut->data, lut->n_bytes);
        memset(lut->data, 0, lut->n_bytes);
        CHECK_FAILS(use_model(&m, &error), &error, SQ_ERROR_FORMAT, "blk.1.attn_v.weight.lut");
        CHECK_SAY(strstr(error.message, "expected 4, 8 or 16 entries a row, found"), "%s", error.message);
    }
}

/* Both forms of tables: other types, and scales that are not there or not one a row. */
static void check_tables(tiny_family family, const char *suffix, uint32_t type, uint64_t n,
                         const char *part) {
    tiny_model m;
    sq_error error;
    char name[64];
    snprintf(name, sizeof name, "blk.1.attn_k.weight%s", suffix);
    tiny_create(&m, family);
    tiny_tensor *t = tiny_find(&m, name);
    t->type = type;
    t->dims[0] = n;
    t->n_bytes = n * t->dims[1] * 4; /* enough for each type */
    t->data = realloc(t->data, t->n_bytes);
    memset(t->data, 0, t->n_bytes);
    CHECK_FAILS(use_model(&m, &error), &error, SQ_ERROR_FORMAT, "blk.1.attn_k.weight.lut");
    CHECK_SAY(strstr(error.message, part) != NULL, "%s", error.message);
}

static void test_table_types(void) {
    const uint32_t n_out = TINY_KV_HEADS * TINY_HEAD_DIM;
    for (tiny_family family = TINY_LLAMA; family <= TINY_GEMMA3; family += TINY_GEMMA3 - TINY_LLAMA) {
        check_tables(family, ".lut", SQ_GGUF_F32, 8, ".lut: expected type I8 (24) or F16 (1), found type 0");
        check_tables(family, ".lut", SQ_GGUF_I16, 8, ".lut: expected type I8 (24) or F16 (1), found type 25");
    }
    check_tables(TINY_LLAMA, ".lut", SQ_GGUF_I8, 8, ".lut_scale is missing");
    check_tables(TINY_GEMMA3, ".lut_scale", SQ_GGUF_F32, n_out, ".lut_scale: expected type F16 (1), found");
    check_tables(TINY_GEMMA3, ".lut_scale", SQ_GGUF_F16, n_out - 1, ".lut_scale: expected shape [1, 12]");
    check_tables(TINY_GEMMA3, ".lut_scale", SQ_GGUF_F16, n_out + 1, ".lut_scale: expected shape [1, 12]");
}

/* ---- kept weights ------------------------------------------------------------------------------- */

static void check_rows(uint32_t row, int32_t value) {
    tiny_model m;
    sq_error error;
    tiny_create(&m, TINY_LLAMA);
    tiny_tensor *rows = tiny_find(&m, "blk.0.ffn_down.weight.rows");
    memcpy(rows->data + row * sizeof value, &value, sizeof value);
    CHECK_FAILS(use_model(&m, &error), &error, SQ_ERROR_FORMAT, "blk.0.ffn_down.weight.rows: expected row");
}

static void test_rows(void) {
    check_rows(0, 1);
    check_rows(0, -1);
    check_rows(1, -1);
    check_rows(1, INT32_MAX);
    check_rows(5, 0); /* 6 before and after */
    check_rows(TINY_EMBD, 0);
    check_rows(TINY_EMBD, TINY_EMBD / 2 * 3 + 1);
    check_rows(TINY_EMBD, INT32_MIN);
}

static void test_columns(void) {
    static const uint16_t columns[] = {TINY_FF, TINY_FF + 1, 32768, 65535};
    for (uint32_t i = 0; i < 4; i++) {
        for (size_t place = 0; place < 48; place += 47) {
            tiny_model m;
            sq_error error;
            tiny_create(&m, TINY_LLAMA);
            memcpy(tiny_find(&m, "blk.0.ffn_down.weight.cols")->data + 2 * place, &columns[i], 2);
            CHECK_FAILS(use_model(&m, &error), &error, SQ_ERROR_FORMAT, "blk.0.ffn_down.weight.cols");
        }
    }
}

/* ---- keys --------------------------------------------------------------------------------------- */

/* The value of a scalar key in a written file. */
static uint8_t *key_value(gguf_build *b, const char *key) {
    uint8_t *place = memmem(b->data, b->n_bytes, key, strlen(key));
    if (!place)
        abort();
    return place + strlen(key) + sizeof(uint32_t);
}

/* Uses the file with four bytes of a key's value, from `offset` on, changed. */
static sq_status use_changed_at(tiny_family family, const char *key, size_t offset, uint32_t value,
                                sq_error *error) {
    tiny_model m;
    gguf_build b;
    tiny_create(&m, family);
    tiny_write(&m, &b);
    memcpy(key_value(&b, key) + offset, &value, sizeof value);
    sq_status status = use_bytes(&b, b.n_bytes, error);
    build_free(&b);
    tiny_free(&m);
    return status;
}

static sq_status use_changed(const char *key, uint32_t value, sq_error *error) {
    return use_changed_at(TINY_LLAMA, key, 0, value, error);
}

static void test_hyperparameters(void) {
    static const char *const keys[] = {
        "llama.block_count",          "llama.embedding_length",     "llama.feed_forward_length",
        "llama.vocab_size",           "llama.attention.head_count", "llama.attention.head_count_kv",
        "llama.attention.key_length", "llama.rope.dimension_count", "llama.context_length",
    };
    static const uint32_t values[] = {0, 1u << 30, INT32_MAX, UINT32_MAX};
    sq_error error;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++)
            CHECK_FAILS(use_changed(keys[i], values[v], &error), &error, SQ_ERROR_FORMAT, "llama");
    /* Possible numbers that do not go with the rest. */
    CHECK_FAILS(use_changed("llama.block_count", 3, &error), &error, SQ_ERROR_FORMAT, "blk.2.");
    CHECK_FAILS(use_changed("llama.embedding_length", 64, &error), &error, SQ_ERROR_FORMAT, "token_embd");
    CHECK_FAILS(use_changed("llama.vocab_size", 299, &error), &error, SQ_ERROR_FORMAT, "token_embd");
    CHECK_FAILS(use_changed("llama.attention.head_count_kv", 3, &error), &error, SQ_ERROR_FORMAT, "3 KV");
    CHECK_FAILS(use_changed("llama.rope.dimension_count", 5, &error), &error, SQ_ERROR_FORMAT, "5 rotated");
    CHECK_FAILS(use_changed("llama.rope.dimension_count", 8, &error), &error, SQ_ERROR_FORMAT, "8 rotated");
    /* Floats: 0, -1, infinity, NaN. */
    static const uint32_t floats[] = {0, 0xbf800000, 0x7f800000, 0x7fc00000};
    for (size_t i = 0; i < 4; i++) {
        CHECK_FAILS(use_changed("llama.rope.freq_base", floats[i], &error), &error, SQ_ERROR_FORMAT,
                    "llama.rope.freq_base");
        CHECK_FAILS(use_changed("llama.attention.layer_norm_rms_epsilon", floats[i], &error), &error,
                    SQ_ERROR_FORMAT, "llama.attention.layer_norm_rms_epsilon");
    }
    CHECK_FAILS(use_changed("squeezellm.version", 2, &error), &error, SQ_ERROR_UNSUPPORTED,
                "squeezellm.version: expected 1, found 2");
    CHECK_FAILS(use_changed("tokenizer.ggml.bos_token_id", 300, &error), &error, SQ_ERROR_FORMAT,
                "tokenizer.ggml.bos_token_id");
}

/* What may differ from layer to layer, and the second rotation. */
static void test_layers(void) {
    enum { FIRST = sizeof(uint32_t) + sizeof(uint64_t) }; /* of an array, behind kind and length */
    static const uint32_t windows[] = {(1u << 24) + 1, INT32_MAX, (uint32_t)INT32_MIN, UINT32_MAX};
    static const uint32_t ropes[] = {(uint32_t)-2, 1, INT32_MAX, (uint32_t)INT32_MIN};
    const char *window = "squeezellm.layers.window", *rope = "squeezellm.layers.rope";
    sq_error error;
    for (size_t i = 0; i < 4; i++) {
        CHECK_FAILS(use_changed_at(TINY_QWEN3, window, FIRST + 4, windows[i], &error), &error,
                    SQ_ERROR_FORMAT, window);
        CHECK_FAILS(use_changed_at(TINY_QWEN3, rope, FIRST + 4, ropes[i], &error), &error, SQ_ERROR_FORMAT,
                    "squeezellm.layers.rope: layer 1: expected -1 to 0, found");
    }
    CHECK_FAILS(use_changed_at(TINY_QWEN3, "qwen3.block_count", 0, 3, &error), &error, SQ_ERROR_FORMAT,
                "squeezellm.layers.window: expected an array of 3 integers");
    static const struct {
        const char *key;
        uint32_t wrong[2];
    } numbers[] = {
        {"qwen3.rope.scaling.original_context_length", {0, UINT32_MAX}},
        {"qwen3.rope.scaling.attn_factor", {0, 0x7fc00000}},
        {"qwen3.attention.scale", {0x80000000, 0x7f800000}},
    };
    for (size_t i = 0; i < 6; i++)
        CHECK_FAILS(use_changed_at(TINY_QWEN3, numbers[i / 2].key, 0, numbers[i / 2].wrong[i % 2], &error),
                    &error, SQ_ERROR_FORMAT, numbers[i / 2].key);
}

/* Counts of experts, which tensors of the file would have to go with. */
static void test_experts(void) {
    static const struct {
        const char *key;
        uint32_t value;
        const char *part;
    } cases[] = {
        {"qwen3moe.expert_count", 1025, "qwen3moe.expert_count: expected 0 to 1024"},
        {"qwen3moe.expert_count", 1, "2 of 1 experts"},
        {"qwen3moe.expert_count", 4, "blk.1.ffn_gate_inp.weight: expected shape [4, 32]"},
        {"qwen3moe.expert_count", 0, "squeezellm.layers.experts: layer 1: expected 0 to 0, found 1"},
        {"qwen3moe.expert_used_count", 0, "0 of 3 experts"},
        {"qwen3moe.expert_used_count", 4, "4 of 3 experts"},
        {"qwen3moe.expert_used_count", UINT32_MAX, "qwen3moe.expert_used_count: expected 0 to 1024"},
        {"qwen3moe.expert_feed_forward_length", 0, "3 experts of width 0"},
        {"qwen3moe.expert_feed_forward_length", 24, "blk.1.ffn_gate.0.weight.lut: expected shape [24, 16]"},
        {"qwen3moe.expert_feed_forward_length", 1u << 30, "qwen3moe.expert_feed_forward_length: expected"},
    };
    sq_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_FAILS(use_changed_at(TINY_QWEN3MOE, cases[i].key, 0, cases[i].value, &error), &error,
                    SQ_ERROR_FORMAT, cases[i].part);
}

/* What OPT and Gemma have beyond the others. */
static void test_embeddings_and_caps(void) {
    static const struct {
        tiny_family family;
        const char *key;
        uint32_t value;
        const char *part;
    } cases[] = {
        {TINY_OPT, "opt.token_embedding_length", 0, "opt.token_embedding_length: expected 1"},
        {TINY_OPT, "opt.token_embedding_length", 32, "token_embd.weight: expected shape [300, 32]"},
        {TINY_OPT, "opt.context_length", 65, "position_embd.weight: expected shape [65, 32]"},
        {TINY_OPT, "opt.attention.layer_norm_epsilon", 0,
         "opt.attention.layer_norm_epsilon: expected a positive"},
        {TINY_GEMMA3, "gemma3.rope.freq_base_swa", 0x7fc00000,
         "gemma3.rope.freq_base_swa: expected a positive"},
        {TINY_GEMMA3, "gemma3.embedding_scale", 0x7f800000, "gemma3.embedding_scale: expected a positive"},
        {TINY_GEMMA3, "gemma3.attn_logit_softcapping", 0xbf800000, "gemma3.attn_logit_softcapping: expected"},
        {TINY_GEMMA3, "gemma3.final_logit_softcapping", 0x7fc00000,
         "gemma3.final_logit_softcapping: expected"},
    };
    sq_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_FAILS(use_changed_at(cases[i].family, cases[i].key, 0, cases[i].value, &error), &error,
                    SQ_ERROR_FORMAT, cases[i].part);
}

static void test_architecture(void) {
    tiny_model m;
    gguf_build b;
    sq_error error;
    tiny_create(&m, TINY_LLAMA);
    tiny_write(&m, &b);
    memcpy(key_value(&b, "general.architecture") + sizeof(uint64_t),
           "\x1b"
           "mba",
           4);
    CHECK_FAILS(use_bytes(&b, b.n_bytes, &error), &error, SQ_ERROR_UNSUPPORTED,
                "general.architecture: \"?mbaa\" is none of those this runtime knows (gemma2, ");
    build_free(&b);
    tiny_free(&m);
}

/* ---- anywhere ----------------------------------------------------------------------------------- */

/* The last bytes of the file may be gone without harm only where they are padding; there is none. */
static void test_truncated(void) {
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        tiny_model m;
        gguf_build b;
        sq_error error;
        tiny_create(&m, family);
        tiny_write(&m, &b);
        for (size_t n = 0; n < b.n_bytes; n += 1 + b.n_bytes / 300)
            CHECK_SAY(use_bytes(&b, n, &error) == SQ_ERROR_FORMAT, "%zu of %zu bytes: accepted", n,
                      b.n_bytes);
        CHECK_EQ(use_bytes(&b, b.n_bytes - 1, &error), SQ_ERROR_FORMAT);
        build_free(&b);
        tiny_free(&m);
    }
}

/* One to eight random bits, most of them before the weights. */
static void test_bits(void) {
    enum { N_ROUNDS = 1500 };
    uint64_t random = 20250101;
    size_t n_refused = 0;
    for (tiny_family family = 0; family < TINY_N_FAMILIES; family++) {
        tiny_model m;
        gguf_build b;
        sq_error error;
        tiny_create(&m, family);
        tiny_write(&m, &b);
        size_t n_weights = 0;
        for (size_t i = 0; i < m.n_tensors; i++)
            n_weights += (m.tensors[i].n_bytes + 63) / 64 * 64;
        for (int round = 0; round < N_ROUNDS; round++) {
            size_t bits[8], n_bits = 1 + check_random(&random) % 8;
            for (size_t i = 0; i < n_bits; i++) {
                size_t range = check_random(&random) % 4 ? b.n_bytes - n_weights : b.n_bytes;
                bits[i] = (size_t)((check_random(&random) >> 8) % (8 * range));
                b.data[bits[i] / 8] ^= (uint8_t)(1 << bits[i] % 8);
            }
            n_refused += use_bytes(&b, b.n_bytes, &error) != SQ_OK;
            for (size_t i = 0; i < n_bits; i++)
                b.data[bits[i] / 8] ^= (uint8_t)(1 << bits[i] % 8);
        }
        CHECK_OK(use_bytes(&b, b.n_bytes, &error), &error);
        build_free(&b);
        tiny_free(&m);
    }
    CHECK_SAY(n_refused > N_ROUNDS / 4 && n_refused < TINY_N_FAMILIES * N_ROUNDS, "%zu of %d refused",
              n_refused, TINY_N_FAMILIES * N_ROUNDS);
}

int main(void) {
    RUN(test_sound);
    RUN(test_tensors);
    RUN(test_table_width);
    RUN(test_table_types);
    RUN(test_rows);
    RUN(test_columns);
    RUN(test_hyperparameters);
    RUN(test_layers);
    RUN(test_experts);
    RUN(test_embeddings_and_caps);
    RUN(test_architecture);
    RUN(test_truncated);
    RUN(test_bits);
    return check_report();
}
