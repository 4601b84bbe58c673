/* Products with many tokens in 16-bit fixed point (fixed.c defines them) over vectors of W lanes: the one
 * body that x86_avx512.c and x86_avx2.c include after simd_digits.h. Beyond its list it takes
 *
 *   vi                    vectors of W int32_t
 *   v4_transpose          transposes four v4 in place
 *   FIXED_TILE_ROWS, FIXED_TILE_VECTORS   rows and vectors of tokens in a register tile
 *
 * Rows of weights lie as they are, so that a pair of neighbours is one broadcast dword; activations lie
 * pair by pair, 16 tokens side by side:
 *
 *     group:  pair 0 of tokens 0 … 15 | pair 1 of tokens 0 … 15 | …  then  scales of block 0 | block 1 | …
 *
 * A register tile is FIXED_TILE_ROWS rows × FIXED_TILE_VECTORS vectors of tokens over one block; a tile in
 * the L2 cache is SQ_FIXED_ROWS rows, expanded and rounded once for all tokens. */
#ifndef SQ_SIMD_FIXED_H
#define SQ_SIMD_FIXED_H

#include "simd_digits.h"

#include <math.h>

/* sums + low halves' products + high halves' products, of W pairs of i16. */
typedef vi dot_pairs(vi sums, vi a, vi b);

typedef int16_t vs __attribute__((vector_size(2 * W)));

/* fixed.c: quantize_by_norm. n is a multiple of 32. */
static float fixed_quantize(const float *a, size_t n, int16_t *q) {
    vf squares[2] = {vf_zero(), vf_zero()};
    for (size_t i = 0; i < n; i += 2 * W) {
        for (int j = 0; j < 2; j++) {
            vf v = vf_load(a + i + j * W);
            squares[j] = vf_fma(v, v, squares[j]);
        }
    }
    v4 totals = vf_sums((const vf[4]){squares[0], squares[1], vf_zero(), vf_zero()});
    float norm = sqrtf(totals[0] + totals[1]);
    vf inverse = vf_set1(norm > SQ_FIXED_TINY ? 32767 / norm : 0);
    for (size_t i = 0; i < n; i += W) {
        /* Adding it leaves the nearest integer in the low bits. */
        vf rounded = vf_fma(vf_load(a + i), inverse, vf_set1(0x1.8p23f));
        vs narrow = __builtin_convertvector((vi)rounded, vs);
        memcpy(q + i, &narrow, sizeof narrow);
    }
    return norm / 32767;
}

static void fixed_pack(const float *x, size_t ldx, uint32_t n_tokens, uint32_t n_in, void *group) {
    const size_t n = sq_pad(n_in);
    int32_t *pairs = group;
    float *scales = (float *)(pairs + SQ_FIXED_TOKENS * n / 2);
    memset(group, 0, n_tokens < SQ_FIXED_TOKENS ? sq_fixed_group_bytes(n_in) : 0);
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (size_t i = 0; i < n; i += SQ_FIXED_BLOCK) {
            size_t n_block = n - i < SQ_FIXED_BLOCK ? n - i : SQ_FIXED_BLOCK;
            int32_t q[SQ_FIXED_BLOCK / 2];
            scales[i / SQ_FIXED_BLOCK * SQ_FIXED_TOKENS + t] =
                fixed_quantize(x + t * ldx + i, n_block, (int16_t *)q);
            for (size_t k = 0; k < n_block / 2; k++) {
                pairs[(i / 2 + k) * SQ_FIXED_TOKENS + t] = q[k];
            }
        }
    }
}

/* Vector v of a panel of groups: W tokens' pairs, or scales, lie at base + fixed_offset(v, …). */
SQ_INLINE size_t fixed_offset(int v, size_t group_bytes) {
    return v * W / SQ_FIXED_TOKENS * group_bytes + v * W % SQ_FIXED_TOKENS * sizeof(int32_t);
}

