/* Rows of weights over vectors of W floats, their products with activations and their expansion: the one body
 * that x86_avx512.c, x86_avx2.c and arm_neon.c include after defining the vector operations it is made of:
 *
 *   W                     floats in a vector: 16, 8 or 4
 *   GEMV_ROWS             rows that share the loads of x in a product with one token, at most 4
 *   TWO_ROWS              the same in a product with two tokens
 *   FEW_ROWS, FEW_TOKENS  rows that share the loads of x, and tokens that share the decoded weights, in a
 *                         product with few tokens; both at most 4
 *   vf, vu, v4            vectors of W float, W uint32_t, 4 float
 *   vf_zero vf_set1 vf_load vf_store vf_fma
 *   vf_load_n vf_store_n  the first n lanes alone, n <= W; the others are zero, memory past n untouched
 *   vf_load_f16 vf_load_f16_n vf_load_i8      widened from W elements
 *   vf_set1_f16           one f16 in all lanes
 *   v4_load_f16           widened from four f16
 *   f16_to_f32            one f16
 *   vf_gather4            the four floats at x + 4 index[0], x + 4 index[4], …: W in all
 *   vf_transpose4         of four vectors, each four lanes as a square of their own
 *   vu_load vu_iota vu_srlv                   W dwords; 0, 1, 2 …; shift right lane by lane
 *   lut_table lut_load lut_load8 lut_at   a row's table, of f16 or of 8 bits times a scale, and W lookups,
 *                         which ignore all but the low `bits` bits
 *   dwords dwords_load dwords_at              up to 16 dwords in registers and W lookups of them
 *
 * The sum of a row runs in an order fixed by n_in alone. */
#ifndef SQ_SIMD_ROWS_H
#define SQ_SIMD_ROWS_H

#include "scalar.h"

#include <string.h>

#define SQ_INLINE static inline __attribute__((always_inline))

enum { BLOCK_DWORDS = 16 };
/* Of a tile of rows and tokens. */
enum { TILE_SUMS = 8 };

/* Of few tokens: token t's activations at x + t · ldx and, where simd_digits.h has made them, its digits at
 * packed + t · packed_bytes. `cache`: into which codes are asked for, a constant. */
typedef struct operand {
    const float *x;
    size_t ldx;
    uint8_t *packed;
    size_t packed_bytes;
    int cache;
} operand;

/* Hardware does not follow several short rows at once. They lie one after another, so a product with some
 * rows asks for what is needed soon, by these rows or the next ones, in the order in which it lies, whichever
 * row it works on: memory serves that up to twice as fast. Asked for into the L2 cache, codes leave the L1
 * cache's few places for what is under way to the loads of x. Past the end of the matrix the hint is
 * ignored. */
enum { PREFETCH_BYTES = 4096 };
enum { INTO_L2, INTO_L1 };

/* Begins behind the last of the rows, which are all needed at once. */
SQ_INLINE const uint8_t *prefetch_from(const sq_matrix *w, uint32_t row, int n_rows) {
    return w->data + (row + n_rows - 1) * w->row_bytes + PREFETCH_BYTES;
}

SQ_INLINE void prefetch(int cache, const uint8_t **next, size_t n_bytes) {
    if (cache == INTO_L1) {
        __builtin_prefetch(*next, 0, 0);
    } else {
        __builtin_prefetch(*next, 0, 2);
    }
    *next += n_bytes;
}

/* ---- kept weights: docs/FORMAT.md 2 ----------------------------------------------------------- */

/* A row keeps few weights, a varying number: too few to fill vectors, and a loop over them would be
 * mispredicted. So their products with x are made for a stretch of rows, and a row adds its slice, product k
 * of a row always in lane k mod W. The dense part makes four whenever it has read a plane, of its own rows or
 * of later ones: the loads of x, which often miss the L1 cache, then wait beside it and not before it. */
enum { KEPT_PRODUCTS = 1024, KEPT_AHEAD = 256 };

typedef struct kept_products {
    uint32_t begin, end;   /* of the matrix's kept weights */
    uint32_t n_made, stop; /* of them; made until there are `stop` */
    float products[KEPT_PRODUCTS];
} kept_products;

