#include "input.h"

#include "history.h"
#include "terminal.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

struct input {
    EditLine *editor;
    History *history;
    char *history_path; /* or NULL */
    FILE *out;          /* the terminal */
    const char *prompt;
    const char *const *words;
    bool is_interrupted; /* Ctrl-C ended this line */
    bool wants_to_leave; /* Ctrl-C on the line before, which was empty */
};

/* ---- the terminal's state -------------------------------------------------------------------- */

static const char paste_on[] = "\033[?2004h", paste_off[] = "\033[?2004l";
static struct termios original;
static int terminal_fd = -1;

/* Of a deadly signal: sets the terminal right, then dies of it. */
static void die_of_signal(int number) {
    tcsetattr(STDIN_FILENO, TCSANOW, &original);
    if (write(terminal_fd, paste_off, sizeof paste_off - 1) < 0) {
        /* the terminal is gone */
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_deadly_signals(void) {
    static const int numbers[] = {SIGTERM, SIGHUP, SIGQUIT};
    struct sigaction action = {.sa_handler = die_of_signal};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        sigaction(numbers[i], &action, NULL);
    }
}

void input_mute(input *in, bool mute) {
    (void)in;
    struct termios silent = original;
    silent.c_lflag &= ~(tcflag_t)ECHO;
    tcsetattr(STDIN_FILENO, TCSADRAIN, mute ? &silent : &original);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static input *input_of(EditLine *editor) {
    void *in = NULL;
    el_get(editor, EL_CLIENTDATA, &in);
    return in;
}

static const char *get_prompt(EditLine *editor) {
    return input_of(editor)->prompt;
}

/* Ctrl-C: clears the line; on an empty one ends it. */
static unsigned char press_interrupt(EditLine *editor, int key) {
    (void)key;
    const LineInfoW *line = el_wline(editor);
    if (line->lastchar == line->buffer) {
        input_of(editor)->is_interrupted = true;
        return CC_EOF;
    }
    el_cursor(editor, (int)(line->lastchar - line->cursor));
    el_wdeletestr(editor, (int)(line->lastchar - line->buffer));
    return CC_REFRESH;
}

static unsigned char press_suspend(EditLine *editor, int key) {
    (void)key;
    raise(SIGTSTP);
    el_set(editor, EL_REFRESH); /* we are back */
    return CC_NORM;
}

/* The start of a paste: what follows up to its end goes into the line, newlines and all, so that it is
 * one message. Control characters have no meaning in there. */
static unsigned char press_paste(EditLine *editor, int key) {
    (void)key;
    static const wchar_t end[] = L"\033[201~";
    const size_t n_end = 6;
    wchar_t *pasted = NULL, c, before = 0;
    size_t n = 0, capacity = 0, n_matched = 0;
    while (n_matched < n_end && el_wgetc(editor, &c) == 1) {
        n_matched = c == end[n_matched] ? n_matched + 1 : c == end[0];
        bool is_newline = c == L'\n' || c == L'\r';
        bool is_second = c == L'\n' && before == L'\r';
        before = c;
        if (is_second || (!is_newline && c != L'\t' && c < 0x20) || c == 0x7F) {
            continue;
        }
        if (capacity - n < 2) {
            capacity = 2 * capacity + 1024;
            pasted = memory_resize(pasted, capacity, sizeof *pasted);
        }
        pasted[n++] = is_newline ? L'\n' : c;
    }
    n -= n_matched ? n_matched - 1 : 0; /* the escape character was not kept */
    if (n > 0) {
        pasted[n] = L'\0';
        el_winsertstr(editor, pasted);
    }
    free(pasted);
    return CC_REFRESH;
}

/* Tab: what the words that begin like the line have in common. */
static unsigned char press_tab(EditLine *editor, int key) {
    const LineInfo *line = el_line(editor);
    size_t n = (size_t)(line->cursor - line->buffer);
    if (n >= 6 && (strncmp(line->buffer, "/save ", 6) == 0 || strncmp(line->buffer, "/load ", 6) == 0)) {
        return _el_fn_complete(editor, key);
    }
    const char *found = NULL;
    size_t n_common = 0, n_found = 0;
    for (const char *const *word = input_of(editor)->words; *word; word++) {
        if (n == 0 || strncmp(*word, line->buffer, n) != 0) {
            continue;
        }
        size_t i = n;
        while ((*word)[i] && (!found || (i < n_common && (*word)[i] == found[i]))) {
            i++;
        }
        found = *word;
        n_common = i;
        n_found++;
    }
    if (n_found == 0 || (n_common == n && n_found > 1)) {
        return CC_REFRESH_BEEP;
    }
    text rest = {0};
    text_append(&rest, found + n, n_common - n);
    text_append_string(&rest, n_found == 1 ? " " : "");
    el_insertstr(editor, rest.bytes);
    text_free(&rest);
    return CC_REFRESH;
}

static void bind_key(EditLine *editor, const char *key, const char *name,
                     unsigned char (*press)(EditLine *, int)) {
    el_set(editor, EL_ADDFN, name, name, press);
    el_set(editor, EL_BIND, key, name, NULL);
}

/* ---- opening and closing --------------------------------------------------------------------- */

/* libedit reads characters as the locale has them. */
static void set_utf8(void) {
    if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0) {
        setlocale(LC_CTYPE, "C.UTF-8");
    }
}

static void remember(void *context, const char *entry) {
    HistEvent event;
    history((History *)context, &event, H_ENTER, entry);
}

static void open_history(input *in) {
    HistEvent event;
    history(in->history, &event, H_SETSIZE, 1000);
    history(in->history, &event, H_SETUNIQUE, 1);
    in->history_path = history_path();
    if (in->history_path) {
        history_load(in->history_path, remember, in->history);
    }
}

static void set_up_editor(input *in) {
    EditLine *editor = in->editor;
    el_set(editor, EL_CLIENTDATA, in);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, history, in->history);
    el_set(editor, EL_PROMPT_ESC, get_prompt, '\1');
    el_set(editor, EL_SIGNAL, 1);
    el_source(editor, NULL);                                           /* ~/.editrc; ours come after it */
    el_set(editor, EL_SETTY, "-d", "-isig", "-icrnl", "-inlcr", NULL); /* keys as they are typed */
    bind_key(editor, "^C", "sq-interrupt", press_interrupt);
    bind_key(editor, "^Z", "sq-suspend", press_suspend);
    bind_key(editor, "^I", "sq-complete", press_tab);
    bind_key(editor, "\\e[200~", "sq-paste", press_paste);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", NULL);
}

