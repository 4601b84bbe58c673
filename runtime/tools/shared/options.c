#include "options.h"

#include "sq.h"
#include "terminal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool parse_u64(const char *value, uint64_t *out) {
    if (value[0] == '\0' || value[strspn(value, "0123456789")] != '\0') {
        return false;
    }
    errno = 0;
    *out = strtoull(value, NULL, 10);
    return errno == 0;
}

static bool parse_f32(const char *value, float *out) {
    if (value[0] == '\0' || value[strspn(value, "0123456789.eE+-")] != '\0') {
        return false;
    }
    char *end;
    *out = strtof(value, &end);
    return *end == '\0' && isfinite(*out);
}

static bool is_choice(const char *value, const char *choices) {
    size_t n = strlen(value);
    for (const char *choice = choices; choice; choice = strchr(choice, '|')) {
        choice += *choice == '|';
        if (n > 0 && strcspn(choice, "|") == n && strncmp(choice, value, n) == 0) {
            return true;
        }
    }
    return false;
}

static bool set_u32(const option *o, const char *value, text *problem) {
    uint64_t number;
    if (!parse_u64(value, &number) || (double)number < o->min || (double)number > o->max) {
        text_printf(problem, "a whole number from %.0f to %.0f", o->min, o->max);
        return false;
    }
    *(uint32_t *)o->value = (uint32_t)number;
    return true;
}

static bool set_u32_auto(const option *o, const char *value, text *problem) {
    if (strcmp(value, "auto") == 0) {
        *(uint32_t *)o->value = 0;
        return true;
    }
    bool set = set_u32(o, value, problem);
    text_append_string(problem, set ? "" : ", or auto");
    return set;
}

static bool set_u32s(const option *o, const char *value, text *problem) {
    u32_list list = {0};
    bool valid = true;
    for (const char *at = value; valid && at; at = strchr(at, ',')) {
        char number[16];
        at += at > value;
        size_t n = strcspn(at, ",");
        option one = {.min = o->min, .max = o->max, .value = &list.values[list.n]};
        snprintf(number, sizeof number, "%.*s", (int)n, at);
        text ignored = {0};
        valid = n < sizeof number && list.n < OPTION_LIST && set_u32(&one, number, &ignored);
        text_free(&ignored);
        list.n++;
    }
    if (!valid) {
        text_printf(problem, "1 to %d whole numbers from %.0f to %.0f with commas between them", OPTION_LIST,
                    o->min, o->max);
        return false;
    }
    *(u32_list *)o->value = list;
    return true;
}

static bool set_u64(const option *o, const char *value, text *problem) {
    uint64_t number;
    if (!parse_u64(value, &number)) {
        text_printf(problem, "a whole number from 0 to %llu", (unsigned long long)UINT64_MAX);
        return false;
    }
    *(uint64_t *)o->value = number;
    return true;
}

static bool set_f32(const option *o, const char *value, text *problem) {
    float number;
    if (!parse_f32(value, &number) || number < o->min || number > o->max) {
        text_printf(problem, "a number from %g to %g", o->min, o->max);
        return false;
    }
    *(float *)o->value = number;
    return true;
}

bool option_set(const option *o, const char *value, text *problem) {
    switch (o->kind) {
    case OPTION_U32:
        return set_u32(o, value, problem);
    case OPTION_U32_AUTO:
        return set_u32_auto(o, value, problem);
    case OPTION_U32S:
        return set_u32s(o, value, problem);
    case OPTION_U64:
        return set_u64(o, value, problem);
    case OPTION_F32:
        return set_f32(o, value, problem);
    case OPTION_CHOICE:
        if (!is_choice(value, o->argument)) {
            text_printf(problem, "one of %s", o->argument);
            return false;
        }
        *(const char **)o->value = value;
        return true;
    case OPTION_TEXT:
        *(const char **)o->value = value;
        return true;
    case OPTION_FLAG:
        *(bool *)o->value = true;
        return true;
    }
    return false;
}

/* The fewest digits that read back as the same number. */
static void format_f32(float value, text *out) {
    char digits[32];
    int precision = 1;
    do {
        snprintf(digits, sizeof digits, "%.*g", precision, (double)value);
    } while (strtof(digits, NULL) != value && precision++ < 9);
    text_append_string(out, digits);
}

