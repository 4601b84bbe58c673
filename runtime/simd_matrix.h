/* Products of matrices with one, few and many tokens: the one body that x86_avx512.c, x86_avx2.c and
 * arm_neon.c include. Beyond the list of simd_rows.h it takes
 *
 *   vf_sums               the sums over the lanes of four vectors, as a v4
 *   GEMM_TOKENS           tokens in a register tile of 4 rows, at most 6
 */
#ifndef SQ_SIMD_MATRIX_H
#define SQ_SIMD_MATRIX_H

#include "simd_rows.h"

/* ---- few tokens ------------------------------------------------------------------------------- */

SQ_INLINE operand operand_from(operand in, uint32_t t) {
    in.x += t * in.ldx;
    in.packed += t * in.packed_bytes;
    return in;
}

/* sums[r · n_tokens + t] = Σ_i W[row + r, i] x[t · ldx + i] over the lanes, dense part, of sums that are
 * zero: a token's are added in the same order whichever others are beside it. n_rows <= GEMV_ROWS of one
 * token, or FEW_ROWS of n_tokens <= FEW_TOKENS. Some of `kept` may be done meanwhile. */
typedef void dot_tile(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens, kept_task *kept,
                      vf *sums);

SQ_INLINE void gemv_tile(dot_tile *dot, int n_rows, int n_tokens, const sq_matrix *w, operand in, float *y,
                         size_t ldy, uint32_t row, uint32_t row1, kept_products *kept) {
    vf sums[(TILE_SUMS + 3) / 4 * 4];
    for (int i = 0; i < (n_rows * n_tokens + 3) / 4 * 4; i++) {
        sums[i] = vf_zero();
    }
    kept_task task = {0};
    if (w->rows && n_tokens == 1) {
        if ((uint32_t)w->rows[row + n_rows] > kept->end) {
            kept_begin(kept, w, (uint32_t)w->rows[row], (uint32_t)w->rows[row1], in.x);
        }
        task = kept_continue(kept, w, in.x);
    }
    dot(w, in, row, n_rows, n_tokens, &task, sums);
    if (w->rows && n_tokens == 1) {
        kept_make(kept, &task, (uint32_t)w->rows[row + n_rows] - kept->begin);
    }
    for (int r = 0; w->rows && r < n_rows; r++) {
        kept_sum(kept, w, row + r, in.x, in.ldx, n_tokens, sums + r * n_tokens);
    }
    for (int i = 0; i < n_rows * n_tokens; i += 4) {
        v4 totals = vf_sums(sums + i);
        for (int k = i; k < i + 4 && k < n_rows * n_tokens; k++) {
            y[k % n_tokens * ldy + k / n_tokens] = totals[k - i];
        }
    }
}

SQ_INLINE void gemv_tokens(dot_tile *dot, int n_rows, int n_tokens, const sq_matrix *w, operand in, float *y,
                           size_t ldy, uint32_t row, uint32_t row1, kept_products *kept) {
    for (; row1 - row >= (uint32_t)n_rows; row += n_rows, y += n_rows) {
        gemv_tile(dot, n_rows, n_tokens, w, in, y, ldy, row, row1, kept);
    }
    for (; row < row1; row++, y++) {
        gemv_tile(dot, 1, n_tokens, w, in, y, ldy, row, row1, kept);
    }
}

/* Products of the rows row … row1-1 with 1, 2 and FEW_TOKENS tokens. */
typedef void rows_gemv(const sq_matrix *w, operand in, float *y, size_t ldy, uint32_t row, uint32_t row1,
                       kept_products *kept);

typedef struct row_gemvs {
    rows_gemv *one, *one_into_l1, *two, *few;
} row_gemvs;