/* What is still to be made while columns < stop. */
typedef struct kept_task {
    const uint16_t *columns, *stop, *values;
    float *products;
    const float *x;
} kept_task;

/* Fours end past the stretch, at kept weights of the next rows; past the end of the matrix there are none. */
static __attribute__((noinline)) void kept_begin(kept_products *kept, const sq_matrix *w, uint32_t begin,
                                                 uint32_t end, const float *x) {
    end = end - begin < KEPT_PRODUCTS ? end : begin + KEPT_PRODUCTS;
    uint32_t stop = w->cols16 ? (end - begin + 3) / 4 * 4 : 0;
    stop -= begin + stop > w->n_sparse ? 4 : 0;
    for (uint32_t k = begin + stop; k < end; k++) {
        kept->products[k - begin] = f16_to_f32(w->vals[k]) * x[sq_column(w, k)];
    }
    kept->begin = begin;
    kept->end = end;
    kept->n_made = 0;
    kept->stop = stop;
}

SQ_INLINE kept_task kept_continue(kept_products *kept, const sq_matrix *w, const float *x) {
    if (!kept->stop) {
        return (kept_task){.products = kept->products};
    }
    uint32_t k = kept->begin + kept->n_made;
    const uint16_t *columns = w->cols16 + k;
    return (kept_task){columns, columns + (kept->stop - kept->n_made), w->vals + k,
                       kept->products + kept->n_made, x};
}

/* Said to be unlikely, so that registers are the dense part's. */
SQ_INLINE void kept_step(kept_task *task) {
    if (__builtin_expect(task->columns < task->stop, 0)) {
        const uint16_t *c = task->columns;
        const float *x = task->x;
        v4 products = v4_load_f16(task->values) * (v4){x[c[0]], x[c[1]], x[c[2]], x[c[3]]};
        memcpy(task->products, &products, sizeof products);
        __builtin_prefetch(c + KEPT_AHEAD);
        __builtin_prefetch(task->values + KEPT_AHEAD);
        task->columns += 4;
        task->values += 4;
        task->products += 4;
    }
}

/* At least the first n of the stretch. */
SQ_INLINE void kept_make(kept_products *kept, kept_task *task, uint32_t n) {
    while (task->products - kept->products < (ptrdiff_t)n && task->columns < task->stop) {
        kept_step(task);
    }
    kept->n_made = (uint32_t)(task->products - kept->products);
}

/* The same of several tokens at once, whose activations lie input by input, unless there are too many. */
static void kept_fill4(kept_products *kept, const sq_matrix *w, uint32_t begin, uint32_t end,
                       const float *x4) {
    if (end - begin > KEPT_PRODUCTS) {
        return;
    }
    for (uint32_t k = begin; k < end; k += W) {
        uint32_t n = end - k < W ? end - k : W;
        vf values = vf_load_f16_n(w->vals + k, n), four[4];
        uint16_t columns[W] = {0};
        const uint16_t *from = w->cols16 + k;
        if (n < W) {
            memcpy(columns, from, n * sizeof *from);
            from = columns;
        }
        for (int j = 0; j < 4; j++) {
            four[j] = vf_gather4(x4, from + j);
        }
        vf_transpose4(four);
        for (int t = 0; t < 4; t++) {
            vf_store(kept[t].products + (k - begin), values * four[t]);
        }
    }
    for (int t = 0; t < 4; t++) {
        kept[t].begin = begin;
        kept[t].end = end;
    }
}

/* x4[i] = activation i of at most four tokens. */
static void kept_interleave(const float *x, size_t ldx, uint32_t n_tokens, uint32_t n_in, float *x4) {
    for (size_t i = 0; i < sq_pad(n_in); i += W) {
        vf four[4];
        for (int t = 0; t < 4; t++) {
            four[t] = t < (int)n_tokens ? vf_load(x + t * ldx + i) : vf_zero();
        }
        vf_transpose4(four);
        for (int j = 0; j < W; j++) {
            memcpy(x4 + 4 * (i + j), (const float *)&four[j % 4] + j / 4 * 4, 4 * sizeof *x4);
        }
    }
}

