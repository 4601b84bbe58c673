/* Models with every kind of tensor, in some 30 KB: two layers, grouped-query attention, 2-, 3- and 4-bit
 * indices into tables of f16 or of 8 bits, with and without kept weights, sizes that are no multiple of 32.
 * Weights are random. What docs/FORMAT.md says, written down a second time. Each family has a tokenizer and
 * quirks that the others have not.
 *
 *     tiny_model m;
 *     tiny_create(&m, TINY_LLAMA);
 *     tiny_find(&m, "blk.0.attn_q.weight.lut")->dims[0] = 8;   // damage, where wanted
 *     tiny_write(&m, &bytes);                                   // a gguf_build
 *     tiny_free(&m);
 */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include <stdio.h>

#include "check.h"
#include "gguf_build.h"

enum {
    TINY_LAYERS = 2,
    TINY_EMBD = 32,
    TINY_FF = 44,
    TINY_HEADS = 4,
    TINY_KV_HEADS = 2,
    TINY_HEAD_DIM = 6,
    TINY_VOCAB = 300,
    TINY_CTX = 64,
    TINY_CTX_SHORT = 4,
    TINY_TOKEN_EMBD = 64,
    TINY_EXPERTS = 3,
    TINY_EXPERT_FF = 20,
    TINY_N_TENSORS = 128
};

typedef enum tiny_family {
    TINY_LLAMA,
    TINY_QWEN3,
    TINY_OPT,
    TINY_GEMMA3,
    TINY_QWEN3MOE,
    TINY_N_FAMILIES
} tiny_family;

static const struct {
    const char *arch;
    bool byte_level; /* the tokenizer; else SentencePiece */
    bool qk_norm;
    bool long_rope;  /* another rotation past TINY_CTX_SHORT tokens, and layers that differ */
    bool opt;        /* as the 350M one: layer norms behind sublayers, learned positions, a wider embedding */
    bool local_rope; /* another rotation in layer 0; scales, soft caps, norms behind sublayers */
    bool experts;    /* in layer 1 */
    bool tables8;    /* of the matrices with kept weights */
} tiny_families[TINY_N_FAMILIES] = {
    [TINY_LLAMA] = {.arch = "llama"},
    [TINY_QWEN3] = {.arch = "qwen3", .byte_level = true, .qk_norm = true, .long_rope = true},
    [TINY_OPT] = {.arch = "opt", .byte_level = true, .opt = true},
    [TINY_GEMMA3] = {.arch = "gemma3", .qk_norm = true, .local_rope = true, .tables8 = true},
    [TINY_QWEN3MOE] =
        {.arch = "qwen3moe", .byte_level = true, .qk_norm = true, .experts = true, .tables8 = true},
};

typedef struct tiny_tensor {
    char name[64];
    uint32_t n_dims, type;
    uint64_t dims[4]; /* GGUF's order: dims[0] runs fastest */
    uint8_t *data;
    size_t n_bytes;
} tiny_tensor;

typedef struct tiny_model {
    tiny_family family;
    gguf_build keys;
    uint64_t n_keys;
    tiny_tensor tensors[TINY_N_TENSORS];
    size_t n_tensors;
    uint64_t random;
} tiny_model;

/* ---- keys --------------------------------------------------------------------------------------- */

static void tiny_key(tiny_model *m, const char *name, sq_kind kind) {
    put_key(&m->keys, name, kind);
    m->n_keys++;
}

static void tiny_key_u32(tiny_model *m, const char *name, uint32_t value) {
    tiny_key(m, name, SQ_KIND_U32);
    put_u32(&m->keys, value);
}

static void tiny_key_f32(tiny_model *m, const char *name, float value) {
    tiny_key(m, name, SQ_KIND_F32);
    put_f32(&m->keys, value);
}

/* ARCH.name */
static const char *tiny_arch_key(const tiny_model *m, const char *name, char full[64]) {
    snprintf(full, 64, "%s.%s", tiny_families[m->family].arch, name);
    return full;
}

static void tiny_key_string(tiny_model *m, const char *name, const char *value) {
    tiny_key(m, name, SQ_KIND_STRING);
    put_string(&m->keys, value);
}

static void tiny_key_array(tiny_model *m, const char *name, sq_kind element, uint64_t n) {
    put_array(&m->keys, name, element, n);
    m->n_keys++;
}

