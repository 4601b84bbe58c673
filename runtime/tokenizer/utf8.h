/* UTF-8, one character at a time. */
#ifndef SQ_UTF8_H
#define SQ_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the character at the start of `text`, 1…4; 0 where there is no valid one (n_bytes is 0, or
 * the bytes are cut, overlong, a surrogate or past U+10FFFF). `point` receives it; may be NULL. */
size_t sq_utf8_read(const char *text, size_t n_bytes, uint32_t *point);

/* The same for the character at the end of `text`. */
size_t sq_utf8_read_last(const char *text, size_t n_bytes, uint32_t *point);

/* Bytes of valid UTF-8 at the start of `text`. */
size_t sq_utf8_valid_bytes(const char *text, size_t n_bytes);

/* Unicode's property White_Space. */
bool sq_is_white_space(uint32_t point);

#endif