/* The sum of the products k … end-1 of one row, a stretch at a time. */
static __attribute__((noinline)) vf kept_sum_any(kept_products *kept, const sq_matrix *w, uint32_t k,
                                                 uint32_t end, const float *x) {
    vf sum = vf_zero();
    for (; k < end; k += W) {
        uint32_t n = end - k < W ? end - k : W;
        if (k < kept->begin || k + n > kept->end) {
            kept_begin(kept, w, k, end, x);
            kept_task task = kept_continue(kept, w, x);
            kept_make(kept, &task, KEPT_PRODUCTS);
        }
        sum += vf_load_n(kept->products + (k - kept->begin), n);
    }
    return sum;
}

/* Adds them to the sums of the row, of each token; mostly the products are ready and fit into a vector. */
SQ_INLINE void kept_sum(kept_products *kept, const sq_matrix *w, uint32_t row, const float *x, size_t ldx,
                        int n_tokens, vf *sums) {
    uint32_t k = (uint32_t)w->rows[row], end = (uint32_t)w->rows[row + 1];
    if (end - k <= W && k >= kept->begin && end <= kept->end) {
        for (int t = 0; t < n_tokens; t++) {
            sums[t] += vf_load_n(kept[t].products + (k - kept->begin), end - k);
        }
    } else {
        for (int t = 0; t < n_tokens; t++) {
            sums[t] += kept_sum_any(&kept[t], w, k, end, x + t * ldx);
        }
    }
}

static void kept_add(const sq_matrix *w, uint32_t row, float *out) {
    if (w->rows) {
        for (uint32_t k = (uint32_t)w->rows[row]; k < (uint32_t)w->rows[row + 1]; k++) {
            out[sq_column(w, k)] += f16_to_f32(w->vals[k]);
        }
    }
}

/* ---- tables: docs/FORMAT.md 2.1 to 2.3 -------------------------------------------------------- */

/* A "plane" is n_dwords (D) dwords of fields, eight nibbles or, for 2 bits, sixteen pairs of bits: its
 * position D·j + i is field j of dword i. A block of 2 or 4 bits is one plane. A 3-bit block is four: three
 * are stored, and bit p of the fourth's nibbles is the spare bit of plane p. */
SQ_INLINE int field_bits(int bits) {
    return bits == 2 ? 2 : 4;
}
SQ_INLINE int n_fields(int bits) {
    return 32 / field_bits(bits);
}
/* Weights that one dword (of each stored plane) holds, planes stored, weights of a full block. */
SQ_INLINE uint32_t n_per_dword(int bits) {
    return bits == 3 ? 32 : n_fields(bits);
}
SQ_INLINE uint32_t n_planes_of(int bits) {
    return bits == 3 ? 3 : 1;
}
/* Planes of a block, the fourth of 3 bits among them. */
SQ_INLINE uint32_t n_planes_used(int bits) {
    return bits == 3 ? 4 : 1;
}
SQ_INLINE uint32_t block_of(int bits) {
    return BLOCK_DWORDS * n_per_dword(bits);
}

/* Vector h of a full plane (D = 16) covers the positions 16 j + W h …: field j of its own dwords. */
SQ_INLINE void plane_dot(int bits, int n_rows, int n_tokens, const lut_table *tables, const vu *plane,
                         const float *x, size_t ldx, vf (*sums)[2]) {
    vu codes[GEMV_ROWS];
    for (int r = 0; r < n_rows; r++) {
        codes[r] = plane[r];
    }
    for (int j = 0; j < n_fields(bits); j += 2) {
        for (int k = 0; k < 2; k++, x += BLOCK_DWORDS) {
            vf xs[FEW_TOKENS];
            for (int t = 0; t < n_tokens; t++) {
                xs[t] = vf_load(x + t * ldx);
            }
            for (int r = 0; r < n_rows; r++) {
                vf weights = lut_at(bits, &tables[r], codes[r]);
                codes[r] >>= field_bits(bits);
                for (int t = 0; t < n_tokens; t++) {
                    vf *sum = &sums[r * n_tokens + t][k];
                    *sum = vf_fma(weights, xs[t], *sum);
                }
            }
        }
    }
}

