/* Both kinds of tokenizer on vocabularies small enough to follow by hand. */
#include "check.h"
#include "vocab_build.h"

#include <pthread.h>

/* ---- vocabularies ------------------------------------------------------------------------------ */

/* SentencePiece: <unk> <s> </s>, 256 bytes (3 … 258), then the words below. */
enum { SPM_WORDS = 259 };
static const char *const spm_words[] = {"▁",   "a",  "b",   "c", "ab", "▁a",
                                        "abc", "bc", "▁ab", "é", "aa", "<tool>"};
static const float spm_scores[] = {0, 0, 0, 0, -1, -2, -4, -1, -3, 0, -1, 0};
enum { SPACE = SPM_WORDS, A, B, C, AB, _A, ABC, BC, _AB, E_ACUTE, AA, TOOL };

static void add_spm(vocab_build *b) {
    const size_t n_words = sizeof spm_words / sizeof *spm_words, n = SPM_WORDS + n_words;
    static char bytes[256][8];
    const char *names[SPM_WORDS + 16] = {"<unk>", "<s>", "</s>"};
    float scores[SPM_WORDS + 16] = {0};
    int32_t types[SPM_WORDS + 16] = {2, 3, 3};
    for (int i = 0; i < 256; i++) {
        snprintf(bytes[i], sizeof bytes[i], "<0x%02X>", i);
        names[3 + i] = bytes[i];
        types[3 + i] = 6;
    }
    for (size_t i = 0; i < n_words; i++) {
        names[SPM_WORDS + i] = spm_words[i];
        scores[SPM_WORDS + i] = spm_scores[i];
        types[SPM_WORDS + i] = spm_words[i][0] == '<' ? 4 : 1;
    }
    add_string(b, "tokenizer.ggml.model", "llama");
    add_strings(b, "tokenizer.ggml.tokens", names);
    add_f32s(b, "tokenizer.ggml.scores", scores, n);
    add_i32s(b, "tokenizer.ggml.token_type", types, n);
    add_u32(b, "tokenizer.ggml.unknown_token_id", 0);
    add_u32(b, "tokenizer.ggml.bos_token_id", 1);
    add_u32(b, "tokenizer.ggml.eos_token_id", 2);
}

/* Byte-level: the letters a … e, space, newline and 1 as bytes; pairs; specials. */
static const char *const bpe_names[] = {"a",    "b",  "c",   "d",     "e",         "Ġ",   "Ċ",
                                        "1",    "ab", "cd",  "abcd",  "Ġa",        "Ġab", "aa",
                                        "aaaa", "é",  "bcd", "<end>", "<endless>", "<u>", NULL};
static const int32_t bpe_types[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 4};
static const char *const bpe_merges[] = {"a b", "c d", "ab cd", "Ġ a", "Ġ ab", "a a", "aa aa", NULL};
enum {
    a_,
    b_,
    c_,
    d_,
    e_,
    SP,
    NL,
    ONE,
    ab_,
    cd_,
    abcd_,
    SPa,
    SPab,
    aa_,
    aaaa_,
    BYTE_E9,
    bcd_,
    END,
    ENDLESS,
    USER
};

static void add_bpe(vocab_build *b) {
    add_string(b, "tokenizer.ggml.model", "gpt2");
    add_strings(b, "tokenizer.ggml.tokens", bpe_names);
    add_i32s(b, "tokenizer.ggml.token_type", bpe_types, sizeof bpe_types / sizeof *bpe_types);
    add_strings(b, "tokenizer.ggml.merges", bpe_merges);
}

static void add_pattern(vocab_build *b, const char *pattern) {
    add_strings(b, "squeezellm.tokenizer.patterns", (const char *const[]){pattern, NULL});
}

/* ---- helpers ------------------------------------------------------------------------------------- */

static const char *encode(const vocab_file *v, const char *text, size_t n_bytes, int flags) {
    sq_token tokens[256];
    size_t n = 0;
    sq_error error;
    sq_text_part part = {text, n_bytes, flags & SQ_TOKENIZE_SPECIAL};
    if (!CHECK_OK(sq_tokenizer_encode(v->tokenizer, &part, 1, flags, tokens, 256, &n, &error), &error))
        return "";
    return ids_text(tokens, n);
}

