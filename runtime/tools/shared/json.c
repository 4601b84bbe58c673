#include "json.h"

#include <math.h>
#include <string.h>

/* ---- writing --------------------------------------------------------------------------------- */

void json_append_quoted(text *out, const char *bytes, size_t n) {
    text_append(out, "\"", 1);
    while (n > 0) {
        uint32_t c;
        size_t length = utf8_decode(bytes, n, &c);
        if (length == 0) {
            text_append_string(out, "\\ufffd");
            length = 1;
        } else if (c == '"' || c == '\\') {
            text_printf(out, "\\%c", (char)c);
        } else if (c == '\n') {
            text_append(out, "\\n", 2);
        } else if (c < 0x20 || (c >= 0x7F && c < 0xA0)) { /* the latter for terminals' sake */
            text_printf(out, "\\u%04x", c);
        } else {
            text_append(out, bytes, length);
        }
        bytes += length;
        n -= length;
    }
    text_append(out, "\"", 1);
}

static void begin_item(json_writer *w, const char *key) {
    if (w->depth > 0) {
        text_printf(&w->out, "%s\n%*s", w->has_items ? "," : "", (int)(2 * w->depth), "");
    }
    w->has_items = true;
    if (key) {
        json_append_quoted(&w->out, key, strlen(key));
        text_append(&w->out, ": ", 2);
    }
}

void json_open(json_writer *w, const char *key, char bracket) {
    begin_item(w, key);
    text_append(&w->out, &bracket, 1);
    w->depth++;
    w->has_items = false;
}

void json_close(json_writer *w, char bracket) {
    w->depth--;
    if (w->has_items) {
        text_printf(&w->out, "\n%*s", (int)(2 * w->depth), "");
    }
    text_append(&w->out, &bracket, 1);
    w->has_items = true;
    if (w->depth == 0) {
        text_append(&w->out, "\n", 1);
    }
}

void json_string(json_writer *w, const char *key, const char *value) {
    begin_item(w, key);
    if (value) {
        json_append_quoted(&w->out, value, strlen(value));
    } else {
        text_append_string(&w->out, "null");
    }
}

void json_u64(json_writer *w, const char *key, uint64_t value) {
    begin_item(w, key);
    text_printf(&w->out, "%llu", (unsigned long long)value);
}

void json_number(json_writer *w, const char *key, double value) {
    begin_item(w, key);
    if (isfinite(value)) {
        text_printf(&w->out, "%.10g", value);
    } else {
        text_append_string(&w->out, "null");
    }
}

void json_literal(json_writer *w, const char *key, const char *value) {
    begin_item(w, key);
    text_append_string(&w->out, value);
}

void json_bool(json_writer *w, const char *key, bool value) {
    json_literal(w, key, value ? "true" : "false");
}

/* ---- reading --------------------------------------------------------------------------------- */

bool json_fail(json_reader *r, const char *problem) {
    if (!r->problem) {
        r->problem = problem;
    }
    return false;
}

/* The next byte after white space, not taken; '\0' at the end (a zero byte is never valid here). */
static char peek(json_reader *r) {
    while (r->at < r->n && strchr(" \t\r\n", r->bytes[r->at]) && r->bytes[r->at]) {
        r->at++;
    }
    return r->at < r->n ? r->bytes[r->at] : '\0';
}

static bool take(json_reader *r, char expected, const char *problem) {
    if (r->problem || peek(r) != expected) {
        return json_fail(r, problem);
    }
    r->at++;
    return true;
}

bool json_enter(json_reader *r, char bracket) {
    return take(r, bracket, bracket == '{' ? "expected {" : "expected [");
}

bool json_next(json_reader *r, char bracket, size_t *n) {
    if (r->problem) {
        return false;
    }
    if (peek(r) == bracket) {
        r->at++;
        return false;
    }
    return (*n)++ == 0 || take(r, ',', bracket == '}' ? "expected , or }" : "expected , or ]");
}