SQ_INLINE void plane_expand(int bits, const lut_table *table, vu plane, float *out) {
    for (int j = 0; j < n_fields(bits); j++) {
        vf_store(out + BLOCK_DWORDS * j, lut_at(bits, table, plane >> field_bits(bits) * j));
    }
}

/* In a narrow plane W positions in a row lie scattered over dwords and fields. */
typedef struct scatter {
    vu dword, shift;
} scatter;

SQ_INLINE scatter scatter_of(int bits, uint32_t position, uint32_t n_dwords) {
    vu p = vu_iota() + position, field = p * (65536 / n_dwords + 1) >> 16; /* p / n_dwords, for p < 272 */
    return (scatter){p - field * n_dwords, field * field_bits(bits)};
}

SQ_INLINE vu scatter_codes(scatter s, const dwords *plane) {
    return vu_srlv(dwords_at(plane, s.dword), s.shift);
}

/* `x` points at the plane's first position; it is not read past the last. */
SQ_INLINE void narrow_dot(int bits, int n_rows, int n_tokens, const lut_table *tables, const dwords *planes,
                          uint32_t n_dwords, const float *x, size_t ldx, vf (*sums)[2]) {
    uint32_t n = n_fields(bits) * n_dwords;
    for (uint32_t p = 0; p < n; p += W) {
        scatter s = scatter_of(bits, p, n_dwords);
        vf xs[FEW_TOKENS];
        for (int t = 0; t < n_tokens; t++) {
            xs[t] = n - p >= W ? vf_load(x + t * ldx + p) : vf_load_n(x + t * ldx + p, 8);
        }
        for (int r = 0; r < n_rows; r++) {
            vf weights = lut_at(bits, &tables[r], scatter_codes(s, &planes[r]));
            for (int t = 0; t < n_tokens; t++) {
                vf *sum = &sums[r * n_tokens + t][0];
                *sum = vf_fma(weights, xs[t], *sum);
            }
        }
    }
}

SQ_INLINE void narrow_expand(int bits, const lut_table *table, const dwords *plane, uint32_t n_dwords,
                             float *out) {
    uint32_t n = n_fields(bits) * n_dwords;
    for (uint32_t p = 0; p < n; p += W) {
        vf weights = lut_at(bits, table, scatter_codes(scatter_of(bits, p, n_dwords), plane));
        vf_store_n(out + p, weights, n - p >= W ? W : 8);
    }
}

/* Bit 3 of every nibble of plane p, as bit p of the fourth plane's nibbles. */
SQ_INLINE vu spare_bits(vu plane, int p) {
    return plane >> (3 - p) & 0x11111111u << p;
}

SQ_INLINE void dwords_add_spare(dwords *spare, const dwords *plane, int p) {
    for (int i = 0; i < BLOCK_DWORDS / W; i++) {
        spare->part[i] |= spare_bits(plane->part[i], p);
    }
}

SQ_INLINE lut_table lut_of(int bits, const sq_matrix *w, uint32_t row) {
    size_t first = (size_t)row << bits;
    return w->lut8 ? lut_load8(bits, w->lut8 + first, vf_set1_f16((const uint8_t *)(w->lut_scale + row)))
                   : lut_load(bits, w->lut + first);
}

