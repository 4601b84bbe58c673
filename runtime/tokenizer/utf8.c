#include "utf8.h"

#include "../sq.h"

/* Length the first byte announces and the range its second byte must lie in (Unicode 15, table 3-7);
 * 0 where no character starts so. */
static size_t lead_length(uint8_t lead, uint8_t *second_min, uint8_t *second_max) {
    *second_min = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    *second_max = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

size_t sq_utf8_read(const char *text, size_t n_bytes, uint32_t *point) {
    const uint8_t *bytes = (const uint8_t *)text;
    uint8_t min, max;
    if (n_bytes == 0)
        return 0;
    size_t length = lead_length(bytes[0], &min, &max);
    if (length == 0 || length > n_bytes)
        return 0;
    uint32_t value = length == 1 ? bytes[0] : bytes[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (bytes[i] < min || bytes[i] > max)
            return 0;
        value = value << 6 | (bytes[i] & 0x3F);
        min = 0x80, max = 0xBF;
    }
    if (point)
        *point = value;
    return length;
}

size_t sq_utf8_read_last(const char *text, size_t n_bytes, uint32_t *point) {
    size_t length = 1;
    while (length < 4 && length < n_bytes && ((uint8_t)text[n_bytes - length] & 0xC0) == 0x80)
        length++;
    return length <= n_bytes && sq_utf8_read(text + n_bytes - length, length, point) == length ? length : 0;
}

size_t sq_utf8_valid_bytes(const char *text, size_t n_bytes) {
    size_t n = 0;
    for (size_t length; (length = sq_utf8_read(text + n, n_bytes - n, NULL)) > 0;)
        n += length;
    return n;
}

bool sq_is_white_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

size_t sq_utf8_complete(const char *text, size_t n_bytes) {
    const uint8_t *bytes = (const uint8_t *)text;
    /* Only the last three bytes can begin a character that is not yet whole. */
    for (size_t back = 1; back <= 3 && back <= n_bytes; back++) {
        const uint8_t *start = bytes + n_bytes - back;
        uint8_t min, max;
        size_t length = lead_length(*start, &min, &max);
        if (length > back) { /* cut, unless what is there already cannot become valid */
            bool valid = back < 2 || (start[1] >= min && start[1] <= max);
            return valid ? n_bytes - back : n_bytes;
        }
        if (length > 0 || *start >= 0xC0)
            return n_bytes;
    }
    return n_bytes;
}
