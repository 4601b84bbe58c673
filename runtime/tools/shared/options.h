/* The command line of a tool: a table of options, parsed strictly. */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include "text.h"

typedef enum option_kind {
    OPTION_FLAG,     /* bool */
    OPTION_TEXT,     /* const char *, points into the command line */
    OPTION_CHOICE,   /* const char *, one of the words in `argument`, which stand between | */
    OPTION_U32,      /* uint32_t, from `min` to `max` */
    OPTION_U32_AUTO, /* the same, or "auto", which is 0 */
    OPTION_U32S,     /* u32_list, each from `min` to `max` */
    OPTION_U64,      /* uint64_t, any */
    OPTION_F32       /* float, from `min` to `max` */
} option_kind;

/* Numbers between commas: "1,2,4". */
enum { OPTION_LIST = 16 };

typedef struct u32_list {
    uint32_t values[OPTION_LIST];
    size_t n;
} u32_list;

typedef struct option {
    const char *name; /* with its dashes: "--top-k", "-n" */
    option_kind kind;
    void *value;          /* its default stands there before parsing */
    double min, max;      /* numbers only; inclusive */
    const char *argument; /* "TOKENS" in the help; NULL for a flag */
    const char *help;
} option;

typedef struct tool {
    const char *name;      /* "sq-run" */
    const char *about;     /* one line */
    const char *arguments; /* "MODEL.sq.gguf" */
    size_t n_arguments;    /* exactly as many */
    size_t *n_found;       /* where not NULL: so many or more, and their number goes here */
    const option *options;
    size_t n_options;
    const char *epilogue; /* after the options in the help, or NULL */
} tool;

/* "--name value", "--name=value"; "--" ends the options; -h, --help and --version answer at once.
 * `arguments` receives the tool's n_arguments (with n_found it has room for argc). Returns -1 to go on, else
 * the exit code: 0 after help or version, 2 after a sentence about what is wrong. */
int options_parse(const tool *t, int argc, char **argv, const char **arguments);

/* Sets one option from text. On failure `problem` says what was expected ("a number from 0 to 1"), and
 * the value stays. */
bool option_set(const option *o, const char *value, text *problem);
/* The value as option_set reads it: "0.7". */
void option_format(const option *o, text *out);

#endif