/* The four digits after \u. */
static bool read_hex(json_reader *r, uint32_t *value) {
    *value = 0;
    for (int i = 0; i < 4; i++) {
        char digit = r->at < r->n ? r->bytes[r->at] : '\0';
        const char *digits = "0123456789abcdefABCDEF";
        const char *found = digit ? strchr(digits, digit) : NULL;
        if (!found) {
            return json_fail(r, "expected four hexadecimal digits after \\u");
        }
        uint32_t d = (uint32_t)(found - digits);
        *value = *value << 4 | (d < 16 ? d : d - 6);
        r->at++;
    }
    return true;
}

/* What follows \u: a character of the first plane, or a pair of surrogates. */
static bool read_unicode_escape(json_reader *r, text *value) {
    uint32_t c, low;
    if (!read_hex(r, &c)) {
        return false;
    }
    if (c >= 0xD800 && c < 0xDC00 && r->n - r->at >= 2 && memcmp(r->bytes + r->at, "\\u", 2) == 0) {
        r->at += 2;
        if (!read_hex(r, &low)) {
            return false;
        }
        if (low >= 0xDC00 && low < 0xE000) {
            c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        }
    }
    if (c >= 0xD800 && c < 0xE000) {
        return json_fail(r, "half a surrogate pair");
    }
    if (c == 0) {
        return json_fail(r, "a zero character");
    }
    utf8_append(value, c);
    return true;
}

static bool read_escape(json_reader *r, text *value) {
    static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char name = r->at < r->n ? r->bytes[r->at++] : '\0';
    if (name == 'u') {
        return read_unicode_escape(r, value);
    }
    const char *found = name ? strchr(names, name) : NULL;
    if (!found) {
        return json_fail(r, "an unknown escape in a string");
    }
    text_append(value, &meanings[found - names], 1);
    return true;
}

bool json_read_string(json_reader *r, text *value) {
    text_clear(value);
    if (!take(r, '"', "expected a string")) {
        return false;
    }
    while (r->at < r->n) {
        uint32_t c;
        size_t length = utf8_decode(r->bytes + r->at, r->n - r->at, &c);
        if (length == 0) {
            return json_fail(r, "invalid UTF-8 in a string");
        }
        if (c < 0x20) {
            return json_fail(r, "a control character in a string");
        }
        const char *start = r->bytes + r->at;
        r->at += length;
        if (c == '"') {
            return true;
        }
        if (c != '\\') {
            text_append(value, start, length);
        } else if (!read_escape(r, value)) {
            return false;
        }
    }
    return json_fail(r, "a string without an end");
}

bool json_read_key(json_reader *r, text *key) {
    return json_read_string(r, key) && take(r, ':', "expected : after a key");
}

static size_t skip_digits(json_reader *r) {
    size_t start = r->at;
    while (r->at < r->n && r->bytes[r->at] >= '0' && r->bytes[r->at] <= '9') {
        r->at++;
    }
    return r->at - start;
}

static bool skip_any(json_reader *r, const char *of) {
    bool found = r->at < r->n && r->bytes[r->at] && strchr(of, r->bytes[r->at]);
    r->at += found;
    return found;
}

bool json_read_number(json_reader *r, text *value) {
    text_clear(value);
    if (r->problem) {
        return false;
    }
    peek(r);
    size_t start = r->at;
    skip_any(r, "-");
    bool zero_first = r->at < r->n && r->bytes[r->at] == '0';
    size_t n_digits = skip_digits(r);
    bool valid = n_digits == 1 || (n_digits > 1 && !zero_first);
    if (skip_any(r, ".")) {
        valid = skip_digits(r) > 0 && valid;
    }
    if (skip_any(r, "eE")) {
        skip_any(r, "+-");
        valid = skip_digits(r) > 0 && valid;
    }
    if (!valid) {
        r->at = start;
        return json_fail(r, "expected a number");
    }
    text_append(value, r->bytes + start, r->at - start);
    return true;
}

bool json_read_end(json_reader *r) {
    peek(r);
    return !r->problem && (r->at == r->n || json_fail(r, "expected the end of the file"));
}

size_t json_line(const json_reader *r) {
    size_t line = 1;
    for (size_t i = 0; i < r->at && i < r->n; i++) {
        line += r->bytes[i] == '\n';
    }
    return line;
}