/* sums[r][t] (+)= s_w[r] s_x[t] Σ q_w q_x over one block, for n_vectors · W tokens. */
SQ_INLINE void fixed_tile(dot_pairs *dot, const int16_t *weights, size_t ldw, const float *weight_scales,
                          size_t n_blocks, const uint8_t *pairs, const uint8_t *scales, size_t group_bytes,
                          size_t n, int n_vectors, bool first, float (*sums)[FIXED_TILE_VECTORS * W]) {
    vi products[FIXED_TILE_ROWS][FIXED_TILE_VECTORS];
    for (int r = 0; r < FIXED_TILE_ROWS; r++) {
        for (int v = 0; v < n_vectors; v++) {
            products[r][v] = (vi){0};
        }
    }
    for (size_t p = 0; p < n / 2; p++) {
        vi xs[FIXED_TILE_VECTORS];
        for (int v = 0; v < n_vectors; v++) {
            memcpy(&xs[v], pairs + fixed_offset(v, group_bytes) + p * SQ_FIXED_TOKENS * sizeof(int32_t),
                   sizeof xs[v]);
        }
        for (int r = 0; r < FIXED_TILE_ROWS; r++) {
            int32_t pair;
            memcpy(&pair, weights + r * ldw + 2 * p, sizeof pair);
            for (int v = 0; v < n_vectors; v++) {
                products[r][v] = dot(products[r][v], xs[v], (vi){0} + pair);
            }
        }
    }
    for (int v = 0; v < n_vectors; v++) {
        vf x_scale = vf_load((const float *)(scales + fixed_offset(v, group_bytes)));
        for (int r = 0; r < FIXED_TILE_ROWS; r++) {
            vf scale = x_scale * vf_set1(weight_scales[r * n_blocks]);
            vf before = first ? vf_zero() : vf_load(&sums[r][v * W]);
            vf_store(&sums[r][v * W], vf_fma(__builtin_convertvector(products[r][v], vf), scale, before));
        }
    }
}

/* Asks for where fixed_store is going to write, while the sums are made. */
static void fixed_ask(uint32_t n_rows, uint32_t n_tokens, float *y, size_t ldy) {
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t r = 0; r < n_rows; r += 64 / sizeof *y) {
            __builtin_prefetch(&y[t * ldy + r], 1);
        }
    }
}

/* y[t · ldy + r] = sums[r][t]; a token's rows one after another, as those of many tokens often fall into the
 * same few places of the L1 cache. */
static void fixed_store(float (*sums)[FIXED_TILE_VECTORS * W], uint32_t n_rows, uint32_t n_tokens, float *y,
                        size_t ldy) {
    for (uint32_t t = 0; t < n_tokens; t += 4) {
        uint32_t tokens = n_tokens - t < 4 ? n_tokens - t : 4;
        for (uint32_t r = 0; r < n_rows; r += 4) {
            uint32_t rows = n_rows - r < 4 ? n_rows - r : 4;
            v4 square[4];
            for (int i = 0; i < 4; i++) {
                memcpy(&square[i], &sums[r + i][t], sizeof square[i]);
            }
            v4_transpose(square);
            for (uint32_t i = 0; i < tokens; i++) {
                float *to = &y[(t + i) * ldy + r];
                if (rows == 4) { /* a constant size: one store */
                    memcpy(to, &square[i], sizeof square[i]);
                } else {
                    memcpy(to, &square[i], rows * sizeof *y);
                }
            }
        }
    }
}

/* The codes of a vector of dwords, times m, at out in the order of its positions 16 j + i. */
SQ_INLINE void fixed_codes_vector(int bits, const bytes_table *table, vu plane, int16_t m, int16_t *out) {
    for (uint32_t f = 0; f < n_byte_fields(bits); f++, plane >>= field_bits(bits)) {
        vu codes = bytes_at(table, plane) ^ BYTES_OFFSET * 0x01010101u;
        for (uint32_t b = 0; b < 4; b++) { /* of a dword's four bytes the b-th, with its sign */
            vs narrow = __builtin_convertvector((vi)(codes << (24 - 8 * b)) >> 24, vs) * m;
            memcpy(out + BLOCK_DWORDS * (n_byte_fields(bits) * b + f), &narrow, sizeof narrow);
        }
    }
}

