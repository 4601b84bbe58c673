#include "settings.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

/* 32 bits are enough for chance, and short enough to type again. */
static uint32_t random_seed(void) {
    uint32_t seed;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) {
        seed = (uint32_t)time(NULL);
    }
    return seed;
}

void settings_init(settings *s, option *rows) {
    *s = (settings){.think = 1};
    sq_sampler_defaults(&s->sampler);
    s->sampler.seed = random_seed();
    sq_sampler_options *o = &s->sampler;
    const option table[N_SETTINGS] = {
        {"-n", OPTION_U32, &s->n_max, 0, UINT32_MAX, "TOKENS",
         "longest answer; 0, the default: as long as the model likes and the context holds"},
        {"--temp", OPTION_F32, &o->temperature, 0, 100, "NUMBER",
         "temperature, default 0.7; 0: always the likeliest token"},
        {"--top-k", OPTION_U32, &o->top_k, 0, UINT32_MAX, "NUMBER",
         "draw from the so many likeliest tokens, default 40; 0: off"},
        {"--top-p", OPTION_F32, &o->top_p, 0, 1, "NUMBER",
         "draw from the likeliest tokens that have this share together, default 0.95; 1: off"},
        {"--min-p", OPTION_F32, &o->min_p, 0, 1, "NUMBER",
         "draw from tokens at least this likely beside the likeliest, default 0.05; 0: off"},
        {"--repeat-penalty", OPTION_F32, &o->repeat_penalty, 0.01, 100, "NUMBER",
         "above 1: fewer repetitions within an answer; default 1: off"},
        {"--think", OPTION_U32, &s->think, 0, 1, "0|1",
         "0: no thinking before answers, for models that can do without; default 1"},
        {"--seed", OPTION_U64, &o->seed, 0, 0, "NUMBER",
         "of the random draws; default: another one each time, /info shows it"},
    };
    memcpy(rows, table, sizeof table);
}

const char *settings_name(const option *row) {
    return row->name + strspn(row->name, "-");
}

const option *settings_find(const option *rows, const char *name) {
    for (size_t i = 0; i < N_SETTINGS; i++) {
        if (strcmp(settings_name(&rows[i]), name) == 0) {
            return &rows[i];
        }
    }
    return NULL;
}
