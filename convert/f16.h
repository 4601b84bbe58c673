/* Values between f16, in which tables are stored, and the types that they are fitted in. */
#ifndef SQ_CONVERT_F16_H
#define SQ_CONVERT_F16_H

#include <stdint.h>

float sq_f16_decode(uint16_t h);
/* The nearest f16, ties to even; beyond the largest finite one, that. No negative zero. */
uint16_t sq_f16_encode(double x);

#endif