/* A row's codes times m. */
SQ_INLINE void fixed_codes(int bits, const sq_matrix *w, uint32_t row, int16_t m, int16_t *out) {
    const uint32_t n_planes = n_planes_of(bits), left = w->n_in % block_of(bits);
    const uint8_t *codes = w->data + row * w->row_bytes;
    const bytes_table table = bytes_load(bits, w->lut8 + ((size_t)row << bits));
    for (uint32_t b = 0; b < w->n_in / block_of(bits); b++, codes += 64 * n_planes, out += block_of(bits)) {
        for (int h = 0; h < BLOCK_DWORDS / W; h++) {
            vu spare = {0};
            for (uint32_t p = 0; p < n_planes; p++) {
                vu plane = vu_load(codes + 64 * p + 4 * W * h);
                spare |= spare_bits(plane, p);
                fixed_codes_vector(bits, &table, plane, m, out + 128 * p + W * h);
            }
            if (bits == 3) {
                fixed_codes_vector(bits, &table, spare, m, out + 384 + W * h);
            }
        }
    }
    uint32_t n_dwords = (left + n_per_dword(bits) - 1) / n_per_dword(bits);
    for (uint32_t p = 0; left && p < n_planes_used(bits); p++) {
        dwords plane = narrow_plane(bits, codes, n_dwords, p, false);
        int16_t positions[16 * BLOCK_DWORDS];
        for (int h = 0; h < BLOCK_DWORDS / W; h++) {
            fixed_codes_vector(bits, &table, plane.part[h], m, positions + W * h);
        }
        for (int j = 0; j < n_fields(bits); j++, out += n_dwords) {
            memcpy(out, positions + BLOCK_DWORDS * j, n_dwords * sizeof *out);
        }
    }
}

/* A row with an 8-bit table in fixed point, without ever being f32; whether it could be. */
static bool fixed_expand_codes(const sq_matrix *w, uint32_t row, int16_t *q, float *scales) {
    const uint32_t multiple = sq_fixed_multiple(w, row);
    const float scale = multiple ? f16_to_f32(w->lut_scale[row]) / (float)multiple : 0;
    switch (multiple ? w->type : SQ_TYPE_F32) {
    case SQ_TYPE_LUT2:
        fixed_codes(2, w, row, (int16_t)multiple, q);
        break;
    case SQ_TYPE_LUT3:
        fixed_codes(3, w, row, (int16_t)multiple, q);
        break;
    case SQ_TYPE_LUT4:
        fixed_codes(4, w, row, (int16_t)multiple, q);
        break;
    default:
        return false;
    }
    memset(q + w->n_in, 0, (sq_pad(w->n_in) - w->n_in) * sizeof *q);
    for (uint32_t k = w->rows ? (uint32_t)w->rows[row] : 0; w->rows && k < (uint32_t)w->rows[row + 1]; k++) {
        q[sq_column(w, k)] += (int16_t)lrintf(f16_to_f32(w->vals[k]) / scale);
    }
    for (size_t b = 0; b < sq_fixed_n_blocks(w->n_in); b++) {
        scales[b] = scale;
    }
    return true;
}

/* Expands and rounds rows [row, row + n_rows) of w into the tile; rows that fill up a register tile are
 * zero. */
static void fixed_expand(const sq_matrix *w, uint32_t row, uint32_t n_rows, int16_t *tile, float *scales,
                         float *weights) {
    const size_t n = sq_pad(w->n_in), ldw = sq_fixed_row_stride(w->n_in);
    const size_t n_blocks = sq_fixed_n_blocks(w->n_in);
    for (uint32_t r = 0; r < n_rows; r++, tile += ldw, scales += n_blocks) {
        if (fixed_expand_codes(w, row + r, tile, scales)) {
            continue;
        }
        type_kernels[w->type].expand_row(w, row + r, weights);
        for (size_t i = 0; i < n; i += SQ_FIXED_BLOCK) {
            size_t n_block = n - i < SQ_FIXED_BLOCK ? n - i : SQ_FIXED_BLOCK;
            scales[i / SQ_FIXED_BLOCK] = fixed_quantize(weights + i, n_block, tile + i);
        }
    }
    uint32_t n_missing = -n_rows % FIXED_TILE_ROWS;
    memset(tile, 0, n_missing * ldw * sizeof *tile);
    memset(scales, 0, n_missing * n_blocks * sizeof *scales);
}