/* Functions of their own: as parts of a larger one they run out of registers. */
#define ROWS_GEMV(name, kind, n_rows, n_tokens, into)                                                        \
    static __attribute__((noinline)) void name##_rows_##kind(const sq_matrix *w, operand in, float *y,       \
                                                             size_t ldy, uint32_t row, uint32_t row1,        \
                                                             kept_products *kept) {                          \
        in.cache = into;                                                                                     \
        gemv_tokens(name##_dot, n_rows, n_tokens, w, in, y, ldy, row, row1, kept);                           \
    }
#define ROW_GEMVS(name)                                                                                      \
    ROWS_GEMV(name, one, GEMV_ROWS, 1, INTO_L2)                                                              \
    ROWS_GEMV(name, one_into_l1, GEMV_ROWS, 1, INTO_L1)                                                      \
    ROWS_GEMV(name, two, TWO_ROWS, 2, INTO_L2)                                                               \
    ROWS_GEMV(name, few, FEW_ROWS, FEW_TOKENS, INTO_L2)                                                      \
    static const row_gemvs name##_rows = {name##_rows_one, name##_rows_one_into_l1, name##_rows_two,         \
                                          name##_rows_few};

/* Packed activations are read again for every few rows: of four tokens if so much of the L1 cache holds them,
 * else of two, where these go with more rows. */
enum { L1_BYTES = 28 * 1024 };

SQ_INLINE bool few_pays(operand in) {
    return TWO_ROWS == FEW_ROWS || FEW_TOKENS * in.packed_bytes <= L1_BYTES;
}

/* Of at most four tokens. */
static void gemv_four(const row_gemvs *gemvs, const sq_matrix *w, operand in, uint32_t n_tokens, float *y,
                      size_t ldy, uint32_t row, uint32_t row1, kept_products *kept) {
    uint32_t t = 0;
    for (; n_tokens - t >= FEW_TOKENS && few_pays(in); t += FEW_TOKENS) {
        gemvs->few(w, operand_from(in, t), y + t * ldy, ldy, row, row1, kept + t);
    }
    for (; n_tokens - t >= 2; t += 2) {
        gemvs->two(w, operand_from(in, t), y + t * ldy, ldy, row, row1, kept + t);
    }
    if (t < n_tokens) {
        rows_gemv *one = sq_cpu_streams_into_l1 ? gemvs->one_into_l1 : gemvs->one;
        one(w, operand_from(in, t), y + t * ldy, ldy, row, row1, kept + t);
    }
}

/* Of several tokens some rows at a time, which come from memory once: they stay in the L1 or L2 cache. */
enum { ROWS_AT_ONCE = 16 };

/* scratch: kept_interleave's [⌈n_tokens / 4⌉, sq_pad(n_in), 4]. */
static void gemv(const row_gemvs *gemvs, const sq_matrix *w, operand in, uint32_t n_tokens, float *y,
                 size_t ldy, uint32_t row0, uint32_t row1, float *scratch) {
    const size_t four_floats = 4 * sq_pad(w->n_in);
    const uint32_t n_at_once = n_tokens == 1 ? row1 - row0 : ROWS_AT_ONCE;
    const bool interleaves = w->rows && w->cols16;
    for (uint32_t t = 0; interleaves && n_tokens - t >= 2; t += n_tokens - t < 4 ? n_tokens - t : 4) {
        kept_interleave(in.x + t * in.ldx, in.ldx, n_tokens - t, w->n_in, scratch + t / 4 * four_floats);
    }
    for (uint32_t row = row0, last; row < row1; row = last) {
        last = row1 - row < n_at_once ? row1 : row + n_at_once;
        for (uint32_t t = 0; t < n_tokens; t += 4) {
            uint32_t n = n_tokens - t < 4 ? n_tokens - t : 4;
            kept_products kept[4];
            for (uint32_t i = 0; i < n; i++) {
                kept[i].begin = kept[i].end = kept[i].n_made = kept[i].stop = 0;
            }
            if (interleaves && n > 1) {
                kept_fill4(kept, w, (uint32_t)w->rows[row], (uint32_t)w->rows[last],
                           scratch + t / 4 * four_floats);
            }
            gemv_four(gemvs, w, operand_from(in, t), n, y + t * ldy + (row - row0), ldy, row, last, kept);
        }
    }
}

SQ_INLINE void lut2_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens,
                        kept_task *kept, vf *sums) {
    lut_dot(2, w, in, row, n_rows, n_tokens, kept, sums);
}
SQ_INLINE void lut3_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens,
                        kept_task *kept, vf *sums) {
    lut_dot(3, w, in, row, n_rows, n_tokens, kept, sums);
}
SQ_INLINE void lut4_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens,
                        kept_task *kept, vf *sums) {
    lut_dot(4, w, in, row, n_rows, n_tokens, kept, sums);
}
SQ_INLINE void f32_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens,
                       kept_task *kept, vf *sums) {
    (void)kept;
    dense_dot(f32_load, f32_load_n, 4, w, in, row, n_rows, n_tokens, sums);
}
SQ_INLINE void f16_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens,
                       kept_task *kept, vf *sums) {
    (void)kept;
    dense_dot(f16_load, f16_load_n, 2, w, in, row, n_rows, n_tokens, sums);
}
SQ_INLINE void q8_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens, kept_task *kept,
                      vf *sums) {
    (void)kept;
    q8_0_dot(w, in, row, n_rows, n_tokens, sums);
}

