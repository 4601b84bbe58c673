/* Unicode's normalization form NFC, in the version of Unicode that the original tokenizer knows. Internal to
 * the tokenizer. */
#ifndef SQ_NFC_H
#define SQ_NFC_H

#include "../gguf.h"

/* What decomposes, composes or changes places in a version of Unicode never does otherwise in a later one.
 * So any later version's NFC is right for text of these characters, and what is no such character stands
 * alone. */
typedef struct sq_nfc {
    int32_t *ranges; /* [2 n]: first and last characters, ascending; NULL: the original does not normalize */
    size_t n;
} sq_nfc;

sq_status sq_nfc_load(const sq_gguf *file, sq_nfc *nfc, sq_error *error);
void sq_nfc_free(sq_nfc *nfc);

#endif
