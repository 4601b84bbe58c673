#include "history.h"

#include "json.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_ENTRIES = 1000, MAX_FILE_BYTES = 64 << 20 };

/* Makes every folder on the way to `path`, which is left out. */
static void make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
}

char *history_path(void) {
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    text path = {0};
    if (state && state[0] == '/') { /* the specification has relative paths ignored */
        text_printf(&path, "%s/squeezellm/history", state);
    } else if (home && home[0] == '/') {
        text_printf(&path, "%s/.local/state/squeezellm/history", home);
    } else {
        return NULL;
    }
    make_folders(path.bytes);
    int fd = open(path.bytes, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        text_free(&path);
        return NULL;
    }
    close(fd);
    return path.bytes;
}

/* The start of the last n lines of `content`. */
static size_t find_last_lines(const text *content, size_t n) {
    size_t at = content->n;
    while (at > 0 && (content->bytes[at - 1] != '\n' || n-- > 0)) {
        at--;
    }
    return at;
}

static size_t count_lines(const text *content) {
    size_t n = 0;
    for (size_t i = 0; i < content->n; i++) {
        n += content->bytes[i] == '\n';
    }
    return n;
}

static void replace_file(const char *path, const char *bytes, size_t n) {
    text temporary = {0};
    text_printf(&temporary, "%s.XXXXXX", path);
    int fd = mkstemp(temporary.bytes);
    if (fd >= 0) {
        bool written = write(fd, bytes, n) == (ssize_t)n;
        written = close(fd) == 0 && written;
        if (!written || rename(temporary.bytes, path) != 0) {
            unlink(temporary.bytes);
        }
    }
    text_free(&temporary);
}

void history_load(const char *path, void (*add)(void *context, const char *entry), void *context) {
    text content = {0}, entry = {0};
    FILE *file = fopen(path, "r");
    if (!file || !text_read(&content, file, MAX_FILE_BYTES)) {
        text_clear(&content);
    }
    if (file) {
        fclose(file);
    }
    size_t at = find_last_lines(&content, MAX_ENTRIES);
    if (count_lines(&content) > 2 * MAX_ENTRIES) {
        replace_file(path, content.bytes + at, content.n - at);
    }
    while (at < content.n) {
        const char *line = content.bytes + at;
        const char *end = memchr(line, '\n', content.n - at);
        size_t n = end ? (size_t)(end - line) : content.n - at;
        json_reader r = {.bytes = line, .n = n};
        if (json_read_string(&r, &entry) && json_read_end(&r)) {
            add(context, text_string(&entry));
        }
        at += n + 1;
    }
    text_free(&content);
    text_free(&entry);
}

/* One write, so that two programs do not mix their lines; a failure costs no more than this entry. */
void history_append(const char *path, const char *entry) {
    text line = {0};
    json_append_quoted(&line, entry, strlen(entry));
    text_append(&line, "\n", 1);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        if (write(fd, line.bytes, line.n) != (ssize_t)line.n) {
            /* a full disk: the chat goes on without this line */
        }
        close(fd);
    }
    text_free(&line);
}
