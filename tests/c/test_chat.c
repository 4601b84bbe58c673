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
static const char *render(const vocab_file *v, int flags, const char *const *messages) {
    static char text[512];
    sq_message list[16];
    sq_token tokens[128];
    size_t n_messages = 0, n = 0, n_bytes = 0;
    for (; messages[2 * n_messages]; n_messages++)
        list[n_messages] = (sq_message){messages[2 * n_messages], messages[2 * n_messages + 1]};
    sq_error error;
    if (sq_chat_encode(v->chat, list, n_messages, flags, tokens, 128, &n, &error)) {
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
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x")), "<s>ux<e><s>a");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x")), "<s>ux<e>");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x", A, "t", U, "xx")),
              "<s>ux<e><s>at<e><s>uxx<e><s>a");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "t", U, "x", A, "", U, "")),
              "<s>st<e><s>ux<e><s>a<e><s>u<e><s>a");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, "t")), "<s>ux<e><s>at<e>\n");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, " x\n")),
              "<s>u x\n<e><s>a"); /* nothing is trimmed unasked */
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
    CHECK_OK(sq_chat_encode(v.chat, &message, 1, SQ_CHAT_GENERATE, tokens, 32, &n, &error), &error);
    CHECK_STR(ids_text(tokens, n), "0 11 8 10 9 1 0 4"); /* <s> ux < e > <e> <s> a */
    CHECK_OK(sq_chat_encode(v.chat, &message, 1, SQ_CHAT_GENERATE, NULL, 0, &n, &error), &error);
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
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE("tool", "x")), "message 1: role \"tool\"");
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x", S, "x")),
               "message 2: a system message can only be the first");
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "x", S, "x")),
               "message 2: a system message can only be the first");
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(A, "x")), "message 1: role assistant, expected user");
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "x", U, "x", U, "x")),
               "message 3: role user, expected assistant");
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x", A, "x")), "the last message is the assistant's");
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "x")), "the last message is the system's");
    check_says(render(&v, 0, DIALOGUE(U, "x", A, "x")), "end with a message by the user");
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(NULL)), "no message");
    size_t n;
    const sq_message nothing = {NULL, NULL};
    CHECK_FAILS(sq_chat_encode(v.chat, &nothing, 1, SQ_CHAT_GENERATE, NULL, 0, &n, &error), &error,
                SQ_ERROR_ARGUMENT, "NULL");
    vocab_close(&v);
}

/* A table without texts. */
static const char *const plain_keys[] = {"squeezellm.chat.begin", "squeezellm.chat.user_assistant",
                                         "squeezellm.chat.assistant_user", "squeezellm.chat.user_end",
                                         "squeezellm.chat.user_generate"};
enum { N_PLAIN_KEYS = sizeof plain_keys / sizeof *plain_keys };

static void test_no_system(void) {
    vocab_build b = {0};
    vocab_file v;
    add_vocab(&b);
    for (int i = 0; i < N_PLAIN_KEYS; i++)
        add_string(&b, plain_keys[i], "");
    add_string(&b, "squeezellm.chat.no_system", "it is for users");
    if (!open_table(&b, &v))
        return;
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "x", U, "x")),
               "takes no system message (it is for users)");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x", A, "a", U, "x")), "xax");
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
    CHECK_STR(render(&v, 0, DIALOGUE(U, content)), wanted);
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
    CHECK_STR(render(&v, 0, DIALOGUE(S, " x ", U, " x ", A, " t ", U, " x ")),
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
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, "<t>xx</t>\n\n t", U, "x")), "<s>ux<e><s>a t<e><s>ux<e>");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, "x</t>s</t>t</t", U, "x")), "<s>ux<e><s>at<t<e><s>ux<e>");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, "\nt", U, "x")), "<s>ux<e><s>a\nt<e><s>ux<e>");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x</t>s")), "<s>ux<t>s<e>"); /* '/' has no token here */
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
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, " \n")), "message 1 is empty");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x", A, "", U, "x")), "<s>ux<e><s>a<e><s>ux<e><s>a");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, " ", U, "x")), "<s>ux<e><s>a");
    vocab_close(&v);
    add_table(&b);
    add_string(&b, "squeezellm.chat.user_trim", "both");
    add_string(&b, "squeezellm.chat.system_user_empty", "<e>");
    if (!open_table(&b, &v))
        return;
    CHECK_STR(render(&v, 0, DIALOGUE(S, "t", U, " ")), "<s>st<e><e>");
    CHECK_STR(render(&v, 0, DIALOGUE(S, "t", U, "x")), "<s>st<e><s>ux<e>");
    CHECK_STR(render(&v, 0, DIALOGUE(U, " ")), "<s>u<e>");
    vocab_close(&v);
}