/* Tokens 0 … 2 are control tokens, then the 256 bytes, then words of two letters. */
static void tiny_words(tiny_model *m, bool byte_level) {
    static const char letters[] = "aeinorst";
    for (int i = 259; i < TINY_VOCAB; i++) {
        char word[8];
        snprintf(word, sizeof word, "%c%c", letters[(i - 259) / 8], letters[(i - 259) % 8]);
        put_string(&m->keys, word);
    }
    tiny_key_array(m, "tokenizer.ggml.token_type", SQ_KIND_I32, TINY_VOCAB);
    for (int i = 0; i < TINY_VOCAB; i++)
        put_u32(&m->keys, i < 3 ? 3 : i < 259 && !byte_level ? 6 : 1);
    tiny_key_u32(m, "tokenizer.ggml.bos_token_id", 1);
    tiny_key_u32(m, "tokenizer.ggml.eos_token_id", 2);
}

static void tiny_tokenizer_spm(tiny_model *m) {
    tiny_key_string(m, "tokenizer.ggml.model", "llama");
    tiny_key_array(m, "tokenizer.ggml.tokens", SQ_KIND_STRING, TINY_VOCAB);
    put_string(&m->keys, "<unk>"), put_string(&m->keys, "<s>"), put_string(&m->keys, "</s>");
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        put_string(&m->keys, name);
    }
    tiny_words(m, false);
    tiny_key_u32(m, "tokenizer.ggml.unknown_token_id", 0);
    tiny_key_array(m, "tokenizer.ggml.scores", SQ_KIND_F32, TINY_VOCAB);
    for (int i = 0; i < TINY_VOCAB; i++)
        put_f32(&m->keys, (float)-i);
}

/* GPT-2's printable stand-in for a byte, as UTF-8. */
static void tiny_put_byte(tiny_model *m, int byte) {
    bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    int point = itself ? byte : byte <= 0x20 ? 0x100 + byte : byte == 0xad ? 0x143 : 0x121 + byte - 0x7f;
    char text[3] = {(char)point, 0, 0};
    if (point >= 0x80) {
        text[0] = (char)(0xc0 | point >> 6);
        text[1] = (char)(0x80 | (point & 0x3f));
    }
    put_string(&m->keys, text);
}