void option_format(const option *o, text *out) {
    switch (o->kind) {
    case OPTION_U32:
    case OPTION_U32_AUTO:
        text_printf(out, "%u", *(uint32_t *)o->value);
        break;
    case OPTION_U32S:
        for (size_t i = 0; i < ((u32_list *)o->value)->n; i++) {
            text_printf(out, i ? ",%u" : "%u", ((u32_list *)o->value)->values[i]);
        }
        break;
    case OPTION_U64:
        text_printf(out, "%llu", (unsigned long long)*(uint64_t *)o->value);
        break;
    case OPTION_F32:
        format_f32(*(float *)o->value, out);
        break;
    case OPTION_CHOICE:
    case OPTION_TEXT:
        text_append_string(out, *(const char **)o->value ? *(const char **)o->value : "");
        break;
    case OPTION_FLAG:
        text_append_string(out, *(bool *)o->value ? "true" : "false");
        break;
    }
}

static void append_help_line(text *out, const char *name, const char *argument, const char *help) {
    text left = {0};
    text_printf(&left, "%s%s%s", name, argument ? " " : "", argument ? argument : "");
    text_printf(out, "  %-24s %s\n", text_string(&left), help);
    text_free(&left);
}

static int print_help(const tool *t) {
    text out = {0};
    text_printf(&out, "usage: %s %s [options]\n\n%s\n\n", t->name, t->arguments, t->about);
    for (size_t i = 0; i < t->n_options; i++) {
        append_help_line(&out, t->options[i].name, t->options[i].argument, t->options[i].help);
    }
    append_help_line(&out, "-h, --help", NULL, "this text");
    append_help_line(&out, "--version", NULL, "the version");
    if (t->epilogue) {
        text_printf(&out, "\n%s\n", t->epilogue);
    }
    return tool_print(t->name, &out);
}

static int print_version(const tool *t) {
    text out = {0};
    text_printf(&out, "%s %s\n", t->name, sq_version());
    return tool_print(t->name, &out);
}

/* The option that `word` names, alone or as "name=value". */
static const option *find_option(const tool *t, const char *word) {
    size_t n = strcspn(word, "=");
    for (size_t i = 0; i < t->n_options; i++) {
        const char *name = t->options[i].name;
        if (strlen(name) == n && strncmp(name, word, n) == 0) {
            return &t->options[i];
        }
    }
    return NULL;
}

/* Reads the option at argv[*at] and moves *at past it. False after a sentence about what is wrong. */
static bool parse_option(const tool *t, char **argv, int *at) {
    const char *word = argv[(*at)++];
    const option *o = find_option(t, word);
    if (!o) {
        tool_complain(t->name, "unknown option %s; --help lists the options", word);
        return false;
    }
    const char *value = strchr(word, '=');
    if (value) {
        value++;
    } else if (o->kind != OPTION_FLAG && argv[*at]) {
        value = argv[(*at)++];
    }
    if (o->kind == OPTION_FLAG ? value != NULL : value == NULL) {
        tool_complain(t->name, "%s: expected %s%s", o->name, o->argument ? "a value: " : "no value",
                      o->argument ? o->argument : "");
        return false;
    }
    text problem = {0};
    bool set = option_set(o, value, &problem);
    if (!set) {
        tool_complain(t->name, "%s: expected %s, found \"%s\"", o->name, text_string(&problem), value);
    }
    text_free(&problem);
    return set;
}

int options_parse(const tool *t, int argc, char **argv, const char **arguments) {
    size_t n_found = 0;
    bool options_end = false;
    for (int at = 1; at < argc;) {
        const char *word = argv[at];
        if (options_end || word[0] != '-' || word[1] == '\0') {
            if (t->n_found || n_found < t->n_arguments) {
                arguments[n_found] = word;
            }
            n_found++;
            at++;
        } else if (strcmp(word, "--") == 0) {
            options_end = true;
            at++;
        } else if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
            return print_help(t);
        } else if (strcmp(word, "--version") == 0) {
            return print_version(t);
        } else if (!parse_option(t, argv, &at)) {
            return 2;
        }
    }
    if (t->n_found ? n_found < t->n_arguments : n_found != t->n_arguments) {
        tool_complain(t->name, "expected %s, found %zu argument%s; usage: %s %s [options]", t->arguments,
                      n_found, n_found == 1 ? "" : "s", t->name, t->arguments);
        return 2;
    }
    if (t->n_found) {
        *t->n_found = n_found;
    }
    return -1;
}