/* The system message stands before the last user's content, and nowhere once that is answered. */
static void test_system_last(void) {
    vocab_build b = {0};
    vocab_file v;
    add_vocab(&b);
    static const char *const texts[] = {"<s>u", "<e>a", "<e>u", "<e>", "<e>a"};
    for (int i = 0; i < N_PLAIN_KEYS; i++)
        add_string(&b, plain_keys[i], texts[i]);
    add_bool(&b, "squeezellm.chat.system_last", true);
    add_string(&b, "squeezellm.chat.system_user", "\n");
    add_string(&b, "squeezellm.chat.assistant_end", "<e>");
    add_string(&b, "squeezellm.chat.user_trim", "both");
    add_string(&b, "squeezellm.chat.first_user_trim", "none");
    if (!open_table(&b, &v))
        return;
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "s", U, " x")), "<s>us\n x<e>a");
    CHECK_STR(render(&v, 0, DIALOGUE(S, "s", U, " x", A, "t", U, " x")), "<s>ux<e>at<e>us\n x<e>");
    CHECK_STR(render(&v, 0, DIALOGUE(S, "s", U, " x", A, "t")), "<s>ux<e>at<e>");
    CHECK_STR(render(&v, 0, DIALOGUE(U, " x")), "<s>ux<e>");
    vocab_close(&v);
}

/* An answer that ends the dialogue is written with its thinking, earlier ones without. */
static void test_final_answers(void) {
    vocab_build b = {0};
    vocab_file v;
    add_table(&b);
    add_string(&b, "squeezellm.chat.answer_after", "</t>");
    add_string(&b, "squeezellm.chat.thought_after", "<t>");
    add_string(&b, "squeezellm.chat.thought_trim", "both newlines");
    add_string(&b, "squeezellm.chat.final_begin", "<s>");
    add_string(&b, "squeezellm.chat.final_middle", "<e>");
    add_string(&b, "squeezellm.chat.final_trim", "left");
    add_string(&b, "squeezellm.chat.assistant_end", "<e>\n");
    if (!open_table(&b, &v))
        return;
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, "<t>\ns\n</t> t")), "<s>ux<e><s>a<s>s<e>t<e>\n");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, "s<t>u<t>a</t>x</t>t")), "<s>ux<e><s>a<s>a<e>t<e>\n");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, " t")), "<s>ux<e><s>a<s><e>t<e>\n");
    CHECK_STR(render(&v, 0, DIALOGUE(U, "x", A, "<t>s</t> t", U, "x")), "<s>ux<e><s>a t<e><s>ux<e>");
    vocab_close(&v);
}

/* The switch for thinking: by the caller, or by words in a system message, which are stronger. */
static void test_thinking(void) {
    vocab_build b = {0};
    vocab_file v;
    sq_error error;
    add_table(&b);
    add_string(&b, "squeezellm.chat.system_trim", "right");
    add_bool(&b, "squeezellm.chat.empty_system_is_none", true);
    add_string(&b, "squeezellm.chat.think_word", "tx");
    add_string(&b, "squeezellm.chat.no_think_word", "xt");
    add_string(&b, "squeezellm.chat.no_think.begin", "<s>tu");
    add_string(&b, "squeezellm.chat.no_think.user_generate", "<e><s>at");
    if (!open_table(&b, &v))
        return;
    const int stop = SQ_CHAT_GENERATE | SQ_CHAT_NO_THINKING;
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x")), "<s>ux<e><s>a");
    CHECK_STR(render(&v, stop, DIALOGUE(U, "x")), "<s>tux<e><s>at");
    CHECK_STR(render(&v, stop, DIALOGUE(S, "a", U, "x")), "<s>sa<e><s>ux<e><s>at");
    CHECK_STR(render(&v, stop, DIALOGUE(S, "tx a tx", U, "x")), "<s>s a<e><s>ux<e><s>a");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "a xtxt", U, "x")), "<s>sa<e><s>ux<e><s>at");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "xt", U, "x")), "<s>tux<e><s>at");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(S, "txxttxt", U, "x")), "<s>st<e><s>ux<e><s>at");
    CHECK_STR(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "xt")), "<s>uxt<e><s>a"); /* not in others' messages */
    vocab_close(&v);
    add_table(&b);
    if (!open_table(&b, &v))
        return;
    const sq_message message = {U, "x"};
    size_t n;
    CHECK_FAILS(sq_chat_encode(v.chat, &message, 1, stop, NULL, 0, &n, &error), &error, SQ_ERROR_UNSUPPORTED,
                "no switch for thinking");
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
    check_says(render(&v, SQ_CHAT_GENERATE, DIALOGUE(U, "x")), "cannot chat");
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
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT,
                "answer_after: expected a string that is not empty");
    add_table(&b);
    add_string(&b, "squeezellm.chat.no_think.user_generate", "");
    add_string(&b, "squeezellm.chat.no_think.think_word", "");
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "chat.no_think.think_word: expected");
    add_table(&b);
    add_string(&b, "squeezellm.chat.final_begin", "x");
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "final_begin: expected");
    add_vocab(&b);
    for (int i = 0; i < N_PLAIN_KEYS; i++)
        add_string(&b, plain_keys[i], "");
    add_bool(&b, "squeezellm.chat.system_last", true);
    CHECK_FAILS(vocab_open(&b, &v, &error), &error, SQ_ERROR_FORMAT, "system_user: expected");
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
    RUN(test_system_last);
    RUN(test_final_answers);
    RUN(test_thinking);
    RUN(test_unavailable);
    RUN(test_damaged);
    return check_report();
}
