#include "eval/plot.h"

#include "terminal.h"

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HAS_COMPLAINED = 3 }; /* the exit status of sqllm.plot after a sentence of its own */

extern char **environ;

/* The interpreter that the tool was installed with, else the one of PATH. */
static char *find_python(void) {
    static const char name[] = "python3";
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof name);
    while (n > 0 && path[n - 1] != '/') {
        n--;
    }
    if (n > 0) {
        memcpy(path + n, name, sizeof name);
    }
    return memory_copy_string(n > 0 && access(path, X_OK) == 0 ? path : name);
}

/* Starts `argv` with `input` as its standard input and returns its exit status; -1 where it cannot run. */
static int run(char *const *argv, FILE *input) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fileno(input), STDIN_FILENO);
    pid_t child;
    int status, failed = posix_spawnp(&child, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    while (!failed && waitpid(child, &status, 0) < 0) {
        failed = errno != EINTR;
    }
    return !failed && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A file that is gone once it is closed, at its beginning; NULL where there is no room for it. */
static FILE *keep(const text *content) {
    FILE *file = tmpfile();
    if (file && (fwrite(text_string(content), 1, content->n, file) != content->n || fflush(file) != 0)) {
        fclose(file);
        return NULL;
    }
    if (file) {
        rewind(file);
    }
    return file;
}

static bool plot(const char *tool, const char *out, const char *peers, const char *option, const text *json) {
    FILE *input = keep(json);
    if (!input) {
        tool_complain(tool, "cannot draw %s: no temporary file: %s", out, strerror(errno));
        return false;
    }
    char *python = find_python();
    const char *words[8] = {python, "-m", "sqllm.plot", out};
    size_t n = 4;
    if (peers) {
        words[n++] = "--peers";
        words[n++] = peers;
    }
    words[n] = option;
    int status = run((char *const *)words, input);
    fclose(input);
    if (status != 0 && status != HAS_COMPLAINED) {
        tool_complain(tool,
                      "cannot draw %s: `%s -m sqllm.plot` failed; it belongs to the Python package: "
                      "pip install 'sqllm[plot]'",
                      out, python);
    }
    free(python);
    return status == 0;
}

bool plot_check(const char *tool, const char *out, const char *peers) {
    return plot(tool, out, peers, "--check", &(text){0});
}

bool plot_draw(const char *tool, const char *out, const char *peers, const text *json) {
    return plot(tool, out, peers, NULL, json);
}