/* `...` are the tokens expected. */
#define CHECK_IDS(v, text, flags, ...)                                                                       \
    do {                                                                                                     \
        const sq_token expected[] = {__VA_ARGS__};                                                           \
        char wanted[4096];                                                                                   \
        strcpy(wanted, ids_text(expected, sizeof expected / sizeof *expected));                              \
        CHECK_STR(encode(v, text, strlen(text), flags), wanted);                                             \
    } while (0)

static const char *decode(const vocab_file *v, const sq_token *tokens, size_t n, bool special) {
    static char text[256];
    size_t n_bytes = 0;
    sq_error error;
    CHECK_OK(sq_tokenizer_decode(v->tokenizer, tokens, n, special, text, sizeof text - 1, &n_bytes, &error),
             &error);
    text[n_bytes] = 0;
    return text;
}

#define BYTE(b) (3 + (b))

/* ---- SentencePiece ------------------------------------------------------------------------------- */

static void test_spm_merges_by_score(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_spm(&b);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "abc", SQ_TOKENIZE_CONTINUE, ABC); /* ab and bc tie: the leftmost, then ab+c */
    CHECK_IDS(&v, "bcab", SQ_TOKENIZE_CONTINUE, BC, AB);
    CHECK_IDS(&v, "aaa", SQ_TOKENIZE_CONTINUE, AA, A);
    CHECK_IDS(&v, "ab", 0, _AB); /* ▁ab: "ab" first, then "▁" + "ab" */
    CHECK_IDS(&v, " ab", 0, SPACE, _AB);
    CHECK_IDS(&v,
              "\xE2\x96\x81"
              "ab",
              SQ_TOKENIZE_CONTINUE, _AB); /* the mark in text is a space */
    CHECK_IDS(&v, "ac", SQ_TOKENIZE_BOS, 1, _A, C);
    CHECK_STR(encode(&v, "", 0, SQ_TOKENIZE_BOS), "1");
    CHECK_STR(encode(&v, NULL, 0, 0), "");
    vocab_close(&v);
}

static void test_spm_bytes(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_spm(&b);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "é", SQ_TOKENIZE_CONTINUE, E_ACUTE);
    CHECK_IDS(&v, "a😀", SQ_TOKENIZE_CONTINUE, A, BYTE(0xF0), BYTE(0x9F), BYTE(0x98), BYTE(0x80));
    CHECK_IDS(&v,
              "\xC3"
              "a\xFF",
              SQ_TOKENIZE_CONTINUE, BYTE(0xC3), A, BYTE(0xFF)); /* no UTF-8 */
    CHECK_STR(encode(&v, "a\0b", 3, SQ_TOKENIZE_CONTINUE), "260 3 261");
    CHECK_STR(decode(&v, (sq_token[]){_A, BYTE(0xF0), BYTE(0x9F), BYTE(0x98), BYTE(0x80)}, 5, false), "a😀");
    CHECK_STR(decode(&v, (sq_token[]){1, _AB, SPACE, _A, 2}, 5, false), "ab  a");
    CHECK_STR(decode(&v, (sq_token[]){1, _AB}, 2, true), "<s> ab");
    vocab_close(&v);
}

static void test_spm_prefix(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_spm(&b);
    add_bool(&b, "squeezellm.tokenizer.prefix_at_start", true);
    add_bool(&b, "squeezellm.tokenizer.prefix_if_missing", true);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, " ab", 0, _AB);
    CHECK_IDS(&v, "a<s>a", SQ_TOKENIZE_SPECIAL, _A, 1, A);
    CHECK_IDS(&v, "<s>a", SQ_TOKENIZE_SPECIAL, 1, A);
    vocab_close(&v);
    add_spm(&b);
    add_bool(&b, "tokenizer.ggml.add_space_prefix", false);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "a", 0, A);
    CHECK_STR(decode(&v, (sq_token[]){_A}, 1, false), " a");
    vocab_close(&v);
    add_spm(&b);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "a<s>a<tool>", SQ_TOKENIZE_SPECIAL, _A, 1, _A, TOOL);
    vocab_close(&v);
}

/* ---- byte-level ---------------------------------------------------------------------------------- */

