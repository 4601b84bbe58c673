#include "lookup.h"

#include <string.h>

enum { MIN_MATCH = 2, MAX_MATCH = 12 };

void sq_lookup_init(sq_lookup *lookup) {
    *lookup = (sq_lookup){.n_match = MIN_MATCH, .n_guess = 1};
}

/* How many tokens before tokens[a] and tokens[b] are the same, at most MAX_MATCH; b < a. */
static size_t match_length(const sq_token *tokens, size_t a, size_t b) {
    size_t n = 0;
    while (n < MAX_MATCH && n < b && tokens[a - 1 - n] == tokens[b - 1 - n])
        n++;
    return n;
}

uint32_t sq_lookup_guess(const sq_lookup *lookup, const sq_token *tokens, size_t n_tokens, size_t n_max,
                         sq_token *guess) {
    size_t best = 0, best_length = lookup->n_match - 1;
    for (size_t at = n_tokens; at-- > 1;) { /* of matches that are equally long, the latest */
        size_t length = match_length(tokens, n_tokens, at);
        if (length > best_length) {
            best = at;
            best_length = length;
        }
    }
    if (!best)
        return 0;
    size_t n = n_max < lookup->n_guess ? n_max : lookup->n_guess;
    n = n < n_tokens - best ? n : n_tokens - best;
    size_t n_whole = SQ_LOOKUP_TOKENS; /* or 3, 1, 0: runs of 8, 4 and 2 cost least for what they are */
    while (n_whole > n)
        n_whole /= 2;
    memcpy(guess, tokens + best, n_whole * sizeof *guess);
    return (uint32_t)n_whole;
}

/* A guess costs more than a token. So guesses start small, grow while they are right, and a wrong one asks
 * for better evidence next time. */
void sq_lookup_learn(sq_lookup *lookup, uint32_t n_guessed, uint32_t n_right) {
    if (n_right == n_guessed) {
        if (lookup->n_match > MIN_MATCH)
            lookup->n_match--;
        if (lookup->n_guess < SQ_LOOKUP_TOKENS)
            lookup->n_guess = 2 * lookup->n_guess + 1;
        return;
    }
    if (!n_right && lookup->n_match < MAX_MATCH)
        lookup->n_match++;
    lookup->n_guess = n_right < 3 ? 1 : 3;
}
