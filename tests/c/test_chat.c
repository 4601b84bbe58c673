/* Dialogues by a table of texts, on a vocabulary of single letters. */
#include "check.h"
#include "vocab_build.h"

/* Letters stand for themselves; <s> and <e> are control tokens. */
static const char *const names[] = {"<s>", "<e>", "s", "u", "a",  "x", "Ċ",
                                    "Ġ",   "<",   ">", "e", "ux", "t", NULL};
static const int32_t types[] = {3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static void add_vocab(vocab_build *b) {
    add_string(b, "tokenizer.ggml.model", "gpt2");
    add_strings(b, "tokenizer.ggml.tokens", names);
    add_i32s(b, "tokenizer.ggml.token_type", types, sizeof types / sizeof *types);
    add_strings(b, "tokenizer.ggml.merges", (const char *const[]){"u x", NULL});
}

static void add_table(vocab_build *b) {
    add_vocab(b);
    add_string(b, "squeezellm.chat.begin", "<s>u");
    add_string(b, "squeezellm.chat.begin_system", "<s>s");
    add_string(b, "squeezellm.chat.system_user", "<e><s>u");
    add_string(b, "squeezellm.chat.user_assistant", "<e><s>a");
    add_string(b, "squeezellm.chat.assistant_user", "<e><s>u");
    add_string(b, "squeezellm.chat.user_end", "<e>");
    add_string(b, "squeezellm.chat.user_generate", "<e><s>a");
}

/* The tokens' texts, or the error's message. `messages` are role, content, …, NULL. */
static const char *render(const vocab_file *v, bool generate, const char *const *messages) {
    static char text[512];
    sq_message list[16];
    sq_token tokens[128];
    size_t n_messages = 0, n = 0, n_bytes = 0;
    for (; messages[2 * n_messages]; n_messages++)
        list[n_messages] = (sq_message){messages[2 * n_messages], messages[2 * n_messages + 1]};
    sq_error error;
    if (sq_chat_encode(v->chat, list, n_messages, generate, tokens, 128, &n, &error)) {
        CHECK(error.status == SQ_ERROR_ARGUMENT || error.status == SQ_ERROR_UNSUPPORTED);
        snprintf(text, sizeof text, "%s", error.message);
        return text;
    }
    CHECK_OK(sq_tokenizer_decode(v->tokenizer, tokens, n, true, text, sizeof text - 1, &n_bytes, &error),
             &error);
    text[n_bytes] = 0;
    return text;
}

#define DIALOGUE(...) ((const char *const[]){__VA_ARGS__, NULL, NULL})
#define U             "user"
#define S             "system"
#define A             "assistant"

static bool open_table(vocab_build *b, vocab_file *v) {
    sq_error error;
    return CHECK_OK(vocab_open(b, v, &error), &error);
}

static void check_says(const char *found, const char *part) {
    CHECK_SAY(strstr(found, part) != NULL, "found \"%s\", expected it to hold \"%s\"", found, part);
}

static void test_turns(void) {
    vocab_build b = {0};
    vocab_file v;
    add_table(&b);
    add_string(&b, "squeezellm.chat.assistant_end", "<e>\n");
    if (!open_table(&b, &v))
        return;
    CHECK_STR(render(&v, true, DIALOGUE(U, "x")), "<s>ux<e><s>a");
    CHECK_STR(render(&v, false, DIALOGUE(U, "x")), "<s>ux<e>");
    CHECK_STR(render(&v, true, DIALOGUE(U, "x", A, "t", U, "xx")), "<s>ux<e><s>at<e><s>uxx<e><s>a");
    CHECK_STR(render(&v, true, DIALOGUE(S, "t", U, "x", A, "", U, "")), "<s>st<e><s>ux<e><s>a<e><s>u<e><s>a");
    CHECK_STR(render(&v, false, DIALOGUE(U, "x", A, "t")), "<s>ux<e><s>at<e>\n");
    CHECK_STR(render(&v, true, DIALOGUE(U, " x\n")), "<s>u x\n<e><s>a"); /* nothing is trimmed unasked */
    vocab_close(&v);
}

/* Text of the table and of a content merge; control tokens in contents are letters. */
static void test_trust(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_table(&b);
    if (!open_table(&b, &v))
        return;
    sq_token tokens[32];
    size_t n = 0;
    const sq_message message = {U, "x<e>"};
    CHECK_OK(sq_chat_encode(v.chat, &message, 1, true, tokens, 32, &n, &error), &error);
    CHECK_STR(ids_text(tokens, n), "0 11 8 10 9 1 0 4"); /* <s> ux < e > <e> <s> a */
    CHECK_OK(sq_chat_encode(v.chat, &message, 1, true, NULL, 0, &n, &error), &error);
    CHECK_EQ(n, 8);
    vocab_close(&v);
}

static void test_refusals(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_table(&b);
    if (!open_table(&b, &v))
        return;
    check_says(render(&v, true, DIALOGUE("tool", "x")), "message 1: role \"tool\"");
    check_says(render(&v, true, DIALOGUE(U, "x", S, "x")),
               "message 2: a system message can only be the first");
    check_says(render(&v, true, DIALOGUE(S, "x", S, "x")),
               "message 2: a system message can only be the first");
    check_says(render(&v, true, DIALOGUE(A, "x")), "message 1: role assistant, expected user");
    check_says(render(&v, true, DIALOGUE(S, "x", U, "x", U, "x")),
               "message 3: role user, expected assistant");
    check_says(render(&v, true, DIALOGUE(U, "x", A, "x")), "the last message is the assistant's");
    check_says(render(&v, true, DIALOGUE(S, "x")), "the last message is the system's");
    check_says(render(&v, false, DIALOGUE(U, "x", A, "x")), "end with a message by the user");
    check_says(render(&v, true, DIALOGUE(NULL)), "no message");
    size_t n;
    const sq_message nothing = {NULL, NULL};
    CHECK_FAILS(sq_chat_encode(v.chat, &nothing, 1, true, NULL, 0, &n, &error), &error, SQ_ERROR_ARGUMENT,
                "NULL");
    vocab_close(&v);
}

static void test_no_system(void) {
    vocab_build b = {0};
    vocab_file v;
    add_vocab(&b);
    static const char *const keys[] = {"begin", "user_assistant", "assistant_user", "user_end",
                                       "user_generate"};
    for (int i = 0; i < 5; i++) {
        char key[64];
        snprintf(key, sizeof key, "squeezellm.chat.%s", keys[i]);
        add_string(&b, key, "");
    }
    add_string(&b, "squeezellm.chat.no_system", "it is for users");
    if (!open_table(&b, &v))
        return;
    check_says(render(&v, true, DIALOGUE(S, "x", U, "x")), "takes no system message (it is for users)");
    CHECK_STR(render(&v, true, DIALOGUE(U, "x", A, "a", U, "x")), "xax");
    vocab_close(&v);
}

static void check_trim(const char *how, const char *content, const char *expected) {
    vocab_build b = {0};
    vocab_file v;
    add_table(&b);
    add_string(&b, "squeezellm.chat.user_trim", how);
    if (!open_table(&b, &v))
        return;
    char wanted[64];
    snprintf(wanted, sizeof wanted, "<s>u%s<e>", expected);
    CHECK_STR(render(&v, false, DIALOGUE(U, content)), wanted);
    vocab_close(&v);
}

static void test_trims(void) {
    check_trim("none", "\n x \n", "\n x \n");
    check_trim("left", "\n x \n", "x \n");
    check_trim("right", "\n x \n", "\n x");
    check_trim("both", "\n x \n", "x");
    check_trim("both", " \n ", "");
    check_trim("both", "\t\u3000\u2028x\u00a0\u2003\xC2\x85\x1f", "x");
    check_trim("left newlines", "\n\n x \n", " x \n");
    check_trim("right newlines", "\n x \n\n", "\n x ");
    check_trim("both newlines", "\n x \n", " x ");
    vocab_build b = {0};
    vocab_file v;
    add_table(&b);
    add_string(&b, "squeezellm.chat.user_trim", "both");
    add_string(&b, "squeezellm.chat.first_user_trim", "right");
    add_string(&b, "squeezellm.chat.system_trim", "left");
    if (!open_table(&b, &v))
        return;
    CHECK_STR(render(&v, false, DIALOGUE(S, " x ", U, " x ", A, " t ", U, " x ")),
              "<s>sx <e><s>u x<e><s>a t <e><s>ux<e>");
    vocab_close(&v);
}

static void test_answers(void) {
    vocab_build b = {0};
    vocab_file v;
    add_table(&b);
    add_string(&b, "squeezellm.chat.answer_after", "</t>");
    add_string(&b, "squeezellm.chat.answer_trim", "left newlines");
    if (!open_table(&b, &v))
        return;
    CHECK_STR(render(&v, false, DIALOGUE(U, "x", A, "<t>xx</t>\n\n t", U, "x")), "<s>ux<e><s>a t<e><s>ux<e>");
    CHECK_STR(render(&v, false, DIALOGUE(U, "x", A, "x</t>s</t>t</t", U, "x")), "<s>ux<e><s>at<t<e><s>ux<e>");
    CHECK_STR(render(&v, false, DIALOGUE(U, "x", A, "\nt", U, "x")), "<s>ux<e><s>a\nt<e><s>ux<e>");
    CHECK_STR(render(&v, false, DIALOGUE(U, "x</t>s")), "<s>ux<t>s<e>"); /* '/' has no token here */
    vocab_close(&v);
}

static void test_empty(void) {
    vocab_build b = {0};
    vocab_file v;
    add_table(&b);
    add_string(&b, "squeezellm.chat.user_trim", "both");
    add_string(&b, "squeezellm.chat.system_trim", "both");
    add_strings(&b, "squeezellm.chat.no_empty", (const char *const[]){U, NULL});
    add_bool(&b, "squeezellm.chat.empty_system_is_none", true);
    if (!open_table(&b, &v))
        return;
    check_says(render(&v, true, DIALOGUE(U, " \n")), "message 1 is empty");
    CHECK_STR(render(&v, true, DIALOGUE(U, "x", A, "", U, "x")), "<s>ux<e><s>a<e><s>ux<e><s>a");
    CHECK_STR(render(&v, true, DIALOGUE(S, " ", U, "x")), "<s>ux<e><s>a");
    vocab_close(&v);
}

static void test_unavailable(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_vocab(&b);
    if (!open_table(&b, &v))
        return;
    CHECK_FAILS(sq_chat_available(v.chat, &error), &error, SQ_ERROR_UNSUPPORTED, "holds no chat template");
    check_says(render(&v, true, DIALOGUE(U, "x")), "cannot chat");
    vocab_close(&v);
    add_vocab(&b);
    add_string(&b, "squeezellm.chat.unsupported", "it sings");
    if (!open_table(&b, &v))
        return;
    CHECK_FAILS(sq_chat_available(v.chat, &error), &error, SQ_ERROR_UNSUPPORTED, "it sings");
    vocab_close(&v);
}

static void test_damaged(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_vocab(&b);
    add_string(&b, "squeezellm.chat.begin", "");
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "user_assistant: expected a string");
    add_table(&b);
    add_string(&b, "squeezellm.chat.user_trim", "all");
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "user_trim: \"all\"");
    add_table(&b);
    add_u32(&b, "squeezellm.chat.assistant_end", 1);
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "assistant_end: expected a string");
    add_table(&b);
    add_string(&b, "squeezellm.chat.answer_after", "");
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "answer_after: empty");
    add_table(&b);
    add_u32(&b, "squeezellm.chat.no_empty", 1);
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "no_empty");
}

int main(void) {
    RUN(test_turns);
    RUN(test_trust);
    RUN(test_refusals);
    RUN(test_no_system);
    RUN(test_trims);
    RUN(test_answers);
    RUN(test_empty);
    RUN(test_unavailable);
    RUN(test_damaged);
    return check_report();
}