static void test_bpe_merges_by_rank(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "abcd", 0, abcd_);
    CHECK_IDS(&v, "bcd", 0, b_, cd_); /* no merge leads to "bcd" */
    CHECK_IDS(&v, " ab", 0, SPab);
    CHECK_IDS(&v, "aaaaa", 0, aaaa_, a_);
    CHECK_IDS(&v, "a\nb", SQ_TOKENIZE_BOS, a_, NL, b_); /* no bos in this model */
    CHECK_IDS(&v, "axb", 0, ab_);                       /* no token for x, no unknown token: left out */
    CHECK_IDS(&v,
              "a\xE9"
              "b",
              0, a_, BYTE_E9, b_);
    CHECK_STR(decode(&v, (sq_token[]){SPab, NL, BYTE_E9}, 3, false), " ab\n\xE9");
    vocab_close(&v);
    add_bpe(&b);
    add_bool(&b, "squeezellm.tokenizer.ignore_merges", true);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "bcd", 0, bcd_);
    CHECK_IDS(&v, "bcda", 0, b_, cd_, a_);
    vocab_close(&v);
}

static void test_patterns(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    add_strings(&b, "squeezellm.tokenizer.patterns",
                (const char *const[]){"1", " ?\\p{L}+|\\s+(?!\\S)", NULL});
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "ab ab", 0, ab_, SPab);
    CHECK_IDS(&v, "a1b", 0, a_, ONE, b_);
    CHECK_IDS(&v, "ab1  1cd", 0, ab_, ONE, SP, SP, ONE, cd_); /* the second sees pieces, not the text */
    CHECK_IDS(&v, "ab  ab", 0, ab_, SP, SPab);
    CHECK_IDS(&v,
              "ab\xE9"
              "cd",
              0, ab_, BYTE_E9, cd_); /* text goes on behind what is no UTF-8 */
    vocab_close(&v);
    add_bpe(&b);
    add_pattern(&b, "(?=cd)|x*"); /* empty matches cut, and end */
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "abcd", 0, a_, b_, c_, d_);
    vocab_close(&v);
}

static void test_special_tokens(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    add_u32(&b, "tokenizer.ggml.eos_token_id", END);
    add_i32s(&b, "squeezellm.stop_token_ids", (int32_t[]){ENDLESS}, 1);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "a<end>b", SQ_TOKENIZE_SPECIAL, a_, END, b_);
    CHECK_IDS(&v, "<endless><end", SQ_TOKENIZE_SPECIAL, ENDLESS, e_, d_); /* the longest; a part is text */
    CHECK_IDS(&v, "a<end>b", 0, a_, e_, d_, b_);
    CHECK_IDS(&v, "a<u>b", 0, a_, USER, b_);
    CHECK(sq_tokenizer_is_stop(v.tokenizer, END) && sq_tokenizer_is_stop(v.tokenizer, ENDLESS));
    CHECK(!sq_tokenizer_is_stop(v.tokenizer, a_) && !sq_tokenizer_is_stop(v.tokenizer, -1));
    CHECK(sq_tokenizer_is_control(v.tokenizer, END) && !sq_tokenizer_is_control(v.tokenizer, USER));
    CHECK_EQ(sq_tokenizer_eos(v.tokenizer), END);
    CHECK_EQ(sq_tokenizer_bos(v.tokenizer), -1);
    CHECK_STR(decode(&v, (sq_token[]){a_, END, USER}, 3, false), "a<u>");
    CHECK_STR(decode(&v, (sq_token[]){a_, END, USER}, 3, true), "a<end><u>");
    size_t n_bytes = 1;
    CHECK(sq_tokenizer_text(v.tokenizer, 999, true, &n_bytes) == NULL && n_bytes == 0);
    CHECK(sq_tokenizer_text(v.tokenizer, END, false, &n_bytes) != NULL && n_bytes == 0);
    char text[8];
    CHECK_FAILS(sq_tokenizer_decode(v.tokenizer, (sq_token[]){a_, 20}, 2, false, text, 8, &n_bytes, &error),
                &error, SQ_ERROR_ARGUMENT, "token 20 at position 1");
    vocab_close(&v);
}

