#include "tensor.h"

/* The bytes of a row, docs/FORMAT.md sections 2 and 3. n_in comes from a file: no product may wrap. */

static size_t f32_row_bytes(size_t n_in) {
    return n_in <= SIZE_MAX / 4 ? 4 * n_in : 0;
}

static size_t f16_row_bytes(size_t n_in) {
    return n_in <= SIZE_MAX / 2 ? 2 * n_in : 0;
}

static size_t q8_0_row_bytes(size_t n_in) {
    return n_in % 32 == 0 && n_in / 32 <= SIZE_MAX / 34 ? n_in / 32 * 34 : 0;
}

static size_t lut2_row_bytes(size_t n_in) {
    return 64 * (n_in / 256) + 4 * ((n_in % 256 + 15) / 16);
}

static size_t lut3_row_bytes(size_t n_in) {
    return 192 * (n_in / 512) + 12 * ((n_in % 512 + 31) / 32);
}

static size_t lut4_row_bytes(size_t n_in) {
    return 64 * (n_in / 128) + 4 * ((n_in % 128 + 7) / 8);
}

const sq_type_traits sq_types[SQ_N_TYPES] = {
    [SQ_TYPE_F32] = {"f32", 0, f32_row_bytes},    [SQ_TYPE_F16] = {"f16", 0, f16_row_bytes},
    [SQ_TYPE_Q8_0] = {"q8_0", 0, q8_0_row_bytes}, [SQ_TYPE_LUT2] = {"lut2", 2, lut2_row_bytes},
    [SQ_TYPE_LUT3] = {"lut3", 3, lut3_row_bytes}, [SQ_TYPE_LUT4] = {"lut4", 4, lut4_row_bytes},
};