/* dot_tile, below. */
SQ_INLINE void lut_dot(int bits, const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens,
                       kept_task *kept, vf *sums) {
    const uint32_t n_planes = n_planes_of(bits), block = block_of(bits);
    const float *x = in.x;
    const size_t ldx = in.ldx;
    const uint8_t *codes[GEMV_ROWS];
    const uint8_t *ahead = prefetch_from(w, row, n_rows);
    lut_table tables[GEMV_ROWS];
    vf partial[TILE_SUMS][2];
    for (int r = 0; r < n_rows; r++) {
        codes[r] = w->data + (row + r) * w->row_bytes;
        tables[r] = lut_of(bits, w, row + r);
    }
    for (int i = 0; i < n_rows * n_tokens; i++) {
        partial[i][0] = partial[i][1] = vf_zero();
    }
    for (uint32_t b = 0; b < w->n_in / block; b++, x += block) {
        for (int h = 0; h < BLOCK_DWORDS / W; h++) {
            vu plane[GEMV_ROWS], spare[GEMV_ROWS];
            for (uint32_t p = 0; p < n_planes; p++) {
                for (int r = 0; r < n_rows; r++) {
                    plane[r] = vu_load(codes[r] + 64 * p + 4 * W * h);
                    prefetch(in.cache, &ahead, 4 * W);
                    spare[r] = p ? spare[r] | spare_bits(plane[r], p) : spare_bits(plane[r], p);
                }
                plane_dot(bits, n_rows, n_tokens, tables, plane, x + 128 * p + W * h, ldx, partial);
            }
            if (bits == 3) {
                plane_dot(bits, n_rows, n_tokens, tables, spare, x + 384 + W * h, ldx, partial);
            }
            for (uint32_t p = 0; p < n_planes_used(bits) && n_tokens == 1; p++) {
                kept_step(kept);
            }
        }
        for (int r = 0; r < n_rows; r++) {
            codes[r] += 64 * n_planes;
        }
    }
    uint32_t left = w->n_in % block;
    if (left) {
        uint32_t n_dwords = (left + n_per_dword(bits) - 1) / n_per_dword(bits);
        dwords plane[GEMV_ROWS], spare[GEMV_ROWS];
        memset(spare, 0, sizeof spare);
        for (uint32_t p = 0; p < n_planes; p++) {
            for (int r = 0; r < n_rows; r++) {
                plane[r] = dwords_load(codes[r] + 4 * p * n_dwords, n_dwords);
                prefetch(in.cache, &ahead, 4 * n_dwords);
                dwords_add_spare(&spare[r], &plane[r], p);
            }
            narrow_dot(bits, n_rows, n_tokens, tables, plane, n_dwords, x + 8 * p * n_dwords, ldx, partial);
        }
        if (bits == 3) {
            narrow_dot(bits, n_rows, n_tokens, tables, spare, n_dwords, x + 24 * n_dwords, ldx, partial);
        }
    }
    for (int i = 0; i < n_rows * n_tokens; i++) {
        sums[i] = partial[i][0] + partial[i][1];
    }
}

SQ_INLINE void lut_expand(int bits, const sq_matrix *w, uint32_t row, float *out) {
    const uint32_t n_planes = n_planes_of(bits), block = block_of(bits);
    const uint8_t *codes = w->data + row * w->row_bytes;
    lut_table table = lut_of(bits, w, row);
    float *end = out + w->n_in, *o = out;
    for (uint32_t b = 0; b < w->n_in / block; b++, o += block, codes += 64 * n_planes) {
        for (int h = 0; h < BLOCK_DWORDS / W; h++) {
            vu spare = vu_iota() * 0;
            for (uint32_t p = 0; p < n_planes; p++) {
                vu plane = vu_load(codes + 64 * p + 4 * W * h);
                spare |= spare_bits(plane, p);
                plane_expand(bits, &table, plane, o + 128 * p + W * h);
            }
            if (bits == 3) {
                plane_expand(bits, &table, spare, o + 384 + W * h);
            }
        }
    }
    uint32_t left = w->n_in % block;
    if (left) {
        uint32_t n_dwords = (left + n_per_dword(bits) - 1) / n_per_dword(bits);
        dwords spare;
        memset(&spare, 0, sizeof spare);
        for (uint32_t p = 0; p < n_planes; p++) {
            dwords plane = dwords_load(codes + 4 * p * n_dwords, n_dwords);
            dwords_add_spare(&spare, &plane, p);
            narrow_expand(bits, &table, &plane, n_dwords, o + 8 * p * n_dwords);
        }
        if (bits == 3) {
            narrow_expand(bits, &table, &spare, n_dwords, o + 24 * n_dwords);
        }
    }
    memset(end, 0, (sq_pad(w->n_in) - w->n_in) * sizeof *out);
    kept_add(w, row, out);
}

/* ---- weights stored one by one ---------------------------------------------------------------- */

typedef vf load_weights(const uint8_t *row, size_t i);
typedef vf load_n_weights(const uint8_t *row, size_t i, uint32_t n);

