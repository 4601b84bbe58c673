#include "status.h"

#include <stdarg.h>
#include <stdio.h>

const char *sq_version(void) {
    return SQ_VERSION;
}

/* Bytes of the well-formed UTF-8 character at `s` (RFC 3629: no overlong form, no surrogate); 0 where
 * there is none. */
static size_t character_bytes(const unsigned char *s) {
    if (s[0] < 0x80)
        return 1;
    size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0; /* a terminating zero ends here as well */
    if (s[0] == 0xe0 && s[1] < 0xa0)
        return 0;
    if (s[0] == 0xed && s[1] > 0x9f)
        return 0;
    if (s[0] == 0xf0 && s[1] < 0x90)
        return 0;
    if (s[0] == 0xf4 && s[1] > 0x8f)
        return 0;
    return n;
}

/* Characters a terminal would obey: C0, DEL and C1. */
static bool is_control(const unsigned char *s) {
    return s[0] < 0x20 || s[0] == 0x7f || (s[0] == 0xc2 && s[1] < 0xa0);
}

/* Names from hostile files end up in messages: whatever they hold, a message stays one line of valid
 * UTF-8 without control characters. */
static void make_safe(unsigned char *s) {
    while (*s) {
        size_t n = character_bytes(s);
        if (n == 0 || is_control(s)) {
            unsigned char plain = *s == '\n' || *s == '\t' ? ' ' : '?';
            size_t n_replaced = n ? n : 1;
            for (size_t i = 0; i < n_replaced; i++)
                s[i] = plain;
        }
        s += n ? n : 1;
    }
}

/* Takes away the last character of `s` [n] where only its first bytes are there. */
static void drop_partial(unsigned char *s, size_t n) {
    size_t start = n;
    while (start > 0 && n - start < 3 && (s[start - 1] & 0xc0) == 0x80)
        start--;
    if (start > 0 && s[start - 1] >= 0xc2 && character_bytes(s + start - 1) == 0)
        s[start - 1] = 0;
}

sq_status sq_fail(sq_error *error, sq_status status, const char *format, ...) {
    if (!error)
        return status;
    error->status = status;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    if (n < 0)
        snprintf(error->message, sizeof error->message, "error %d (no text)", (int)status);
    unsigned char *text = (unsigned char *)error->message;
    if (n >= (int)sizeof error->message)
        drop_partial(text, sizeof error->message - 1);
    make_safe(text);
    return status;
}
