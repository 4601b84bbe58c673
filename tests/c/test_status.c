/* Messages are one line of valid UTF-8, whatever they are made of. */
#include "status.h"

#include "check.h"

static void test_formats(void) {
    sq_error error;
    CHECK_EQ(sq_fail(&error, SQ_ERROR_FORMAT, "%s: expected %u, found %u", "x", 3u, 4u), SQ_ERROR_FORMAT);
    CHECK_EQ(error.status, SQ_ERROR_FORMAT);
    CHECK_STR(error.message, "x: expected 3, found 4");
    CHECK_EQ(sq_fail(NULL, SQ_ERROR_IO, "nobody listens"), SQ_ERROR_IO);
}

static void test_version(void) {
    unsigned major, minor, patch;
    CHECK_EQ(sscanf(sq_version(), "%u.%u.%u", &major, &minor, &patch), 3);
}

static void check_text(const char *text, const char *expected) {
    sq_error error;
    sq_fail(&error, SQ_ERROR_FORMAT, "%s", text);
    CHECK_STR(error.message, expected);
}

static void test_hostile_text(void) {
    check_text("Grüße, 日本, 😀", "Grüße, 日本, 😀");
    check_text("a\nb\tc\rd", "a b c?d");
    check_text("\x1b[31mred\x7f", "?[31mred?");
    check_text("\xc2\x9b", "??");           /* C1: CSI */
    check_text("\xff\xfe", "??");           /* never in UTF-8 */
    check_text("\xc0\xaf", "??");           /* overlong */
    check_text("\xed\xa0\x80", "???");      /* surrogate */
    check_text("\xf4\x90\x80\x80", "????"); /* past U+10FFFF */
    check_text("\xe6\x97", "??");           /* cut by the file, not by us */
    check_text("x\xe6\x97y", "x??y");
    check_text("\x80", "?");
    check_text("", "");
}

/* Text of every length around the buffer's end, made of characters of 1 to 4 bytes. */
static void test_cut(void) {
    static const char *const characters[] = {"a", "ü", "日", "😀"};
    for (size_t width = 1; width <= 4; width++) {
        for (size_t lead = 0; lead < width; lead++) {
            char text[1024] = "";
            for (size_t i = 0; i < lead; i++)
                strcat(text, "x");
            while (strlen(text) < 700)
                strcat(text, characters[width - 1]);
            sq_error error;
            sq_fail(&error, SQ_ERROR_FORMAT, "%s", text);
            size_t n = strlen(error.message), room = sizeof error.message - 1;
            CHECK_EQ(n, room - (room - lead) % width);
            CHECK(memcmp(error.message, text, n) == 0);
        }
    }
}

int main(void) {
    RUN(test_formats);
    RUN(test_version);
    RUN(test_hostile_text);
    RUN(test_cut);
    return check_report();
}
