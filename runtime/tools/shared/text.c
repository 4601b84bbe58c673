#include "text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void *memory_resize(void *pointer, size_t n, size_t size) {
    size_t n_bytes;
    void *resized = NULL;
    if (!__builtin_mul_overflow(n, size, &n_bytes)) {
        resized = realloc(pointer, n_bytes ? n_bytes : 1);
    }
    if (!resized) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return resized;
}

char *memory_copy_string(const char *string) {
    size_t n = strlen(string) + 1;
    return memcpy(memory_resize(NULL, n, 1), string, n);
}

void text_append(text *t, const char *bytes, size_t n) {
    if (t->capacity - t->n <= n) { /* one more byte for the terminating zero */
        t->capacity = 2 * (t->n + n) + 64;
        t->bytes = memory_resize(t->bytes, t->capacity, 1);
    }
    if (n) {
        memcpy(t->bytes + t->n, bytes, n);
    }
    t->n += n;
    t->bytes[t->n] = '\0';
}

void text_append_string(text *t, const char *string) {
    text_append(t, string, strlen(string));
}

void text_printf(text *t, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char *line = NULL;
    int n = vasprintf(&line, format, arguments);
    va_end(arguments);
    if (n < 0) {
        memory_resize(NULL, SIZE_MAX, 2); /* says so and ends */
    }
    text_append(t, line, (size_t)n);
    free(line);
}

void text_drop(text *t, size_t n) {
    if (n) {
        t->n -= n;
        memmove(t->bytes, t->bytes + n, t->n + 1);
    }
}

void text_clear(text *t) {
    t->n = 0;
    if (t->bytes) {
        t->bytes[0] = '\0';
    }
}

void text_free(text *t) {
    free(t->bytes);
    *t = (text){0};
}

const char *text_string(const text *t) {
    return t->bytes ? t->bytes : "";
}

bool text_read(text *t, FILE *file, size_t max_bytes) {
    char block[65536];
    size_t n;
    while ((n = fread(block, 1, sizeof block, file)) > 0) {
        if (n > max_bytes || t->n > max_bytes - n) {
            errno = EFBIG;
            return false;
        }
        text_append(t, block, n);
    }
    return !ferror(file);
}

size_t utf8_decode(const char *bytes, size_t n, uint32_t *code_point) {
    const unsigned char *b = (const unsigned char *)bytes;
    if (n == 0) {
        return 0;
    }
    if (b[0] < 0x80) {
        *code_point = b[0];
        return 1;
    }
    size_t length = b[0] >= 0xF0 ? 4 : b[0] >= 0xE0 ? 3 : 2;
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (b[0] < 0xC2 || b[0] > 0xF4 || n < length) {
        return 0;
    }
    uint32_t value = b[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((b[i] & 0xC0) != 0x80) {
            return 0;
        }
        value = value << 6 | (b[i] & 0x3F);
    }
    if (value < smallest[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
        return 0;
    }
    *code_point = value;
    return length;
}

void utf8_append(text *t, uint32_t c) {
    char bytes[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    if (n == 1) {
        bytes[0] = (char)c;
    } else {
        for (size_t i = n; --i > 0; c >>= 6) {
            bytes[i] = (char)(0x80 | (c & 0x3F));
        }
        bytes[0] = (char)((0xF00u >> n) | c); /* 110xxxxx, 1110xxxx, 11110xxx */
    }
    text_append(t, bytes, n);
}
