/* sq.h stands alone: strict C99, nothing included before it. Every function it declares is in the library,
 * and there are few of them. Compiled with -std=c99 -pedantic (CMakeLists.txt). */
#include "sq.h"
#include "sq.h" /* twice does no harm */

#include <stdio.h>

#if __STDC_VERSION__ != 199901L
#error "compile this file as C99"
#endif

typedef void (*any_function)(void);

typedef struct entry {
    const char *name;
    any_function address; /* the linker's proof that it is there */
} entry;

#define ENTRY(name) {#name, (any_function)name}

static const entry entries[] = {
    ENTRY(sq_chat_check),        ENTRY(sq_chat_tokenize),  ENTRY(sq_detokenize),
    ENTRY(sq_log_probability),   ENTRY(sq_model_close),    ENTRY(sq_model_get_info),
    ENTRY(sq_model_get_tensor),  ENTRY(sq_model_kv_bytes), ENTRY(sq_model_meta),
    ENTRY(sq_model_n_tensors),   ENTRY(sq_model_open),     ENTRY(sq_model_read_row),
    ENTRY(sq_sampler_accept),    ENTRY(sq_sampler_create), ENTRY(sq_sampler_defaults),
    ENTRY(sq_sampler_free),      ENTRY(sq_sampler_reset),  ENTRY(sq_sampler_sample),
    ENTRY(sq_session_append),    ENTRY(sq_session_cancel), ENTRY(sq_session_create),
    ENTRY(sq_session_free),      ENTRY(sq_session_logits), ENTRY(sq_session_n_ctx),
    ENTRY(sq_session_n_threads), ENTRY(sq_session_sample), ENTRY(sq_session_set_lookup),
    ENTRY(sq_session_sync),      ENTRY(sq_session_times),  ENTRY(sq_session_tokens),
    ENTRY(sq_session_truncate),  ENTRY(sq_token_bos),      ENTRY(sq_token_eos),
    ENTRY(sq_token_is_control),  ENTRY(sq_token_is_stop),  ENTRY(sq_token_text),
    ENTRY(sq_tokenize),          ENTRY(sq_utf8_complete),  ENTRY(sq_version),
};

int main(void) {
    size_t n = sizeof entries / sizeof entries[0], i;
    for (i = 0; i < n; i++) {
        if (!entries[i].address) {
            fprintf(stderr, "%s is missing\n", entries[i].name);
            return 1;
        }
    }
    if (n > 60) {
        fprintf(stderr, "%lu functions, expected at most 60\n", (unsigned long)n);
        return 1;
    }
    printf("ok   %lu functions\n", (unsigned long)n);
    return 0;
}