/* <end> swallows the space behind it, <endless> that before it, <u> both. */
static void test_swallowed_space(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    add_i32s(&b, "squeezellm.tokenizer.strip_right_ids", (int32_t[]){END, USER}, 2);
    add_i32s(&b, "squeezellm.tokenizer.strip_left_ids", (int32_t[]){ENDLESS, USER}, 2);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "a <end> \n\u3000 a", SQ_TOKENIZE_SPECIAL, a_, SP, END, a_);
    CHECK_IDS(&v, "a \n\u00a0<endless> a", SQ_TOKENIZE_SPECIAL, a_, ENDLESS, SPa);
    CHECK_IDS(&v, " <u> <u>  ", 0, USER, USER);
    CHECK_IDS(&v, "<end>  <endless>", SQ_TOKENIZE_SPECIAL, END, ENDLESS);
    CHECK_IDS(&v, "a <end> \n", 0, a_, SP, e_, d_, SP, NL);      /* no token: no power */
    CHECK_IDS(&v, "<end>\x1c a", SQ_TOKENIZE_SPECIAL, END, SPa); /* Unicode counts 1C as no white space */
    vocab_close(&v);
    add_bpe(&b);
    add_i32s(&b, "squeezellm.tokenizer.strip_left_ids", (int32_t[]){20}, 1);
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "strip_left_ids: 20");
}

/* Letters with accents, one of which the original does not know. */
static void add_accents(vocab_build *b, const int32_t *ranges, size_t n) {
    const char *names[] = {"a", "\u00c3", "\u00a1", "\u00cc", "\u0123", "\u0124", "\u0134", "\u013f", NULL};
    add_string(b, "tokenizer.ggml.model", "gpt2");
    add_strings(b, "tokenizer.ggml.tokens", names); /* a C3 A1 CC 81 82 92 9D */
    add_strings(b, "tokenizer.ggml.merges", (const char *const[]){NULL});
    add_i32s(b, "squeezellm.tokenizer.nfc_ranges", ranges, n);
}

static void test_nfc(void) {
    static const int32_t known[] = {'a', 'a', 0xE1, 0xE1, 0x300, 0x311};
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_accents(&b, known, 6);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    CHECK_IDS(&v, "a\u0301", 0, 1, 2);                /* á */
    CHECK_IDS(&v, "a\u0312\u0301", 0, 0, 3, 6, 3, 4); /* U+0312 is unknown: it stands between */
    CHECK_IDS(&v, "\u00e1a\u0301", 0, 1, 2, 1, 2);
    CHECK_IDS(&v, "\u0301a", 0, 3, 4, 0);
    CHECK_IDS(&v, "a\x81\u0301", 0, 0, 4, 3, 4); /* what is no UTF-8 stands between, too */
    CHECK_IDS(&v, "\x9d", 0, 7);
    char marks[2 * 1001 + 1];
    for (size_t i = 0; i < sizeof marks - 1; i += 2)
        memcpy(marks + i, "\u0301", 2);
    sq_text_part part = {marks, sizeof marks - 1, false};
    size_t n;
    CHECK_FAILS(sq_tokenizer_encode(v.tokenizer, &part, 1, 0, NULL, 0, &n, &error), &error,
                SQ_ERROR_UNSUPPORTED, "combining marks in a row");
    part.n_bytes -= 2;
    CHECK_OK(sq_tokenizer_encode(v.tokenizer, &part, 1, 0, NULL, 0, &n, &error), &error);
    CHECK_EQ(n, 2000);
    vocab_close(&v);
    static const int32_t damaged[][4] = {
        {5, 4, 6, 7}, {5, 6, 6, 7}, {-1, 4, 6, 7}, {5, 6, 7, 0x110000}, {1, 2, 3, 0}};
    for (size_t i = 0; i < 5; i++) {
        add_accents(&b, damaged[i], i < 4 ? 4 : 3);
        CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "nfc_ranges: expected pairs");
    }
}

