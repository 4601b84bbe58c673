/* A chat template as the texts that it writes between contents (docs/FORMAT.md, section 5). */
#ifndef SQ_CHAT_TABLE_H
#define SQ_CHAT_TABLE_H

#include "gguf.h"

/* What is taken off the ends of a content before it is placed. */
typedef enum sq_trim_side {
    SQ_TRIM_NONE = 0,
    SQ_TRIM_LEFT = 1,
    SQ_TRIM_RIGHT = 2,
    SQ_TRIM_BOTH = 3
} sq_trim_side;

typedef struct sq_trim {
    sq_trim_side side;
    bool newlines_only; /* else all white space */
} sq_trim;

typedef enum sq_role { SQ_ROLE_SYSTEM, SQ_ROLE_USER, SQ_ROLE_ASSISTANT, SQ_N_ROLES } sq_role;

extern const char *const sq_role_names[SQ_N_ROLES];

/* Texts are views into the file; NULL where the template has no such place. */
typedef struct sq_chat_table {
    const char *begin, *begin_system, *system_user, *user_assistant, *assistant_user;
    const char *user_end, *user_generate, *assistant_end;
    const char *system_user_empty; /* in system_user's place where the user's content is empty, or NULL */
    const char *no_system;         /* why there is no place for a system message; may be NULL itself */
    bool system_last;              /* the system message stands before the last user's content */
    const char *answer_after;      /* an assistant's content begins behind the last of these, or NULL */
    const char *thought_after;     /* and its thoughts behind the last of these before the first of those */
    const char *final_begin;  /* before the thoughts of an answer that ends the dialogue: written there */
    const char *final_middle; /* between these thoughts and that answer; NULL together: not written */
    sq_trim answer_trim;      /* of what stands behind answer_after */
    sq_trim thought_trim, final_trim; /* of such thoughts, and of such an answer */
    sq_trim trims[SQ_N_ROLES];
    sq_trim first_user_trim; /* of a user's content that follows a system message */
    bool no_empty[SQ_N_ROLES];
    bool empty_system_is_none;
    const char *think_word, *no_think_word; /* in a system message: they choose the table and are left out */
} sq_chat_table;

/* Reads the keys `prefix`begin and so on. `base`, where not NULL, gives what the file does not. */
sq_status sq_chat_table_load(const sq_gguf *file, const char *prefix, const sq_chat_table *base,
                             sq_chat_table *table, sq_error *error);

#endif