SQ_INLINE vf f32_load(const uint8_t *row, size_t i) {
    return vf_load((const float *)row + i);
}
SQ_INLINE vf f32_load_n(const uint8_t *row, size_t i, uint32_t n) {
    return vf_load_n((const float *)row + i, n);
}
SQ_INLINE vf f16_load(const uint8_t *row, size_t i) {
    return vf_load_f16((const uint16_t *)row + i);
}
SQ_INLINE vf f16_load_n(const uint8_t *row, size_t i, uint32_t n) {
    return vf_load_f16_n((const uint16_t *)row + i, n);
}

SQ_INLINE void dense_dot(load_weights *load, load_n_weights *load_n, size_t element_bytes, const sq_matrix *w,
                         operand in, uint32_t row, int n_rows, int n_tokens, vf *sums) {
    const uint8_t *rows[GEMV_ROWS];
    const uint8_t *ahead = prefetch_from(w, row, n_rows);
    for (int r = 0; r < n_rows; r++) {
        rows[r] = w->data + (row + r) * w->row_bytes;
    }
    for (uint32_t i = 0; i < w->n_in; i += W) {
        uint32_t left = w->n_in - i;
        vf xs[FEW_TOKENS];
        for (int t = 0; t < n_tokens; t++) {
            xs[t] = vf_load(in.x + t * in.ldx + i);
        }
        for (int r = 0; r < n_rows; r++) {
            vf weights = left < W ? load_n(rows[r], i, left) : load(rows[r], i);
            prefetch(in.cache, &ahead, W * element_bytes);
            for (int t = 0; t < n_tokens; t++) {
                vf *sum = &sums[r * n_tokens + t];
                *sum = vf_fma(weights, xs[t], *sum);
            }
        }
    }
}

SQ_INLINE void dense_expand(load_weights *load, load_n_weights *load_n, const sq_matrix *w, uint32_t row,
                            float *out) {
    const uint8_t *weights = w->data + row * w->row_bytes;
    uint32_t i = 0, n = w->n_in;
    for (; i + W <= n; i += W) {
        vf_store(out + i, load(weights, i));
    }
    if (i < n) {
        vf_store_n(out + i, load_n(weights, i, n - i), n - i);
    }
    memset(out + n, 0, (sq_pad(n) - n) * sizeof *out);
    kept_add(w, row, out);
}

/* Blocks of an f16 scale and 32 bytes: the scale multiplies the sum of its block. */
SQ_INLINE void q8_0_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens, vf *sums) {
    const float *x = in.x;
    const size_t ldx = in.ldx;
    const uint8_t *blocks[GEMV_ROWS];
    const uint8_t *ahead = prefetch_from(w, row, n_rows);
    for (int r = 0; r < n_rows; r++) {
        blocks[r] = w->data + (row + r) * w->row_bytes;
    }
    for (uint32_t b = 0; b < w->n_in / 32; b++, x += 32) {
        for (int r = 0; r < n_rows; r++, blocks[r - 1] += 34) {
            vf weights[32 / W];
            for (int i = 0; i < 32 / W; i++) {
                weights[i] = vf_load_i8((const int8_t *)blocks[r] + 2 + i * W);
            }
            prefetch(in.cache, &ahead, 34);
            for (int t = 0; t < n_tokens; t++) {
                vf product = weights[0] * vf_load(x + t * ldx), *sum = &sums[r * n_tokens + t];
                for (int i = 1; i < 32 / W; i++) {
                    product = vf_fma(weights[i], vf_load(x + t * ldx + i * W), product);
                }
                *sum = vf_fma(vf_set1_f16(blocks[r]), product, *sum);
            }
        }
    }
}

static void q8_0_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    const uint8_t *block = w->data + row * w->row_bytes;
    for (uint32_t b = 0; b < w->n_in / 32; b++, block += 34) {
        for (int i = 0; i < 32; i += W) {
            vf_store(out + 32 * b + i, vf_set1_f16(block) * vf_load_i8((const int8_t *)block + 2 + i));
        }
    }
    kept_add(w, row, out);
}

#endif
