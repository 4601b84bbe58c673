/* Dialogues as the model was trained to see them, by the table of texts between the messages that the
 * converter reduced the chat template to (docs/FORMAT.md, section 5). Never changes after loading. */
#ifndef SQ_CHAT_H
#define SQ_CHAT_H

#include "tokenizer/tokenizer.h"

typedef struct sq_chat sq_chat;

/* A file without a table gives an sq_chat that knows why. `tokenizer` (may be NULL) and `file` must stay
 * open longer than the chat. */
sq_status sq_chat_load(const sq_gguf *file, const sq_tokenizer *tokenizer, sq_chat **chat, sq_error *error);
void sq_chat_free(sq_chat *chat);

/* As sq_chat_check and sq_chat_tokenize (sq.h). */
sq_status sq_chat_available(const sq_chat *chat, sq_error *error);
sq_status sq_chat_encode(const sq_chat *chat, const sq_message *messages, size_t n_messages, int flags,
                         sq_token *tokens, size_t capacity, size_t *n_tokens, sq_error *error);

#endif