static void tiny_tokenizer_bpe(tiny_model *m) {
    static const char letters[] = "aeinorst";
    tiny_key_string(m, "tokenizer.ggml.model", "gpt2");
    tiny_key_array(m, "tokenizer.ggml.tokens", SQ_KIND_STRING, TINY_VOCAB);
    put_string(&m->keys, "<|unk|>"), put_string(&m->keys, "<|start|>"), put_string(&m->keys, "<|end|>");
    for (int i = 0; i < 256; i++)
        tiny_put_byte(m, i);
    tiny_words(m, true);
    tiny_key_array(m, "tokenizer.ggml.merges", SQ_KIND_STRING, TINY_VOCAB - 259);
    for (int i = 259; i < TINY_VOCAB; i++) {
        char merge[8];
        snprintf(merge, sizeof merge, "%c %c", letters[(i - 259) / 8], letters[(i - 259) % 8]);
        put_string(&m->keys, merge);
    }
    tiny_key_array(m, "squeezellm.tokenizer.patterns", SQ_KIND_STRING, 1);
    put_string(&m->keys, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+");
    tiny_key_array(m, "squeezellm.tokenizer.nfc_ranges", SQ_KIND_I32, 2);
    put_u32(&m->keys, 0x300), put_u32(&m->keys, 0x34F);
    tiny_key_array(m, "squeezellm.tokenizer.strip_right_ids", SQ_KIND_I32, 1);
    put_u32(&m->keys, 1);
}

/* Layer 0 sees three tokens and rotates, layer 1 sees all and does not. */
static void tiny_keys_long_rope(tiny_model *m) {
    char full[64];
    tiny_key_u32(m, tiny_arch_key(m, "rope.scaling.original_context_length", full), TINY_CTX_SHORT);
    tiny_key_f32(m, tiny_arch_key(m, "rope.scaling.attn_factor", full), 1.25f);
    tiny_key_f32(m, tiny_arch_key(m, "attention.scale", full), 0.5f);
    tiny_key_array(m, "squeezellm.layers.window", SQ_KIND_U32, TINY_LAYERS);
    put_u32(&m->keys, 3), put_u32(&m->keys, 0);
    tiny_key_array(m, "squeezellm.layers.rope", SQ_KIND_I32, TINY_LAYERS);
    put_u32(&m->keys, 0), put_u32(&m->keys, (uint32_t)-1);
}

static void tiny_keys_opt(tiny_model *m) {
    char full[64];
    tiny_key_u32(m, tiny_arch_key(m, "token_embedding_length", full), TINY_TOKEN_EMBD);
    tiny_key_f32(m, tiny_arch_key(m, "attention.layer_norm_epsilon", full), 1e-5f);
    tiny_key(m, tiny_arch_key(m, "post_norm", full), SQ_KIND_BOOL);
    put(&m->keys, &(uint8_t){1}, 1);
}

static void tiny_keys_local_rope(tiny_model *m) {
    char full[64];
    tiny_key_f32(m, tiny_arch_key(m, "rope.freq_base_swa", full), 100);
    tiny_key_f32(m, tiny_arch_key(m, "embedding_scale", full), 5.5f);
    tiny_key_f32(m, tiny_arch_key(m, "attn_logit_softcapping", full), 2);
    tiny_key_f32(m, tiny_arch_key(m, "final_logit_softcapping", full), 3);
    tiny_key_array(m, "squeezellm.layers.rope", SQ_KIND_I32, TINY_LAYERS);
    put_u32(&m->keys, 1), put_u32(&m->keys, 0);
}

/* Layer 0 has a feed-forward of its own, layer 1 experts. */
static void tiny_keys_experts(tiny_model *m) {
    char full[64];
    tiny_key_u32(m, tiny_arch_key(m, "expert_count", full), TINY_EXPERTS);
    tiny_key_u32(m, tiny_arch_key(m, "expert_used_count", full), TINY_EXPERTS - 1);
    tiny_key_u32(m, tiny_arch_key(m, "expert_feed_forward_length", full), TINY_EXPERT_FF);
    tiny_key(m, tiny_arch_key(m, "expert_weights_norm", full), SQ_KIND_BOOL);
    put(&m->keys, &(uint8_t){1}, 1);
    tiny_key_array(m, "squeezellm.layers.experts", SQ_KIND_U32, TINY_LAYERS);
    put_u32(&m->keys, 0), put_u32(&m->keys, 1);
}

static void tiny_keys(tiny_model *m) {
    const struct {
        const char *name;
        uint32_t value;
    } sizes[] = {
        {"block_count", TINY_LAYERS},
        {"context_length", TINY_CTX},
        {"embedding_length", TINY_EMBD},
        {"feed_forward_length", TINY_FF},
        {"vocab_size", TINY_VOCAB},
        {"attention.head_count", TINY_HEADS},
        {"attention.head_count_kv", TINY_KV_HEADS},
        {"attention.key_length", TINY_HEAD_DIM},
        {"attention.value_length", TINY_HEAD_DIM},
        {"rope.dimension_count", tiny_families[m->family].opt ? 0 : TINY_HEAD_DIM},
    };
    bool byte_level = tiny_families[m->family].byte_level;
    char full[64];
    tiny_key_string(m, "general.architecture", tiny_families[m->family].arch);
    tiny_key_string(m, "general.name", "tiny");
    tiny_key_u32(m, "general.alignment", 64);
    tiny_key_u32(m, "squeezellm.version", 1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        tiny_key_u32(m, tiny_arch_key(m, sizes[i].name, full), sizes[i].value);
    tiny_key_f32(m, tiny_arch_key(m, "attention.layer_norm_rms_epsilon", full), 1e-5f);
    tiny_key_f32(m, tiny_arch_key(m, "rope.freq_base", full), 10000);
    if (tiny_families[m->family].long_rope)
        tiny_keys_long_rope(m);
    if (tiny_families[m->family].opt)
        tiny_keys_opt(m);
    if (tiny_families[m->family].local_rope)
        tiny_keys_local_rope(m);
    if (tiny_families[m->family].experts)
        tiny_keys_experts(m);
    (byte_level ? tiny_tokenizer_bpe : tiny_tokenizer_spm)(m);
    tiny_key_string(m, "squeezellm.chat.begin", byte_level ? "<|start|>" : "<s>");
    tiny_key_string(m, "squeezellm.chat.user_assistant", " a ");
    tiny_key_string(m, "squeezellm.chat.assistant_user", "\nu ");
    tiny_key_string(m, "squeezellm.chat.user_end", "\n");
    tiny_key_string(m, "squeezellm.chat.user_generate", " a ");
    tiny_key_string(m, "squeezellm.chat.begin_system", "s ");
    tiny_key_string(m, "squeezellm.chat.system_user", "\nu ");
    tiny_key_string(m, "squeezellm.chat.answer_after", "b");
    tiny_key_string(m, "squeezellm.chat.think_word", "be");
    tiny_key_string(m, "squeezellm.chat.no_think_word", "e");
    tiny_key_string(m, "squeezellm.chat.no_think.user_generate", " ab");
}

/* ---- tensors ------------------------------------------------------------------------------------ */

/* Uniform in [-1, 1). */
static float tiny_uniform(tiny_model *m) {
    return (float)(check_random(&m->random) >> 40) * 0x1p-23f - 1;
}

/* Any 16 bits of these are a small finite f16: exponent 2^-5 … 2^-2, sign and mantissa random. */
static uint16_t tiny_f16(tiny_model *m) {
    uint64_t random = check_random(&m->random) >> 20;
    return (uint16_t)((random & 0x83ff) | (10 + (random >> 16 & 3)) << 10);
}

static tiny_tensor *tiny_add(tiny_model *m, const char *name, const char *suffix, uint32_t type,
                             uint64_t n_out, uint64_t n_in, size_t n_bytes) {
    if (m->n_tensors == TINY_N_TENSORS)
        abort();
    tiny_tensor *t = &m->tensors[m->n_tensors++];
    *t = (tiny_tensor){.n_dims = n_out ? 2 : 1, .type = type, .dims = {n_in, n_out ? n_out : 1, 1, 1}};
    if (snprintf(t->name, sizeof t->name, "%s%s", name, suffix) >= (int)sizeof t->name)
        abort();
    t->n_bytes = n_bytes;
    t->data = calloc(n_bytes, 1);
    if (!t->data)
        abort();
    return t;
}

static void tiny_vector(tiny_model *m, const char *name, uint64_t n, float middle) {
    tiny_tensor *t = tiny_add(m, name, "", SQ_GGUF_F32, 0, n, n * sizeof(float));
    for (uint64_t i = 0; i < n; i++) {
        float value = middle + 0.1f * tiny_uniform(m);
        memcpy(t->data + i * sizeof value, &value, sizeof value);
    }
}

static void tiny_q8_0(tiny_model *m, const char *name, uint64_t n_out, uint64_t n_in) {
    tiny_tensor *t = tiny_add(m, name, "", SQ_GGUF_Q8_0, n_out, n_in, n_out * n_in / 32 * 34);
    for (size_t i = 0; i < t->n_bytes; i++) {
        uint8_t byte = (uint8_t)(check_random(&m->random) >> 30);
        if (i % 34 < 2)
            byte = i % 34 ? 0x20 : 0; /* the scale: 2^-7 */
        t->data[i] = byte;
    }
}

/* Three kept weights in each odd row, none in the even ones. */
static void tiny_sparse(tiny_model *m, const char *name, uint32_t n_out, uint32_t n_in) {
    uint32_t n_sparse = n_out / 2 * 3;
    tiny_tensor *rows = tiny_add(m, name, ".rows", SQ_GGUF_I32, 0, n_out + 1, (n_out + 1) * sizeof(int32_t));
    for (uint32_t r = 0; r <= n_out; r++)
        memcpy(rows->data + r * sizeof(int32_t), &(int32_t){(int32_t)(r / 2 * 3)}, sizeof(int32_t));
    tiny_tensor *cols = tiny_add(m, name, ".cols", SQ_GGUF_I16, 0, n_sparse, n_sparse * sizeof(uint16_t));
    tiny_tensor *vals = tiny_add(m, name, ".vals", SQ_GGUF_F16, 0, n_sparse, n_sparse * sizeof(uint16_t));
    for (uint32_t i = 0; i < n_sparse; i++) {
        const uint16_t places[] = {0, (uint16_t)(n_in / 2), (uint16_t)(n_in - 1)};
        uint16_t value = tiny_f16(m);
        memcpy(cols->data + i * sizeof value, &places[i % 3], sizeof value);
        memcpy(vals->data + i * sizeof value, &value, sizeof value);
    }
}

static void tiny_table(tiny_model *m, const char *name, uint32_t bits, uint32_t n_out) {
    tiny_tensor *lut = tiny_add(m, name, ".lut", SQ_GGUF_F16, n_out, 1u << bits, (size_t)n_out << (bits + 1));
    for (size_t i = 0; i < lut->n_bytes; i += 2)
        memcpy(lut->data + i, &(uint16_t){tiny_f16(m)}, 2);
}

/* Codes ascend from -127 to 127, entries are as large as those of f16; the scale of row 0 is 0. */
static void tiny_table8(tiny_model *m, const char *name, uint32_t bits, uint32_t n_out) {
    tiny_tensor *lut = tiny_add(m, name, ".lut", SQ_GGUF_I8, n_out, 1u << bits, (size_t)n_out << bits);
    for (size_t i = 0; i < lut->n_bytes; i++) {
        uint32_t step = (uint32_t)(check_random(&m->random) >> 30) % 255;
        lut->data[i] = (uint8_t)((((i & ((1u << bits) - 1)) * 255 + step) >> bits) - 127);
    }
    tiny_tensor *scale = tiny_add(m, name, ".lut_scale", SQ_GGUF_F16, 0, n_out, n_out * sizeof(uint16_t));
    for (size_t i = 2; i < scale->n_bytes; i += 2)
        memcpy(scale->data + i, &(uint16_t){(tiny_f16(m) & 0x7fff) - (7 << 10)}, 2);
}

/* docs/FORMAT.md, section 2: every bit pattern of the codes is valid, so they are random. */
static void tiny_matrix(tiny_model *m, const char *name, uint32_t bits, uint32_t n_out, uint32_t n_in,
                        bool sparse) {
    static const size_t pieces[] = {[2] = 16, [3] = 32, [4] = 8}; /* weights of a dword (of each plane) */
    size_t row_bytes = (n_in + pieces[bits] - 1) / pieces[bits] * (pieces[bits] * bits / 8);
    tiny_tensor *codes = tiny_add(m, name, ".codes", SQ_GGUF_I8, n_out, row_bytes, n_out * row_bytes);
    for (size_t i = 0; i < codes->n_bytes; i++)
        codes->data[i] = (uint8_t)(check_random(&m->random) >> 30);
    (sparse && tiny_families[m->family].tables8 ? tiny_table8 : tiny_table)(m, name, bits, n_out);
    if (sparse)
        tiny_sparse(m, name, n_out, n_in);
}

static void tiny_norm(tiny_model *m, const char *name, uint64_t n) {
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    tiny_vector(m, full, n, 1);
    snprintf(full, sizeof full, "%s.bias", name);
    if (tiny_families[m->family].opt)
        tiny_vector(m, full, n, 0);
}

static void tiny_experts(tiny_model *m, int layer) {
    char name[64];
    snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", layer);
    tiny_q8_0(m, name, TINY_EXPERTS, TINY_EMBD);
    for (int e = 0; e < TINY_EXPERTS; e++) {
        snprintf(name, sizeof name, "blk.%d.ffn_gate.%d.weight", layer, e);
        tiny_matrix(m, name, 4, TINY_EXPERT_FF, TINY_EMBD, true);
        snprintf(name, sizeof name, "blk.%d.ffn_up.%d.weight", layer, e);
        tiny_matrix(m, name, 2, TINY_EXPERT_FF, TINY_EMBD, false);
        snprintf(name, sizeof name, "blk.%d.ffn_down.%d.weight", layer, e);
        tiny_matrix(m, name, 3, TINY_EMBD, TINY_EXPERT_FF, true);
    }
}

static void tiny_layer(tiny_model *m, int layer) {
    const uint32_t n_q = TINY_HEADS * TINY_HEAD_DIM, n_kv = TINY_KV_HEADS * TINY_HEAD_DIM;
    const struct {
        const char *name;
        uint32_t bits, n_out, n_in;
        bool sparse;
    } matrices[] = {
        {"attn_q", 4, n_q, TINY_EMBD, true},        {"attn_k", 3, n_kv, TINY_EMBD, true},
        {"attn_v", 2, n_kv, TINY_EMBD, false},      {"attn_output", 3, TINY_EMBD, n_q, true},
        {"ffn_gate", 4, TINY_FF, TINY_EMBD, false}, {"ffn_up", 3, TINY_FF, TINY_EMBD, false},
        {"ffn_down", 2, TINY_EMBD, TINY_FF, true},
    };
    static const char *const norms[] = {"attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"};
    bool mixture = tiny_families[m->family].experts && layer == 1;
    char name[64];
    for (int i = 0; i < (tiny_families[m->family].local_rope ? 4 : 2); i++) {
        snprintf(name, sizeof name, "blk.%d.%s", layer, norms[i]);
        tiny_norm(m, name, TINY_EMBD);
    }
    for (int i = 0; i < 2 && tiny_families[m->family].qk_norm; i++) {
        snprintf(name, sizeof name, "blk.%d.attn_%c_norm.weight", layer, "qk"[i]);
        tiny_vector(m, name, TINY_HEAD_DIM, 1);
    }
    snprintf(name, sizeof name, "blk.%d.attn_q.bias", layer);
    if (layer == 1)
        tiny_vector(m, name, n_q, 0);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        if (i >= 4 && (mixture || (i == 4 && tiny_families[m->family].opt)))
            continue;
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, matrices[i].name);
        tiny_matrix(m, name, matrices[i].bits, matrices[i].n_out, matrices[i].n_in, matrices[i].sparse);
    }
    if (mixture)
        tiny_experts(m, layer);
}

