/* A growing string of bytes, and UTF-8. Tools only: out of memory ends the program with a sentence. */
#ifndef TOOLS_TEXT_H
#define TOOLS_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* `{0}` is an empty text. Zero-terminated where `bytes` is not NULL; may hold zero bytes before that. */
typedef struct text {
    char *bytes;
    size_t n;
    size_t capacity;
} text;

void text_append(text *t, const char *bytes, size_t n);
void text_append_string(text *t, const char *string);
void text_printf(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Drops the first n bytes. */
void text_drop(text *t, size_t n);
void text_clear(text *t);
void text_free(text *t);
/* The content, never NULL; valid until the text changes. */
const char *text_string(const text *t);
/* Appends all that is left of `file`; false on a read error, or past `max_bytes` (errno is EFBIG). */
bool text_read(text *t, FILE *file, size_t max_bytes);

/* Length (1…4) of the character at the start of `bytes`, 0 where it is no valid UTF-8 (RFC 3629: no
 * surrogates, nothing overlong, nothing past U+10FFFF) or n is 0. */
size_t utf8_decode(const char *bytes, size_t n, uint32_t *code_point);
void utf8_append(text *t, uint32_t code_point);

/* realloc(pointer, n · size) that does not fail; n · size is checked. */
void *memory_resize(void *pointer, size_t n, size_t size);
char *memory_copy_string(const char *string);

#endif