ROW_GEMVS(lut2)
static void lut2_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                      uint32_t row0, uint32_t row1, void *scratch) {
    gemv(&lut2_rows, w, (operand){x, ldx, scratch, 0, 0}, n_tokens, y, ldy, row0, row1, scratch);
}
ROW_GEMVS(lut3)
static void lut3_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                      uint32_t row0, uint32_t row1, void *scratch) {
    gemv(&lut3_rows, w, (operand){x, ldx, scratch, 0, 0}, n_tokens, y, ldy, row0, row1, scratch);
}
ROW_GEMVS(lut4)
static void lut4_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                      uint32_t row0, uint32_t row1, void *scratch) {
    gemv(&lut4_rows, w, (operand){x, ldx, scratch, 0, 0}, n_tokens, y, ldy, row0, row1, scratch);
}
ROW_GEMVS(f32)
static void f32_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                     uint32_t row0, uint32_t row1, void *scratch) {
    gemv(&f32_rows, w, (operand){x, ldx, scratch, 0, 0}, n_tokens, y, ldy, row0, row1, scratch);
}
ROW_GEMVS(f16)
static void f16_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                     uint32_t row0, uint32_t row1, void *scratch) {
    gemv(&f16_rows, w, (operand){x, ldx, scratch, 0, 0}, n_tokens, y, ldy, row0, row1, scratch);
}
ROW_GEMVS(q8)
static void q8_0_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                      uint32_t row0, uint32_t row1, void *scratch) {
    gemv(&q8_rows, w, (operand){x, ldx, scratch, 0, 0}, n_tokens, y, ldy, row0, row1, scratch);
}

static void lut2_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    lut_expand(2, w, row, out);
}
static void lut3_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    lut_expand(3, w, row, out);
}
static void lut4_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    lut_expand(4, w, row, out);
}
static void f32_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    dense_expand(f32_load, f32_load_n, w, row, out);
}
static void f16_expand_row(const sq_matrix *w, uint32_t row, float *out) {
    dense_expand(f16_load, f16_load_n, w, row, out);
}

/* lutN: the products with tables of N bits. */
#define SIMD_TYPES(lut2, lut3, lut4)                                                                         \
    {                                                                                                        \
        [SQ_TYPE_F32] = {f32_gemv, f32_expand_row},    [SQ_TYPE_F16] = {f16_gemv, f16_expand_row},           \
        [SQ_TYPE_Q8_0] = {q8_0_gemv, q8_0_expand_row}, [SQ_TYPE_LUT2] = {lut2, lut2_expand_row},             \
        [SQ_TYPE_LUT3] = {lut3, lut3_expand_row},      [SQ_TYPE_LUT4] = {lut4, lut4_expand_row},             \
    }

static const sq_type_kernels type_kernels[SQ_N_TYPES] = SIMD_TYPES(lut2_gemv, lut3_gemv, lut4_gemv);