/* Parts: control tokens only in trusted text, merges across the borders. */
static void test_parts(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    const sq_text_part parts[] = {{"<end>a", 6, true}, {"b<end>", 6, false}, {"", 0, false},
                                  {"<e", 2, true},     {"nd>c", 4, true},    {"d", 1, false}};
    sq_token tokens[16];
    size_t n = 0;
    CHECK_OK(sq_tokenizer_encode(v.tokenizer, parts, 6, 0, tokens, 16, &n, &error), &error);
    CHECK_STR(ids_text(tokens, n), "17 8 4 3 17 9"); /* <end> ab e d <end> cd */
    /* A name that begins in untrusted text is text, and so is one that ends there. */
    const sq_text_part mixed[] = {{"<en", 3, false}, {"d><e", 4, true}, {"nd>", 3, false}};
    CHECK_OK(sq_tokenizer_encode(v.tokenizer, mixed, 3, 0, tokens, 16, &n, &error), &error);
    CHECK_STR(ids_text(tokens, n), "4 3 4 3");
    vocab_close(&v);
}

static void test_capacity(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    sq_text_part part = {"a1b", 3, false};
    sq_token tokens[3] = {-7, -7, -7};
    size_t n = 0;
    CHECK_OK(sq_tokenizer_encode(v.tokenizer, &part, 1, 0, NULL, 0, &n, &error), &error);
    CHECK_EQ(n, 3);
    CHECK_OK(sq_tokenizer_encode(v.tokenizer, &part, 1, 0, tokens, 2, &n, &error), &error);
    CHECK_EQ(n, 3);
    CHECK_STR(ids_text(tokens, 3), "0 7 -7");
    char text[4] = "...";
    CHECK_OK(sq_tokenizer_decode(v.tokenizer, (sq_token[]){abcd_}, 1, false, text, 2, &n, &error), &error);
    CHECK_EQ(n, 4);
    CHECK_STR(text, "ab.");
    vocab_close(&v);
}

/* ---- size and threads ------------------------------------------------------------------------------ */

static void check_long(const vocab_file *v, const char *unit, size_t n_units, size_t n_expected) {
    size_t unit_bytes = strlen(unit), n = 0, n_bytes = 0;
    char *text = malloc(n_units * unit_bytes), *again = malloc(n_units * unit_bytes);
    sq_token *tokens = malloc(n_units * unit_bytes * sizeof *tokens);
    for (size_t i = 0; i < n_units; i++)
        memcpy(text + i * unit_bytes, unit, unit_bytes);
    sq_error error;
    sq_text_part part = {text, n_units * unit_bytes, false};
    CHECK_OK(
        sq_tokenizer_encode(v->tokenizer, &part, 1, SQ_TOKENIZE_CONTINUE, tokens, part.n_bytes, &n, &error),
        &error);
    CHECK_EQ(n, n_expected);
    CHECK_OK(sq_tokenizer_decode(v->tokenizer, tokens, n, false, again, part.n_bytes, &n_bytes, &error),
             &error);
    CHECK(n_bytes == part.n_bytes && memcmp(text, again, n_bytes) == 0);
    free(text);
    free(again);
    free(tokens);
}

static void test_long_text(void) {
    const size_t million = 1 << 20;
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_spm(&b);
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    check_long(&v, "a", million, million / 2);
    check_long(&v, "\xFF", million, million);
    vocab_close(&v);
    add_bpe(&b);
    add_pattern(&b, " ?\\p{L}+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+");
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    check_long(&v, "a", million, million / 4);
    check_long(&v, " ", million, million);
    check_long(&v, "ab\xE9", million / 4, million / 2);
    vocab_close(&v);
}

static void *encode_often(void *context) {
    const vocab_file *v = context;
    sq_text_part part = {"ab ab<end>a1b abcd", 18, true};
    sq_token tokens[16];
    size_t n;
    for (int i = 0; i < 500; i++)
        if (sq_tokenizer_encode(v->tokenizer, &part, 1, 0, tokens, 16, &n, NULL) || n != 8 ||
            tokens[7] != abcd_)
            return context;
    return NULL;
}

static void test_threads(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    add_pattern(&b, " ?\\p{L}+");
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, encode_often, &v);
    for (int i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        CHECK(failed == NULL);
    }
    vocab_close(&v);
}

/* ---- damaged files ----------------------------------------------------------------------------------- */

static void check_refused(vocab_build *b, sq_status status, const char *part) {
    vocab_file v;
    sq_error error;
    if (!CHECK_FAILS(vocab_open(b, &v, &error), &error, status, part))
        return;
    CHECK(v.tokenizer == NULL);
}

