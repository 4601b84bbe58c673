/* UTF-8, one character at a time. */
#ifndef SQ_UTF8_H
#define SQ_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the character at the start of `text`, 1…4; 0 where there is no valid one (n_bytes is 0, or
 * the bytes are cut, overlong, a surrogate or past U+10FFFF). `point` receives it; may be NULL. */
size_t sq_utf8_read(const char *text, size_t n_bytes, uint32_t *point);

#endif