/* ---- many tokens ------------------------------------------------------------------------------ */

/* Floats of a row that one pass takes: 4 rows and GEMM_TOKENS tokens of them stay in the L1 cache. */
enum { GEMM_DEPTH = 1024 };

/* y[t · ldy + r] (+)= Σ_i weights[r · ldw + i] x[t · ldx + i] for r < 4, of which n_rows are stored. */
SQ_INLINE void gemm_tile(const float *weights, size_t ldw, const float *x, size_t ldx, size_t n, int n_tokens,
                         float *y, size_t ldy, uint32_t n_rows, bool first) {
    vf sums[GEMM_TOKENS][4];
    for (int t = 0; t < n_tokens; t++) {
        for (int r = 0; r < 4; r++) {
            sums[t][r] = vf_zero();
        }
    }
    for (size_t i = 0; i < n; i += W) {
        vf xs[GEMM_TOKENS];
        for (int t = 0; t < n_tokens; t++) {
            xs[t] = vf_load(x + t * ldx + i);
        }
        for (int r = 0; r < 4; r++) {
            vf ws = vf_load(weights + r * ldw + i);
            for (int t = 0; t < n_tokens; t++) {
                sums[t][r] = vf_fma(ws, xs[t], sums[t][r]);
            }
        }
    }
    for (int t = 0; t < n_tokens; t++, y += ldy) {
        v4 totals = vf_sums(sums[t]), before = {0};
        if (n_rows == 4) { /* a constant size: one load, one store */
            memcpy(&before, y, first ? 0 : sizeof before);
            totals += before;
            memcpy(y, &totals, sizeof totals);
        } else {
            memcpy(&before, y, first ? 0 : n_rows * sizeof *y);
            totals += before;
            memcpy(y, &totals, n_rows * sizeof *y);
        }
    }
}

static void gemm_tiles(const float *weights, size_t ldw, const float *x, size_t ldx, size_t n,
                       uint32_t n_tokens, float *y, size_t ldy, uint32_t n_rows, bool first) {
    for (uint32_t r = 0; r < n_rows; r += 4, weights += 4 * ldw, y += 4) {
        uint32_t stored = n_rows - r < 4 ? n_rows - r : 4;
        switch (n_tokens) {
#define TILE(t)                                                                                              \
    case t:                                                                                                  \
        gemm_tile(weights, ldw, x, ldx, n, t, y, ldy, stored, first);                                        \
        break
            TILE(1);
            TILE(2);
            TILE(3);
#if GEMM_TOKENS > 3
            TILE(4);
            TILE(5);
            TILE(6);
#endif
#undef TILE
        }
    }
}

static void gemm(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens, float *y, size_t ldy,
                 uint32_t row0, uint32_t row1, float *scratch) {
    const size_t ldw = sq_pad(w->n_in);
    for (uint32_t row = row0; row < row1; row += SQ_GEMM_ROWS) {
        uint32_t n_rows = row1 - row < SQ_GEMM_ROWS ? row1 - row : SQ_GEMM_ROWS;
        for (uint32_t r = 0; r < n_rows; r++) {
            type_kernels[w->type].expand_row(w, row + r, scratch + r * ldw);
        }
        uint32_t n_missing = -n_rows % 4; /* of the last register tile; its sums are not stored */
        memset(scratch + n_rows * ldw, 0, n_missing * ldw * sizeof *scratch);
        for (size_t i = 0; i < ldw; i += GEMM_DEPTH) {
            size_t depth = ldw - i < GEMM_DEPTH ? ldw - i : GEMM_DEPTH;
            for (uint32_t t = 0; t < n_tokens; t += GEMM_TOKENS) {
                uint32_t tokens = n_tokens - t < GEMM_TOKENS ? n_tokens - t : GEMM_TOKENS;
                gemm_tiles(scratch + i, ldw, x + t * ldx + i, ldx, depth, tokens, y + t * ldy + (row - row0),
                           ldy, n_rows, i == 0);
            }
        }
    }
}

#endif