/* ---- the model ---------------------------------------------------------------------------------- */

static void tiny_create(tiny_model *m, tiny_family family) {
    *m = (tiny_model){.family = family, .random = 1};
    tiny_keys(m);
    if (tiny_families[family].opt) {
        tiny_q8_0(m, "token_embd.weight", TINY_VOCAB, TINY_TOKEN_EMBD);
        tiny_q8_0(m, "token_embd_in.weight", TINY_EMBD, TINY_TOKEN_EMBD);
        tiny_q8_0(m, "token_embd_out.weight", TINY_TOKEN_EMBD, TINY_EMBD);
        tiny_q8_0(m, "position_embd.weight", TINY_CTX, TINY_EMBD);
    } else {
        tiny_q8_0(m, "token_embd.weight", TINY_VOCAB, TINY_EMBD);
        tiny_norm(m, "output_norm", TINY_EMBD);
    }
    if (tiny_families[family].long_rope) {
        tiny_vector(m, "rope_factors_short.weight", TINY_HEAD_DIM / 2, 1);
        tiny_vector(m, "rope_factors_long.weight", TINY_HEAD_DIM / 2, 4);
    }
    for (int layer = 0; layer < TINY_LAYERS; layer++)
        tiny_layer(m, layer);
}

__attribute__((unused)) static tiny_tensor *tiny_find(tiny_model *m, const char *name) {
    for (size_t i = 0; i < m->n_tensors; i++)
        if (!strcmp(m->tensors[i].name, name))
            return &m->tensors[i];
    fprintf(stderr, "the tiny model has no tensor %s\n", name);
    abort();
}

