/* Errors as values: how the library fills an sq_error. */
#ifndef SQ_STATUS_H
#define SQ_STATUS_H

#include "sq.h"

/* Fills `error` (may be NULL) and returns `status`, so that a failure is one statement:
 *     return sq_fail(error, SQ_ERROR_FORMAT, "%s: expected %u, found %u", name, a, b);
 * A message longer than the buffer is cut at a character. */
sq_status sq_fail(sq_error *error, sq_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
