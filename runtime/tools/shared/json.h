/* JSON (RFC 8259), as much as the tools need: a writer that makes valid JSON of hostile strings, and a
 * strict pull reader. */
#ifndef TOOLS_JSON_H
#define TOOLS_JSON_H

#include "text.h"

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct json_writer {
    text out; /* the caller's once everything is closed */
    unsigned depth;
    bool has_items; /* of the innermost object or array */
} json_writer;

/* `key` is NULL inside an array and at the top. Brackets: '{' or '['. */
void json_open(json_writer *w, const char *key, char bracket);
void json_close(json_writer *w, char bracket); /* '}' or ']'; ends the text with a newline at depth 0 */
/* Invalid UTF-8 becomes U+FFFD; NULL becomes null. */
void json_string(json_writer *w, const char *key, const char *value);
void json_u64(json_writer *w, const char *key, uint64_t value);
void json_number(json_writer *w, const char *key, double value); /* null where not finite */
void json_bool(json_writer *w, const char *key, bool value);
/* A value that is JSON already: a number as text. */
void json_literal(json_writer *w, const char *key, const char *value);

/* One string with its quotes, on one line. */
void json_append_quoted(text *out, const char *bytes, size_t n);

/* ---- reading --------------------------------------------------------------------------------- */

/* Every function returns false at the first problem and from then on; `problem` says which, `at` where. */
typedef struct json_reader {
    const char *bytes;
    size_t n;
    size_t at;
    const char *problem; /* "expected a string", lives for ever; NULL while all is well */
} json_reader;

/* Enters an object ('{') or array ('['). */
bool json_enter(json_reader *r, char bracket);
/* Whether another member or element follows in the object ('}') or array (']') whose closing bracket
 * this is, which is read where none does. `*n` counts them, 0 at first. False on a problem, too. */
bool json_next(json_reader *r, char bracket, size_t *n);
/* The key of a member and its colon. */
bool json_read_key(json_reader *r, text *key);
/* Refuses control characters, invalid UTF-8, lone surrogates and \u0000. Replaces what is in `value`. */
bool json_read_string(json_reader *r, text *value);
/* A number as it is written, "-0.5e3". */
bool json_read_number(json_reader *r, text *value);
/* Nothing but white space is left. */
bool json_read_end(json_reader *r);
bool json_fail(json_reader *r, const char *problem);
/* The line of the problem, from 1. */
size_t json_line(const json_reader *r);

#endif