input *input_open(const char *name, const char *const *words) {
    set_utf8();
    input *in = memory_resize(NULL, 1, sizeof *in);
    *in = (input){.words = words, .prompt = "", .out = isatty(STDERR_FILENO) ? stderr : stdout};
    in->editor = el_init(name, stdin, in->out, in->out);
    in->history = history_init();
    if (!in->editor || !in->history || tcgetattr(STDIN_FILENO, &original) != 0) {
        input_close(in);
        return NULL;
    }
    terminal_fd = fileno(in->out);
    open_history(in);
    set_up_editor(in);
    catch_deadly_signals();
    fputs(paste_on, in->out);
    fflush(in->out);
    return in;
}

void input_close(input *in) {
    if (terminal_fd >= 0) {
        fputs(paste_off, in->out);
        fflush(in->out);
    }
    if (in->editor) {
        el_end(in->editor);
    }
    if (in->history) {
        history_end(in->history);
    }
    free(in->history_path);
    free(in);
}

/* ---- reading --------------------------------------------------------------------------------- */

static const char quotes[] = "\"\"\"";
static const char space[] = " \t\r\n";

static size_t without_trailing_space(const char *bytes, size_t n) {
    while (n > 0 && strchr(space, bytes[n - 1])) {
        n--;
    }
    return n;
}

/* Where the content of a message in """ begins; 0 where it is not in """. */
static size_t quoted_start(const text *message) {
    const char *string = text_string(message);
    size_t n_space = strspn(string, space);
    return strncmp(string + n_space, quotes, 3) == 0 ? n_space + 3 : 0;
}

/* Whether a message that begins with """ lacks its end. */
static bool is_open(const text *message) {
    size_t start = quoted_start(message);
    size_t end = without_trailing_space(text_string(message), message->n);
    return start > 0 && (end < start + 3 || memcmp(message->bytes + end - 3, quotes, 3) != 0);
}

/* Takes away """ and one newline behind and before them. */
static void unquote(text *message) {
    size_t start = quoted_start(message);
    if (start == 0) {
        return;
    }
    size_t end = without_trailing_space(message->bytes, message->n) - 3;
    start += start < end && message->bytes[start] == '\n';
    end -= end > start && message->bytes[end - 1] == '\n';
    message->n = end;
    message->bytes[end] = '\0';
    text_drop(message, start);
}

/* libedit puts what stands between \1 out as it is, where a character follows. */
static void set_prompt(input *in, bool is_first) {
    if (terminal_has_colour(in->out)) {
        in->prompt = is_first ? "\1\033[1m\1>\1\033[0m\1 " : "\1\033[1m\1.\1\033[0m\1 ";
    } else {
        in->prompt = is_first ? "> " : ". ";
    }
}

/* Appends a line to the message. */
static input_result read_line(input *in, text *message) {
    int n = 0;
    const char *line;
    set_prompt(in, message->n == 0);
    in->is_interrupted = false;
    el_set(in->editor, EL_PREP_TERM, 1); /* before the prompt is seen, not with the first key */
    do {
        errno = 0;
        line = el_gets(in->editor, &n);
    } while (!line && n == -1 && errno == EINTR);
    if (in->is_interrupted || !line || n <= 0) {
        fputc('\n', in->out);
        fflush(in->out);
        return in->is_interrupted ? INPUT_NOTHING : INPUT_LEAVE;
    }
    text_append(message, line, strlen(line));
    return INPUT_MESSAGE;
}

static void keep_in_history(input *in, const text *message) {
    HistEvent last;
    if (history(in->history, &last, H_FIRST) == 0 && strcmp(last.str, message->bytes) == 0) {
        return;
    }
    remember(in->history, message->bytes);
    if (in->history_path) {
        history_append(in->history_path, message->bytes);
    }
}

/* Ctrl-C on an empty line; again, and we leave. */
static input_result interrupt(input *in) {
    if (in->wants_to_leave) {
        return INPUT_LEAVE;
    }
    in->wants_to_leave = true;
    terminal_note(in->out, "Ctrl-C again, Ctrl-D or /exit leaves");
    return INPUT_NOTHING;
}

input_result input_read(input *in, text *message) {
    text_clear(message);
    do {
        input_result result = read_line(in, message);
        if (result != INPUT_MESSAGE) {
            return result == INPUT_NOTHING && message->n == 0 ? interrupt(in) : result;
        }
        in->wants_to_leave = false;
    } while (is_open(message));
    message->n = without_trailing_space(message->bytes, message->n);
    message->bytes[message->n] = '\0';
    if (message->n == 0) {
        return INPUT_NOTHING;
    }
    keep_in_history(in, message);
    unquote(message);
    return message->n > 0 ? INPUT_MESSAGE : INPUT_NOTHING;
}