static void tiny_write(const tiny_model *m, gguf_build *b) {
    *b = (gguf_build){0};
    put_header(b, m->n_tensors, m->n_keys);
    put(b, m->keys.data, m->keys.n_bytes);
    uint64_t offset = 0;
    for (size_t i = 0; i < m->n_tensors; i++) {
        const tiny_tensor *t = &m->tensors[i];
        put_tensor(b, t->name, t->n_dims, t->dims, t->type, offset);
        offset = (offset + t->n_bytes + 63) / 64 * 64;
    }
    for (size_t i = 0; i < m->n_tensors; i++) {
        put_padding(b, 64);
        put(b, m->tensors[i].data, m->tensors[i].n_bytes);
    }
}

static void tiny_free(tiny_model *m) {
    for (size_t i = 0; i < m->n_tensors; i++)
        free(m->tensors[i].data);
    build_free(&m->keys);
}

/* The file of a tiny model, aligned as a mapped one is; to be freed. */
__attribute__((unused)) static void *tiny_file(tiny_family family, size_t *n_bytes) {
    tiny_model tiny;
    gguf_build bytes;
    tiny_create(&tiny, family);
    tiny_write(&tiny, &bytes);
    void *file = aligned_alloc(64, (bytes.n_bytes + 63) / 64 * 64);
    memcpy(file, bytes.data, bytes.n_bytes);
    *n_bytes = bytes.n_bytes;
    build_free(&bytes);
    tiny_free(&tiny);
    return file;
}

#endif