/* The tile's rows times one panel: n_vectors vectors of tokens. */
SQ_INLINE void fixed_panel(dot_pairs *dot, const int16_t *tile, const float *scales, size_t n_in,
                           uint32_t n_rows, const uint8_t *groups, int n_vectors,
                           float (*sums)[FIXED_TILE_VECTORS * W]) {
    const size_t n = sq_pad(n_in), ldw = sq_fixed_row_stride(n_in), n_blocks = sq_fixed_n_blocks(n_in);
    const size_t group_bytes = sq_fixed_group_bytes(n_in), pair_bytes = SQ_FIXED_TOKENS * sizeof(int16_t);
    for (size_t i = 0, b = 0; i < n; i += SQ_FIXED_BLOCK, b++) {
        size_t n_block = n - i < SQ_FIXED_BLOCK ? n - i : SQ_FIXED_BLOCK;
        for (uint32_t r = 0; r < n_rows; r += FIXED_TILE_ROWS) {
            fixed_tile(dot, tile + r * ldw + i, ldw, scales + r * n_blocks + b, n_blocks,
                       groups + i * pair_bytes, groups + n * pair_bytes + b * SQ_FIXED_TOKENS * sizeof(float),
                       group_bytes, n_block, n_vectors, i == 0, sums + r);
        }
    }
}

/* Asks for part i of n of the codes of a tile. Past the end of the matrix the hint is ignored. */
static void fixed_ask_codes(const sq_matrix *w, uint32_t row, size_t i, size_t n) {
    const uint8_t *codes = w->data + row * w->row_bytes;
    const size_t n_bytes = SQ_FIXED_ROWS * w->row_bytes;
    for (size_t at = n_bytes * i / n; at < n_bytes * (i + 1) / n; at += 64) {
        __builtin_prefetch(codes + at, 0, 2);
    }
}

SQ_INLINE void fixed_gemm(dot_pairs *dot, const sq_matrix *w, const void *packed, uint32_t n_tokens, float *y,
                          size_t ldy, uint32_t row0, uint32_t row1, void *scratch) {
    enum { PANEL = FIXED_TILE_VECTORS * W };
    const size_t group_bytes = sq_fixed_group_bytes(w->n_in);
    _Alignas(64) float sums[SQ_FIXED_ROWS][PANEL];
    int16_t *tile = scratch;
    float *weights = (float *)(tile + SQ_FIXED_ROWS * sq_fixed_row_stride(w->n_in));
    float *scales = weights + sq_pad(w->n_in);
    for (uint32_t row = row0; row < row1; row += SQ_FIXED_ROWS) {
        uint32_t n_rows = row1 - row < SQ_FIXED_ROWS ? row1 - row : SQ_FIXED_ROWS;
        fixed_expand(w, row, n_rows, tile, scales, weights);
        for (uint32_t t = 0; t < n_tokens; t += PANEL) {
            uint32_t tokens = n_tokens - t < PANEL ? n_tokens - t : PANEL;
            const uint8_t *groups = (const uint8_t *)packed + t / SQ_FIXED_TOKENS * group_bytes;
            fixed_ask(n_rows, tokens, y + t * ldy + (row - row0), ldy);
            fixed_ask_codes(w, row + n_rows, t / PANEL, (n_tokens + PANEL - 1) / PANEL);
            switch ((tokens + W - 1) / W) {
#define PANEL_OF(n)                                                                                          \
    case n:                                                                                                  \
        fixed_panel(dot, tile, scales, w->n_in, n_rows, groups, n, sums);                                    \
        break
                PANEL_OF(1);
                PANEL_OF(2);
#if FIXED_TILE_VECTORS > 2
                PANEL_OF(3);
#endif
#undef PANEL_OF
            }
            fixed_store(sums, n_rows, tokens, y + t * ldy + (row - row0), ldy);
        }
    }
}

#endif
