#include "f16.h"

#include <math.h>

float sq_f16_decode(uint16_t h) {
    uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
    float magnitude =
        exponent ? ldexpf((float)(1024 + fraction), (int)exponent - 25) : ldexpf((float)fraction, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

uint16_t sq_f16_encode(double x) {
    if (x == 0)
        return 0;
    int exponent;
    frexp(x, &exponent);                              /* |x| < 2^exponent */
    int shift = exponent > -13 ? exponent - 11 : -24; /* the last place is worth 2^shift */
    double units = nearbyint(ldexp(fabs(x), -shift)); /* at most 2048 */
    if (ldexp(units, shift) > 65504)
        return x < 0 ? 0xfbff : 0x7bff;
    uint32_t bits = (uint32_t)(shift + 24) * 1024 + (uint32_t)units;
    return (uint16_t)(x < 0 && bits ? bits | 0x8000 : bits);
}
