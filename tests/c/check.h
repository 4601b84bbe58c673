/* The smallest test harness that says where and what. A test program has one main():
 *
 *     int main(void) {
 *         RUN(test_this);
 *         return check_report();
 *     }
 *
 * A failed check prints file, line and values and counts; the program goes on and exits with 1. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "sq.h"

static int check_n_checks, check_n_failures;

__attribute__((format(printf, 4, 5), unused)) static bool check_that(bool passed, const char *file, int line,
                                                                     const char *format, ...) {
    check_n_checks++;
    if (passed)
        return true;
    if (++check_n_failures > 20)
        return false; /* the first ones tell */
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return false;
}

/* Each evaluates its arguments once, and is true where the check passed. */
#define CHECK(condition) check_that((condition), __FILE__, __LINE__, "%s is false", #condition)

/* With a message of its own: CHECK_SAY(n < 3, "bit %d: %s", bit, error.message). */
#define CHECK_SAY(condition, ...) check_that((condition), __FILE__, __LINE__, __VA_ARGS__)

#define CHECK_EQ(found, expected)  check_integers(found, expected, #found, __FILE__, __LINE__)
#define CHECK_STR(found, expected) check_strings(found, expected, #found, __FILE__, __LINE__)
#define CHECK_NEAR(found, expected, tolerance)                                                               \
    check_near(found, expected, tolerance, #found, __FILE__, __LINE__)

/* The status, and a message that holds `part`. */
#define CHECK_FAILS(call, error, expected_status, part)                                                      \
    check_fails(call, error, expected_status, part, #call, __FILE__, __LINE__)

/* SQ_OK; else the error's message is printed. */
#define CHECK_OK(call, error) check_ok(call, error, #call, __FILE__, __LINE__)

__attribute__((unused)) static bool check_integers(int64_t found, int64_t expected, const char *what,
                                                   const char *file, int line) {
    return check_that(found == expected, file, line, "%s: found %" PRId64 ", expected %" PRId64, what, found,
                      expected);
}

__attribute__((unused)) static bool check_strings(const char *found, const char *expected, const char *what,
                                                  const char *file, int line) {
    bool same = found && expected ? strcmp(found, expected) == 0 : found == expected;
    return check_that(same, file, line, "%s: found \"%s\", expected \"%s\"", what, found ? found : "(null)",
                      expected ? expected : "(null)");
}

__attribute__((unused)) static bool check_near(double found, double expected, double tolerance,
                                               const char *what, const char *file, int line) {
    bool near = found == expected || fabs(found - expected) <= tolerance;
    return check_that(near, file, line, "%s: found %.9g, expected %.9g within %g", what, found, expected,
                      tolerance);
}

__attribute__((unused)) static bool check_ok(sq_status status, const sq_error *error, const char *what,
                                             const char *file, int line) {
    return check_that(status == SQ_OK, file, line, "%s: %s", what, status ? error->message : "");
}

__attribute__((unused)) static bool check_fails(sq_status status, const sq_error *error, sq_status expected,
                                                const char *part, const char *what, const char *file,
                                                int line) {
    if (!check_that(status == expected, file, line, "%s: status %d, expected %d (%s)", what, (int)status,
                    (int)expected, status ? error->message : "no error"))
        return false;
    return check_that(error->status == expected && strstr(error->message, part), file, line,
                      "%s: the message \"%s\" lacks \"%s\"", what, error->message, part);
}
/* A small reproducible generator for test data (xorshift64, Marsaglia 2003). Seed: any but 0. */
__attribute__((unused)) static uint64_t check_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A number from -size to size, evenly. */
__attribute__((unused)) static float check_random_float(uint64_t *state, float size) {
    return size * ((float)(check_random(state) >> 40) / (1 << 23) - 1);
}

#define RUN(test)                                                                                            \
    do {                                                                                                     \
        int before = check_n_failures;                                                                       \
        test();                                                                                              \
        printf("%s %s\n", check_n_failures == before ? "ok  " : "FAIL", #test);                              \
        fflush(stdout);                                                                                      \
    } while (0)

__attribute__((unused)) static int check_report(void) {
    printf("%d checks, %d failures\n", check_n_checks, check_n_failures);
    return check_n_failures ? 1 : 0;
}

#endif
