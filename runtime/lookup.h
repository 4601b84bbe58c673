/* Guesses what comes next in a timeline from what followed the same tokens earlier in it: prompt lookup
 * (A. Saxena, "Prompt Lookup Decoding", 2023). Text that quotes, edits or repeats is guessed well, and a run
 * of several tokens costs little more than a run of one. */
#ifndef SQ_LOOKUP_H
#define SQ_LOOKUP_H

#include "sq.h"

enum { SQ_LOOKUP_TOKENS = 7 }; /* most tokens of a guess; with the token before them, a run of 8 */

/* What earlier guesses were worth. */
typedef struct sq_lookup {
    uint32_t n_match; /* tokens that must be the same before a guess is made */
    uint32_t n_guess; /* most tokens of the next guess: 1, 3 or 7 */
} sq_lookup;

void sq_lookup_init(sq_lookup *lookup);
/* Guesses at most `n_max` tokens that follow `tokens` [n_tokens]; returns how many there are in `guess`
 * [SQ_LOOKUP_TOKENS]: 0, 1, 3 or 7. */
uint32_t sq_lookup_guess(const sq_lookup *lookup, const sq_token *tokens, size_t n_tokens, size_t n_max,
                         sq_token *guess);
/* Of a guess of n_guessed tokens, the first n_right were right. */
void sq_lookup_learn(sq_lookup *lookup, uint32_t n_guessed, uint32_t n_right);

#endif