static void refuse_tokens(const char *const *tokens, const char *part) {
    vocab_build b = {0};
    add_string(&b, "tokenizer.ggml.model", "gpt2");
    add_strings(&b, "tokenizer.ggml.tokens", tokens);
    add_strings(&b, "tokenizer.ggml.merges", (const char *const[]){"a b", NULL});
    check_refused(&b, SQ_ERROR_FORMAT, part);
}

static void refuse_pattern(const char *pattern) {
    vocab_build b = {0};
    add_bpe(&b);
    add_pattern(&b, pattern);
    check_refused(&b, SQ_ERROR_FORMAT, "squeezellm.tokenizer.patterns");
}

static void test_damaged(void) {
    static char huge[2000];
    memset(huge, 'a', sizeof huge - 1);
    refuse_tokens((const char *const[]){"a", "", "ab", NULL}, "token 1 has 0 bytes");
    refuse_tokens((const char *const[]){"a", huge, NULL}, "token 1 has 1999 bytes");
    refuse_tokens((const char *const[]){"a", "b", "ab", "a", NULL}, "tokens 0 and 3 are the same");
    refuse_tokens((const char *const[]){"a", "b", NULL}, "the result is not in the vocabulary");
    refuse_tokens((const char *const[]){"b", "ab", NULL}, "the left half is not");
    refuse_tokens((const char *const[]){NULL}, "no list of tokens");

    static const char *const lines[] = {"ab", "a", " ", "", "a  b", "a x", huge};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        vocab_build b = {0};
        add_string(&b, "tokenizer.ggml.model", "gpt2");
        add_strings(&b, "tokenizer.ggml.tokens", bpe_names);
        add_strings(&b, "tokenizer.ggml.merges", (const char *const[]){lines[i], NULL});
        check_refused(&b, SQ_ERROR_FORMAT, "tokenizer.ggml.merges: entry 0");
    }
    refuse_pattern("(");
    refuse_pattern("[a");
    refuse_pattern("\\C");
    refuse_pattern("\xFF");
    refuse_pattern("(?<=a*)b");

    vocab_build b = {0};
    add_string(&b, "tokenizer.ggml.model", "bert");
    check_refused(&b, SQ_ERROR_UNSUPPORTED, "\"bert\"");
    add_bpe(&b);
    add_u32(&b, "tokenizer.ggml.bos_token_id", 20);
    check_refused(&b, SQ_ERROR_FORMAT, "bos_token_id");
    add_bpe(&b);
    add_u32(&b, "tokenizer.ggml.unknown_token_id", 4000000000u);
    check_refused(&b, SQ_ERROR_FORMAT, "unknown_token_id");
    add_bpe(&b);
    add_i32s(&b, "squeezellm.stop_token_ids", (int32_t[]){0, -1}, 2);
    check_refused(&b, SQ_ERROR_FORMAT, "squeezellm.stop_token_ids: -1");
}

static void test_damaged_spm(void) {
    vocab_build b = {0};
    const char *const names[] = {"<0x00>", "<0x0G>", "a", NULL};
    add_string(&b, "tokenizer.ggml.model", "llama");
    add_strings(&b, "tokenizer.ggml.tokens", names);
    add_i32s(&b, "tokenizer.ggml.token_type", (int32_t[]){6, 6, 1}, 3);
    check_refused(&b, SQ_ERROR_FORMAT, "token 1 is a byte");
    add_string(&b, "tokenizer.ggml.model", "llama");
    add_strings(&b, "tokenizer.ggml.tokens", names);
    add_i32s(&b, "tokenizer.ggml.token_type", (int32_t[]){6, 1, 1}, 3);
    check_refused(&b, SQ_ERROR_FORMAT, "1 of the 256 byte tokens");
    add_string(&b, "tokenizer.ggml.model", "llama");
    add_strings(&b, "tokenizer.ggml.tokens", names);
    add_i32s(&b, "tokenizer.ggml.token_type", (int32_t[]){6, 7, 1}, 3);
    check_refused(&b, SQ_ERROR_FORMAT, "token 1 has type 7");
    add_string(&b, "tokenizer.ggml.model", "llama");
    add_strings(&b, "tokenizer.ggml.tokens", names);
    add_i32s(&b, "tokenizer.ggml.token_type", (int32_t[]){6, 1}, 2);
    check_refused(&b, SQ_ERROR_FORMAT, "token_type: expected 3");
    for (int i = 0; i < 2; i++) {
        add_string(&b, "tokenizer.ggml.model", "llama");
        add_strings(&b, "tokenizer.ggml.tokens", names);
        add_u32(&b, "tokenizer.ggml.unknown_token_id", 0);
        add_f32s(&b, "tokenizer.ggml.scores", (float[]){0, NAN, 1}, i ? 3 : 2);
        check_refused(&b, SQ_ERROR_FORMAT, i ? "token 1 is no number" : "scores: expected 3");
    }
}

