/* Continues a text.
 *
 * usage: generate MODEL.sq.gguf PROMPT
 */
#include <sq.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PROMPT = 512, MAX_ANSWER = 100 };

/* Prints the text that follows the tokens of `session`, as far as the context reaches. */
static sq_status answer(const sq_model *model, sq_session *session, sq_sampler *sampler, sq_error *error) {
    for (int i = 0; i < MAX_ANSWER; i++) {
        sq_token token;
        sq_status status = sq_session_sample(session, sampler, &token, error);
        if (status)
            return status;
        if (sq_token_is_stop(model, token))
            break;
        size_t n_bytes;
        const char *text = sq_token_text(model, token, false, &n_bytes);
        fwrite(text, 1, n_bytes, stdout);
        fflush(stdout);
        sq_sampler_accept(sampler, token);
        status = sq_session_append(session, &token, 1, NULL, error);
        if (status)
            return status;
    }
    putchar('\n');
    return SQ_OK;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL.sq.gguf PROMPT\n", argv[0]);
        return 2;
    }
    const char *prompt = argv[2];
    sq_model *model = NULL;
    sq_session *session = NULL;
    sq_sampler *sampler = NULL;
    sq_token tokens[MAX_PROMPT];
    size_t n_tokens = 0;
    sq_error error = {SQ_OK, ""};

    sq_status status = sq_model_open(argv[1], NULL, &model, &error);
    if (!status)
        status = sq_session_create(model, NULL, &session, &error);
    if (!status)
        status = sq_sampler_create(model, NULL, &sampler, &error);
    if (!status)
        status = sq_tokenize(model, prompt, strlen(prompt), SQ_TOKENIZE_BOS, tokens, MAX_PROMPT, &n_tokens,
                             &error);
    if (!status && n_tokens > MAX_PROMPT) {
        status = SQ_ERROR_ARGUMENT;
        snprintf(error.message, sizeof error.message, "the prompt has %zu tokens, at most %d fit", n_tokens,
                 MAX_PROMPT);
    }
    if (!status)
        status = sq_session_sync(session, tokens, n_tokens, NULL, &error);
    if (!status) {
        printf("%s", prompt);
        status = answer(model, session, sampler, &error);
    }
    if (status)
        fprintf(stderr, "%s: %s\n", argv[0], error.message);
    sq_sampler_free(sampler);
    sq_session_free(session);
    sq_model_close(model);
    return status ? 1 : 0;
}
