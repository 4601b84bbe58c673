#include "terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool terminal_has_colour(FILE *file) {
    const char *no_color = getenv("NO_COLOR");
    const char *term = getenv("TERM");
    return isatty(fileno(file)) && !(no_color && no_color[0]) && term && strcmp(term, "dumb") != 0;
}

/* C0 and C1 control characters and DEL. */
static bool is_control(uint32_t c) {
    return (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7F && c < 0xA0);
}

static void append_harmless(text *out, const char *bytes, size_t n) {
    while (n > 0) {
        uint32_t c;
        size_t length = utf8_decode(bytes, n, &c);
        if (length == 0) {
            utf8_append(out, 0xFFFD);
            length = 1;
        } else if (!is_control(c)) {
            text_append(out, bytes, length);
        }
        bytes += length;
        n -= length;
    }
}

bool terminal_write(FILE *file, const char *bytes, size_t n) {
    text harmless = {0};
    if (isatty(fileno(file))) {
        append_harmless(&harmless, bytes, n);
        bytes = text_string(&harmless);
        n = harmless.n;
    }
    bool written = fwrite(bytes, 1, n, file) == n && fflush(file) == 0;
    int reason = errno;
    text_free(&harmless);
    errno = reason;
    return written;
}

static void write_formatted(FILE *file, const char *format, va_list arguments) {
    char *line = NULL;
    int n = vasprintf(&line, format, arguments);
    if (n >= 0) {
        terminal_write(file, line, (size_t)n);
        free(line);
    }
}

void terminal_note(FILE *file, const char *format, ...) {
    bool colour = terminal_has_colour(file);
    fputs(colour ? "\033[2m" : "", file);
    va_list arguments;
    va_start(arguments, format);
    write_formatted(file, format, arguments);
    va_end(arguments);
    fputs(colour ? "\033[0m\n" : "\n", file);
    fflush(file);
}

void tool_complain(const char *tool, const char *format, ...) {
    fprintf(stderr, "%s: ", tool);
    va_list arguments;
    va_start(arguments, format);
    write_formatted(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

void tool_complain_write(const char *tool, int error_number) {
    if (error_number == EPIPE) {
        tool_complain(tool, "standard output was closed before everything was written");
    } else {
        tool_complain(tool, "cannot write to standard output: %s", strerror(error_number));
    }
}

bool tool_check(const char *tool, sq_status status, const sq_error *error) {
    if (status) {
        tool_complain(tool, "%s", error->message);
    }
    return status == SQ_OK;
}

void tool_ignore_closed_pipes(void) {
    signal(SIGPIPE, SIG_IGN);
}

int tool_print(const char *tool, text *t) {
    bool written = terminal_write(stdout, text_string(t), t->n);
    if (!written) {
        tool_complain_write(tool, errno);
    }
    text_free(t);
    return written ? 0 : 1;
}