/* A pattern that backtracks without end is stopped, not waited for. */
static void test_hostile_pattern(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_bpe(&b);
    add_pattern(&b, "(a+)+[c-z]");
    if (!CHECK_OK(vocab_open(&b, &v, &error), &error))
        return;
    char text[4096];
    memset(text, 'a', sizeof text);
    memset(text + 2048, 'b', 2048);
    sq_text_part part = {text, sizeof text, false};
    size_t n;
    CHECK_FAILS(sq_tokenizer_encode(v.tokenizer, &part, 1, 0, NULL, 0, &n, &error), &error,
                SQ_ERROR_UNSUPPORTED, "cannot be matched");
    vocab_close(&v);
    for (int i = 0; i < 3; i++) { /* matches that end before they start, or go back */
        static const char *const strange[] = {"(?=ab\\K)", "(?<=\\Ka)b", "(?=a\\Kb)|b"};
        add_bpe(&b);
        add_pattern(&b, strange[i]);
        if (vocab_open(&b, &v, &error) == SQ_OK)
            CHECK_OK(sq_tokenizer_encode(v.tokenizer, &part, 1, 0, NULL, 0, &n, &error), &error);
        vocab_close(&v);
    }
}

/* ---- streaming -------------------------------------------------------------------------------------- */

static void test_utf8_complete(void) {
    static const struct {
        const char *text;
        size_t complete;
    } cases[] = {
        {"", 0},          {"a", 1},         {"aé", 3},           {"a\xC3", 1},     {"\xF0\x9F\x98", 0},
        {"a\xF0", 1},     {"a\xF0\x9F", 1}, {"😀", 4},           {"\xE2\x82", 0},  {"€", 3},
        {"\xFF", 1},      {"\x80", 1},      {"\x80\x80\x80", 3}, {"\xC0", 1},      {"\xE0\x80", 2},
        {"\xED\xA0", 2},  {"\xF4\x90", 2},  {"\xF0\x8F", 2},     {"\xF5", 1},      {"é\x80", 3},
        {"\xF0\x9Fz", 3}, {"\xC3\xC3", 1},  {"\xF4\x8F\xBF", 0}, {"ab\xE4\xBD", 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_SAY(sq_utf8_complete(cases[i].text, strlen(cases[i].text)) == cases[i].complete,
                  "case %zu: found %zu, expected %zu", i,
                  sq_utf8_complete(cases[i].text, strlen(cases[i].text)), cases[i].complete);
}

/* A family of emoji, a byte at a time: what is printed is whole characters, and all of them. */
static void test_streaming(void) {
    const char *text = "a👨‍👩‍👧é世";
    size_t n = strlen(text), printed = 0, n_prints = 0;
    for (size_t end = 1; end <= n; end++) {
        size_t whole = printed + sq_utf8_complete(text + printed, end - printed);
        CHECK(whole == n || ((uint8_t)text[whole] & 0xC0) != 0x80);
        n_prints += whole > printed;
        printed = whole;
    }
    CHECK_EQ(printed, n);
    CHECK_EQ(n_prints, 8);
}

int main(void) {
    RUN(test_spm_merges_by_score);
    RUN(test_spm_bytes);
    RUN(test_spm_prefix);
    RUN(test_bpe_merges_by_rank);
    RUN(test_patterns);
    RUN(test_special_tokens);
    RUN(test_swallowed_space);
    RUN(test_nfc);
    RUN(test_parts);
    RUN(test_capacity);
    RUN(test_long_text);
    RUN(test_threads);
    RUN(test_damaged);
    RUN(test_damaged_spm);
    RUN(test_hostile_pattern);
    RUN(test_utf8_complete);
    RUN(test_streaming);
    return check_report();
}
