/* Rows of 2-, 3- and 4-bit indices into a table per row: docs/FORMAT.md sections 2.1 to 2.3, in plain C.
 *
 * A row is a chain of blocks, all full but perhaps the last. decode2, decode3 and decode4 read one
 * block of n_dwords (a plane of it, for 3 bits) and write all positions it has, those past n_in too. */
#include "scalar.h"

#include <string.h>

enum { BLOCK_DWORDS = 16, BLOCK4 = 8 * BLOCK_DWORDS, BLOCK3 = 32 * BLOCK_DWORDS, BLOCK2 = 16 * BLOCK_DWORDS };

typedef struct layout {
    uint32_t bits, block; /* of an index; weights of a full block */
    void (*decode)(const uint8_t *codes, uint32_t n_dwords, const float *table, float *weights);
} layout;

static uint32_t dword_at(const uint8_t *codes, uint32_t i) {
    const uint8_t *p = codes + 4 * (size_t)i;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Weight n_dwords·j + i is nibble j of dword i. */
static void decode4(const uint8_t *codes, uint32_t n_dwords, const float *table, float *weights) {
    for (uint32_t j = 0; j < 8; j++) {
        for (uint32_t i = 0; i < n_dwords; i++) {
            weights[n_dwords * j + i] = table[dword_at(codes, i) >> 4 * j & 15];
        }
    }
}

/* Weight n_dwords·c + i is nibble c mod 8 of dword i of plane c / 8, or is gathered from the top bits. */
static void decode3(const uint8_t *codes, uint32_t n_dwords, const float *table, float *weights) {
    for (uint32_t c = 0; c < 32; c++) {
        for (uint32_t i = 0; i < n_dwords; i++) {
            uint32_t code = 0;
            if (c < 24) {
                code = dword_at(codes, c / 8 * n_dwords + i) >> 4 * (c % 8) & 7;
            } else {
                for (uint32_t p = 0; p < 3; p++) {
                    code |= (dword_at(codes, p * n_dwords + i) >> (4 * (c - 24) + 3) & 1) << p;
                }
            }
            weights[n_dwords * c + i] = table[code];
        }
    }
}

/* Weight n_dwords·j + i is pair of bits j of dword i. */
static void decode2(const uint8_t *codes, uint32_t n_dwords, const float *table, float *weights) {
    for (uint32_t j = 0; j < 16; j++) {
        for (uint32_t i = 0; i < n_dwords; i++) {
            weights[n_dwords * j + i] = table[dword_at(codes, i) >> 2 * j & 3];
        }
    }
}

static const layout lut2 = {2, BLOCK2, decode2};
static const layout lut3 = {3, BLOCK3, decode3};
static const layout lut4 = {4, BLOCK4, decode4};

/* Decodes the block that starts with weight i; returns how many weights it holds. */
static uint32_t decode_at(const layout *l, const sq_matrix *w, uint32_t row, uint32_t i, const float *table,
                          float *weights) {
    uint32_t left = w->n_in - i, n = left < l->block ? left : l->block, per_dword = l->block / BLOCK_DWORDS;
    const uint8_t *codes = w->data + row * w->row_bytes + (size_t)i / 8 * l->bits;
    l->decode(codes, (n + per_dword - 1) / per_dword, table, weights);
    return n;
}

static void widen_table(const layout *l, const sq_matrix *w, uint32_t row, float *table) {
    for (uint32_t i = 0; i < 1u << l->bits; i++) {
        table[i] = sq_lut_entry(w, l->bits, row, i);
    }
}

static float row_dot(const layout *l, const sq_matrix *w, uint32_t row, const float *x) {
    float table[16], weights[BLOCK3], sum = 0;
    widen_table(l, w, row, table);
    for (uint32_t i = 0; i < w->n_in; i += l->block) {
        uint32_t n = decode_at(l, w, row, i, table, weights);
        for (uint32_t k = 0; k < n; k++) {
            sum += weights[k] * x[i + k];
        }
    }
    return sum + sq_sparse_dot(w, row, x);
}

static void gemv(const layout *l, const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y,
                 size_t ldy, uint32_t row0, uint32_t row1) {
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t row = row0; row < row1; row++) {
            y[t * ldy + (row - row0)] = row_dot(l, w, row, x + t * ldx);
        }
    }
}

static void expand_row(const layout *l, const sq_matrix *w, uint32_t row, float *out) {
    float table[16], weights[BLOCK3];
    widen_table(l, w, row, table);
    for (uint32_t i = 0; i < w->n_in; i += l->block) {
        uint32_t n = decode_at(l, w, row, i, table, weights);
        memcpy(out + i, weights, n * sizeof *out);
    }
    memset(out + w->n_in, 0, (sq_pad(w->n_in) - w->n_in) * sizeof *out);
    sq_sparse_add(w, row, out);
}

void sq_lut2_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch) {
    (void)scratch;
    gemv(&lut2, w, x, ldx, n_tokens, y, ldy, row0, row1);
}

void sq_lut3_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch) {
    (void)scratch;
    gemv(&lut3, w, x, ldx, n_tokens, y, ldy, row0, row1);
}

void sq_lut4_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                  uint32_t row0, uint32_t row1, void *scratch) {
    (void)scratch;
    gemv(&lut4, w, x, ldx, n_tokens, y, ldy, row0, row1);
}

void sq_lut2_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    expand_row(&lut2, w, row, out);
}

void sq_lut3_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    expand_row(&lut3, w, row, out);
}

void sq_lut4_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    expand_row(&lut4, w, row, out);
}
