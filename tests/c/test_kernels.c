/* Matrix kernels of every instruction set this machine has, against sums in double precision over
 * matrices that this file packs by itself, from docs/FORMAT.md. */
#include "scalar.h"

#include "check.h"
#include "guard.h"

static const sq_kernels *sets[7];
static int n_sets;

static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint32_t random_below(uint32_t n) {
    return (uint32_t)((check_random(&seed) >> 32) % n);
}

/* About normal, so that products cancel as they do in a model. */
static float random_float(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (float)random_below(1 << 16) / 65536 - 0.5f;
    }
    return sum;
}

/* ---- a matrix and what it means ---------------------------------------------------------------- */

typedef struct example {
    sq_matrix m;
    float *weights; /* [n_out, n_in] */
    float *kept;    /* [n_out, n_in]: the sparse part of them */
    guarded data, lut, lut_scale, rows, cols, vals;
} example;

static void put_bits(uint8_t *row, size_t dword, uint32_t shift, uint32_t value) {
    for (uint32_t b = 0; b < 32; b++) {
        if (value >> b & 1) {
            row[4 * dword + (shift + b) / 8] |= (uint8_t)(1 << (shift + b) % 8);
        }
    }
}

/* 2.1: weight D·j + i of a block is nibble j of dword i. */
static void pack4(uint8_t *row, uint32_t n_in, uint32_t k, uint32_t code) {
    uint32_t block = k / 128, left = n_in - 128 * block, d = left >= 128 ? 16 : (left + 7) / 8;
    put_bits(row, 16 * block + k % 128 % d, 4 * (k % 128 / d), code);
}

/* 2.2: weight D·c + i of a block, c < 24 in the planes' nibbles, else in their top bits. */
static void pack3(uint8_t *row, uint32_t n_in, uint32_t k, uint32_t code) {
    uint32_t block = k / 512, left = n_in - 512 * block, d = left >= 512 ? 16 : (left + 31) / 32;
    uint32_t c = k % 512 / d, i = k % 512 % d;
    size_t start = 48 * (size_t)block;
    if (c < 24) {
        put_bits(row, start + c / 8 * d + i, 4 * (c % 8), code);
        return;
    }
    for (uint32_t p = 0; p < 3; p++) {
        put_bits(row, start + p * d + i, 4 * (c - 24) + 3, code >> p & 1);
    }
}

/* 2.3: weight D·j + i of a block is pair of bits j of dword i. */
static void pack2(uint8_t *row, uint32_t n_in, uint32_t k, uint32_t code) {
    uint32_t block = k / 256, left = n_in - 256 * block, d = left >= 256 ? 16 : (left + 15) / 16;
    put_bits(row, 16 * block + k % 256 % d, 2 * (k % 256 / d), code);
}

static void fill_table(example *e, uint32_t row, uint32_t bits, float *table) {
    uint16_t *lut = (uint16_t *)e->lut.data + ((size_t)row << bits);
    for (uint32_t i = 0; i < 1u << bits; i++) {
        lut[i] = sq_f32_to_f16(random_float() / 8);
        table[i] = sq_f16_to_f32(lut[i]);
    }
}

/* By turns a row's scale is positive, 0, negative, and so small that entries are subnormal. */
static void fill_table8(example *e, uint32_t row, uint32_t bits, float *table) {
    static const float sizes[] = {0x1p-10f, 0, -0x1p-10f, 0x1p-21f};
    int8_t *lut = (int8_t *)e->lut.data + ((size_t)row << bits);
    uint16_t scale = sq_f32_to_f16((1 + random_float() / 4) * sizes[row % 4]);
    ((uint16_t *)e->lut_scale.data)[row] = scale;
    for (uint32_t i = 0; i < 1u << bits; i++) {
        lut[i] = (int8_t)((int)random_below(256) - 128);
        table[i] = sq_f16_to_f32(scale) * (float)lut[i];
    }
}

static void fill_lut(example *e, uint32_t row, uint32_t bits) {
    static void (*const packs[])(uint8_t *, uint32_t, uint32_t,
                                 uint32_t) = {[2] = pack2, [3] = pack3, [4] = pack4};
    float table[16];
    (e->m.lut8 ? fill_table8 : fill_table)(e, row, bits, table);
    for (uint32_t k = 0; k < e->m.n_in; k++) {
        uint32_t code = random_below(1u << bits);
        packs[bits]((uint8_t *)e->data.data + row * e->m.row_bytes, e->m.n_in, k, code);
        e->weights[(size_t)row * e->m.n_in + k] = table[code];
    }
}

static void fill_plain(example *e, uint32_t row) {
    uint8_t *data = (uint8_t *)e->data.data + row * e->m.row_bytes;
    float scale = 0;
    for (uint32_t k = 0; k < e->m.n_in; k++) {
        float weight = random_float() / 8;
        uint16_t half = sq_f32_to_f16(weight);
        if (e->m.type == SQ_TYPE_F32) {
            memcpy(data + 4 * (size_t)k, &weight, 4);
        } else if (e->m.type == SQ_TYPE_F16) {
            memcpy(data + 2 * (size_t)k, &half, 2);
            weight = sq_f16_to_f32(half);
        } else {
            if (k % 32 == 0) {
                half = sq_f32_to_f16(fabsf(weight) / 64 + 0x1p-10f);
                memcpy(data + k / 32 * 34, &half, 2);
                scale = sq_f16_to_f32(half);
            }
            int8_t q = (int8_t)((int)random_below(256) - 128);
            memcpy(data + k / 32 * 34 + 2 + k % 32, &q, 1);
            weight = scale * (float)q;
        }
        e->weights[(size_t)row * e->m.n_in + k] = weight;
    }
}

/* Rows keep 0, 3, 17 and 40 weights by turns, wide rows 1500 for 40, the last column among them; of each four
 * rows the first, whose scale fill_table8 makes an ordinary one, keeps another number than four rows before.
 */
static void fill_sparse(example *e) {
    sq_matrix *m = &e->m;
    const uint32_t counts[] = {0, 3, 17, m->n_in < 2048 ? 40 : 1500};
    int32_t n = 0;
    e->rows = guard_alloc(4 * (size_t)(m->n_out + 1));
    for (uint32_t r = 0; r < m->n_out; r++) {
        ((int32_t *)e->rows.data)[r] = n;
        uint32_t count = counts[(r + 1 + (r % 4 == 0 ? r / 4 : 0)) % 4];
        n += (int32_t)(count < m->n_in ? count : m->n_in);
    }
    ((int32_t *)e->rows.data)[m->n_out] = n;
    m->rows = e->rows.data;
    m->n_sparse = (uint32_t)n;
    bool wide = m->n_in > 65536;
    e->cols = guard_alloc((wide ? 4 : 2) * (size_t)n);
    e->vals = guard_alloc(2 * (size_t)n);
    m->vals = e->vals.data;
    m->cols16 = wide ? NULL : e->cols.data;
    m->cols32 = wide ? e->cols.data : NULL;
    for (uint32_t r = 0; r < m->n_out; r++) {
        int32_t begin = m->rows[r], count = m->rows[r + 1] - begin;
        for (int32_t i = 0; i < count; i++) {
            uint32_t col = (uint32_t)((uint64_t)(i + 1) * m->n_in / (uint32_t)count - 1);
            uint16_t val = sq_f32_to_f16(random_float());
            if (wide) {
                ((int32_t *)e->cols.data)[begin + i] = (int32_t)col;
            } else {
                ((uint16_t *)e->cols.data)[begin + i] = (uint16_t)col;
            }
            ((uint16_t *)e->vals.data)[begin + i] = val;
            e->kept[(size_t)r * m->n_in + col] = sq_f16_to_f32(val);
            e->weights[(size_t)r * m->n_in + col] += sq_f16_to_f32(val);
        }
    }
}

/* Room for tables of f16 or of 8 bits. */
static void tables_create(example *e, uint32_t bits, bool narrow) {
    size_t n = (size_t)e->m.n_out << bits;
    e->lut = guard_alloc(narrow ? n : 2 * n);
    if (narrow) {
        e->lut_scale = guard_alloc(2 * (size_t)e->m.n_out);
        e->m.lut8 = e->lut.data;
        e->m.lut_scale = e->lut_scale.data;
    } else {
        e->m.lut = e->lut.data;
    }
}

static example example_create(sq_type type, bool narrow, uint32_t n_out, uint32_t n_in, bool sparse) {
    uint32_t bits = sq_types[type].bits;
    example e = {.m = {.type = type, .n_out = n_out, .n_in = n_in}};
    snprintf(e.m.name, sizeof e.m.name, "%s%s", sq_types[type].name, narrow ? ", 8-bit tables" : "");
    e.m.row_bytes = sq_types[type].row_bytes(n_in);
    e.weights = malloc(sizeof *e.weights * n_out * n_in);
    e.kept = calloc((size_t)n_out * n_in, sizeof *e.kept);
    e.data = guard_alloc(n_out * e.m.row_bytes);
    e.m.data = e.data.data;
    if (bits) {
        tables_create(&e, bits, narrow);
    }
    for (uint32_t r = 0; r < n_out; r++) {
        if (bits) {
            fill_lut(&e, r, bits);
        } else {
            fill_plain(&e, r);
        }
    }
    if (sparse) {
        fill_sparse(&e);
    }
    return e;
}

static void example_free(example *e) {
    guard_free(e->data);
    if (e->m.lut || e->m.lut8) {
        guard_free(e->lut);
    }
    if (e->m.lut8) {
        guard_free(e->lut_scale);
    }
    if (e->m.rows) {
        guard_free(e->rows);
        guard_free(e->cols);
        guard_free(e->vals);
    }
    free(e->weights);
    free(e->kept);
}

/* ---- checks ------------------------------------------------------------------------------------ */

/* [n_tokens, ldx], zero past n_in, up to an unreadable page. */
static guarded activations(uint32_t n_tokens, uint32_t n_in, size_t ldx) {
    guarded x = guard_alloc(sizeof(float) * ((n_tokens - 1) * ldx + sq_pad(n_in)));
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t i = 0; i < n_in; i++) {
            ((float *)x.data)[t * ldx + i] = random_float();
        }
    }
    return x;
}

/* The sum in double, and how far f32 sums of such terms may be off it. */
static double dot(const example *e, uint32_t row, const float *x, double *tolerance) {
    const float *weights = e->weights + (size_t)row * e->m.n_in, *kept = e->kept + (size_t)row * e->m.n_in;
    double sum = 0, magnitude = 0;
    for (uint32_t i = 0; i < e->m.n_in; i++) {
        sum += (double)weights[i] * x[i];
        magnitude += (fabs((double)weights[i] - kept[i]) + fabs(kept[i])) * fabs(x[i]);
    }
    *tolerance = 8 * 0x1p-24 * magnitude; /* one wrong weight in n is about 1 / n */
    return sum;
}

static void check_expand(const sq_kernels *k, const example *e) {
    size_t n_pad = sq_pad(e->m.n_in);
    guarded out = guard_alloc(n_pad * sizeof(float));
    for (uint32_t r = 0; r < e->m.n_out; r++) {
        memset(out.data, 0xff, n_pad * sizeof(float));
        k->types[e->m.type].expand_row(&e->m, r, out.data);
        const float *found = out.data, *expected = e->weights + (size_t)r * e->m.n_in;
        bool same = true;
        for (uint32_t i = 0; i < n_pad; i++) {
            same = same && found[i] == (i < e->m.n_in ? expected[i] : 0);
        }
        CHECK_SAY(same, "%s %s: row %u of [%u, %u] does not decode exactly", k->name, e->m.name, r,
                  e->m.n_out, e->m.n_in);
    }
    guard_free(out);
}

static void check_near_dot(const sq_kernels *k, const example *e, uint32_t r, uint32_t n_tokens,
                           const float *x, float found) {
    double tolerance, expected = dot(e, r, x, &tolerance);
    CHECK_SAY(fabs(found - expected) <= tolerance,
              "%s %s: row %u of [%u, %u]%s, %u tokens: found %.9g, expected %.9g within %g", k->name,
              e->m.name, r, e->m.n_out, e->m.n_in, e->m.rows ? " with sparse" : "", n_tokens, found, expected,
              tolerance);
}

static void check_gemv(const sq_kernels *k, const example *e, uint32_t n_tokens) {
    uint32_t n_out = e->m.n_out, n_in = e->m.n_in;
    size_t ldx = sq_pad(n_in) + 32, ldy = n_out + 3, n_y = (n_tokens - 1) * ldy + n_out;
    guarded x = activations(n_tokens, n_in, ldx), y = guard_alloc(n_y * sizeof(float));
    float *whole = y.data, untouched;
    void *scratch = aligned_alloc(64, sq_gemv_scratch_bytes(n_in, n_tokens));
    memset(whole, 0x7f, n_y * sizeof(float));
    memset(&untouched, 0x7f, sizeof untouched);
    k->types[e->m.type].gemv(&e->m, x.data, ldx, n_tokens, whole, ldy, 0, n_out, scratch);
    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *xt = (float *)x.data + t * ldx, *yt = whole + t * ldy;
        for (uint32_t r = 0; r < n_out; r++) {
            check_near_dot(k, e, r, n_tokens, xt, yt[r]);
        }
        for (uint32_t r = n_out; r < ldy && t + 1 < n_tokens; r++) {
            CHECK_SAY(!memcmp(&yt[r], &untouched, sizeof untouched),
                      "%s %s: [%u, %u], %u tokens: wrote past row %u", k->name, e->m.name, n_out, n_in,
                      n_tokens, n_out);
        }
        for (uint32_t r0 = 0, r1; r0 < n_out; r0 = r1) { /* any split of rows and tokens gives the same */
            r1 = r0 + 1 + random_below(n_out - r0 < 9 ? n_out - r0 : 9);
            guarded part = guard_alloc((r1 - r0) * sizeof(float));
#if defined(__x86_64__)
            sq_cpu_streams_into_l1 = random_below(2); /* so does either cache that codes are asked into */
#endif
            k->types[e->m.type].gemv(&e->m, xt, ldx, 1, part.data, 0, r0, r1, scratch);
            CHECK_SAY(!memcmp(part.data, yt + r0, (r1 - r0) * sizeof(float)),
                      "%s %s: rows %u to %u of [%u, %u], token %u of %u differ when computed alone", k->name,
                      e->m.name, r0, r1, n_out, n_in, t, n_tokens);
            guard_free(part);
        }
    }
    free(scratch);
    guard_free(x);
    guard_free(y);
}

static void check_gemm(const sq_kernels *k, const example *e, uint32_t n_tokens) {
    uint32_t n_out = e->m.n_out, n_in = e->m.n_in, split = random_below(n_out + 1), tokens = n_tokens / 2;
    size_t ldx = sq_pad(n_in) + 32, ldy = n_out + 3, n_y = (n_tokens - 1) * ldy + n_out;
    guarded x = activations(n_tokens, n_in, ldx), whole = guard_alloc(n_y * sizeof(float)),
            parts = guard_alloc(n_y * sizeof(float));
    float *scratch = aligned_alloc(64, SQ_GEMM_ROWS * sq_pad(n_in) * sizeof(float));
    float *y = whole.data, *z = parts.data;
    memset(y, 0x7f, n_y * sizeof(float));
    memset(z, 0x7f, n_y * sizeof(float));
    k->gemm(&e->m, x.data, ldx, n_tokens, y, ldy, 0, n_out, scratch);
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t r = 0; r < n_out; r++) {
            check_near_dot(k, e, r, n_tokens, (float *)x.data + t * ldx, y[t * ldy + r]);
        }
    }
    /* Any split of rows and of tokens gives the same, and nothing between the rows of y is touched. */
    k->gemm(&e->m, x.data, ldx, n_tokens - tokens, z, ldy, 0, split, scratch);
    k->gemm(&e->m, x.data, ldx, n_tokens - tokens, z + split, ldy, split, n_out, scratch);
    if (tokens) {
        k->gemm(&e->m, (float *)x.data + (n_tokens - tokens) * ldx, ldx, tokens,
                z + (n_tokens - tokens) * ldy, ldy, 0, n_out, scratch);
    }
    CHECK_SAY(!memcmp(y, z, n_y * sizeof(float)), "%s %s: [%u, %u], %u tokens: parts differ from the whole",
              k->name, e->m.name, n_out, n_in, n_tokens);
    uint32_t untouched = 0;
    memset(&untouched, 0x7f, sizeof untouched);
    bool kept = true;
    for (uint32_t t = 0; t + 1 < n_tokens; t++) {
        for (uint32_t r = n_out; r < ldy; r++) {
            kept = kept && !memcmp(&y[t * ldy + r], &untouched, sizeof untouched);
        }
    }
    CHECK_SAY(kept, "%s %s: [%u, %u], %u tokens: wrote past row %u", k->name, e->m.name, n_out, n_in,
              n_tokens, n_out);
    free(scratch);
    guard_free(x);
    guard_free(whole);
    guard_free(parts);
}

/* Eight standard deviations of a sum in fixed point: a product of rounded factors is off by s_w q_x and
 * s_x q_w times errors that are uniform between -1/2 and 1/2, which over a block is |w| |x| / 32767 times
 * the root of 1/12 + 1/12. Where a table is of 8 bits, of the weights only kept ones are rounded, to
 * multiples of scale / m, which leaves room for the largest codes and the kept weights of any block. */
static double fixed_tolerance(const example *e, uint32_t row, const float *x) {
    const float *weights = e->weights + (size_t)row * e->m.n_in, *kept = e->kept + (size_t)row * e->m.n_in;
    double variance = 0, kept_x2 = 0, most_kept = 0, widest = 0;
    for (uint32_t i = 0; i < e->m.n_in;) {
        double w2 = 0, x2 = 0, kept2 = 0, n = 0;
        for (uint32_t end = i + SQ_FIXED_BLOCK; i < e->m.n_in && i < end; i++, n++) {
            w2 += (double)weights[i] * weights[i];
            x2 += (double)x[i] * x[i];
            kept2 += (double)kept[i] * kept[i];
            kept_x2 += kept[i] != 0 ? (double)x[i] * x[i] : 0;
        }
        variance += w2 * x2 / 12 / 32767 / 32767;
        most_kept = fmax(most_kept, sqrt(kept2));
        widest = fmax(widest, n);
    }
    double unit = e->m.lut8 ? sq_f16_to_f32(e->m.lut_scale[row]) : 0,
           norm = 128 * unit * sqrt(widest) + most_kept;
    if (unit == 0 || norm > 32767 * unit) {
        return 8 * sqrt(2 * variance);
    }
    while (norm <= 32767 * unit / 2) {
        unit /= 2;
    }
    variance += unit * unit * kept_x2 / 12;
    return 8 * sqrt(variance);
}

/* n_tokens of x, packed group by group. */
static uint8_t *fixed_packed(const sq_kernels *k, const float *x, size_t ldx, uint32_t n_tokens,
                             uint32_t n_in) {
    uint32_t n_groups = (n_tokens + SQ_FIXED_TOKENS - 1) / SQ_FIXED_TOKENS;
    size_t group_bytes = sq_fixed_group_bytes(n_in);
    uint8_t *packed = aligned_alloc(64, n_groups * group_bytes);
    memset(packed, 0xff, n_groups * group_bytes);
    for (uint32_t g = 0; g < n_groups; g++) {
        uint32_t first = g * SQ_FIXED_TOKENS, left = n_tokens - first;
        k->fixed_pack(x + first * ldx, ldx, left < SQ_FIXED_TOKENS ? left : SQ_FIXED_TOKENS, n_in,
                      packed + g * group_bytes);
    }
    return packed;
}

static void check_fixed(const sq_kernels *k, const example *e, uint32_t n_tokens) {
    uint32_t n_out = e->m.n_out, n_in = e->m.n_in, split = random_below(n_out + 1);
    uint32_t head = random_below(n_tokens) + 1; /* tokens that are multiplied without those behind them */
    size_t ldx = sq_pad(n_in) + 32, ldy = n_out + 3, n_y = (n_tokens - 1) * ldy + n_out;
    guarded x = activations(n_tokens, n_in, ldx), whole = guard_alloc(n_y * sizeof(float)),
            parts = guard_alloc(n_y * sizeof(float));
    uint8_t *scratch = aligned_alloc(64, (sq_fixed_scratch_bytes(n_in) + 63) / 64 * 64);
    uint8_t *packed = fixed_packed(k, x.data, ldx, n_tokens, n_in);
    float *y = whole.data, *z = parts.data;
    memset(y, 0x7f, n_y * sizeof(float));
    memset(z, 0x7f, n_y * sizeof(float));
    k->fixed_gemm(&e->m, packed, n_tokens, y, ldy, 0, n_out, scratch);
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t r = 0; r < n_out; r++) {
            const float *xt = (float *)x.data + t * ldx;
            double tolerance, expected = dot(e, r, xt, &tolerance), found = y[t * ldy + r];
            tolerance += fixed_tolerance(e, r, xt);
            CHECK_SAY(fabs(found - expected) <= tolerance,
                      "%s %s: row %u of [%u, %u]%s, token %u of %u: found %.9g, expected %.9g within %g",
                      k->name, e->m.name, r, n_out, n_in, e->m.rows ? " with sparse" : "", t, n_tokens, found,
                      expected, tolerance);
        }
    }
    /* Any split of rows gives the same, and nothing between the rows of y is touched. */
    k->fixed_gemm(&e->m, packed, n_tokens, z, ldy, 0, split, scratch);
    k->fixed_gemm(&e->m, packed, n_tokens, z + split, ldy, split, n_out, scratch);
    CHECK_SAY(!memcmp(y, z, n_y * sizeof(float)), "%s %s: [%u, %u], %u tokens: parts differ from the whole",
              k->name, e->m.name, n_out, n_in, n_tokens);
    /* So does a token without those behind it. */
    free(packed);
    packed = fixed_packed(k, x.data, ldx, head, n_in);
    k->fixed_gemm(&e->m, packed, head, z, ldy, 0, n_out, scratch);
    CHECK_SAY(!memcmp(y, z, n_y * sizeof(float)), "%s %s: [%u, %u], %u tokens of %u differ when alone",
              k->name, e->m.name, n_out, n_in, head, n_tokens);
    free(packed);
    free(scratch);
    guard_free(x);
    guard_free(whole);
    guard_free(parts);
}

static void check_example(const example *e, const uint32_t *token_counts, int n_counts) {
    for (int s = 0; s < n_sets; s++) {
        check_expand(sets[s], e);
        check_gemv(sets[s], e, 1);
        for (int i = 0; i < n_counts; i++) {
            check_gemv(sets[s], e, token_counts[i]);
            check_gemm(sets[s], e, token_counts[i]);
            if (sets[s]->fixed_gemm) {
                check_fixed(sets[s], e, token_counts[i]);
            }
        }
    }
}

static void check_matrix(uint32_t n_out, uint32_t n_in, const uint32_t *token_counts, int n_counts) {
    for (sq_type type = 0; type < SQ_N_TYPES; type++) {
        if (!sq_types[type].row_bytes(n_in)) {
            continue;
        }
        for (int form = 0; form < (sq_types[type].bits ? 4 : 2); form++) {
            example e = example_create(type, form / 2, n_out, n_in, form % 2);
            check_example(&e, token_counts, n_counts);
            example_free(&e);
        }
    }
}

/* ---- tests ------------------------------------------------------------------------------------- */

static void test_row_bytes(void) {
    CHECK_EQ(sq_types[SQ_TYPE_LUT4].row_bytes(44), 24);
    CHECK_EQ(sq_types[SQ_TYPE_LUT4].row_bytes(576), 288);
    CHECK_EQ(sq_types[SQ_TYPE_LUT4].row_bytes(1), 4);
    CHECK_EQ(sq_types[SQ_TYPE_LUT3].row_bytes(576), 216);
    CHECK_EQ(sq_types[SQ_TYPE_LUT3].row_bytes(1), 12);
    CHECK_EQ(sq_types[SQ_TYPE_LUT2].row_bytes(576), 144);
    CHECK_EQ(sq_types[SQ_TYPE_LUT2].row_bytes(1), 4);
    CHECK_EQ(sq_types[SQ_TYPE_LUT2].row_bytes(273), 72);
    CHECK_EQ(sq_types[SQ_TYPE_Q8_0].row_bytes(576), 612);
    CHECK_EQ(sq_types[SQ_TYPE_Q8_0].row_bytes(44), 0);
    CHECK_EQ(sq_types[SQ_TYPE_F16].row_bytes(7), 14);
    CHECK_EQ(sq_types[SQ_TYPE_F16].row_bytes(SIZE_MAX), 0);
    CHECK_EQ(sq_types[SQ_TYPE_F32].row_bytes(7), 28);
}

static void test_choose(void) {
    const sq_kernels *k;
    sq_error error;
    CHECK_OK(sq_kernels_choose("scalar", &k, &error), &error);
    CHECK(k == &sq_kernels_scalar);
    CHECK_OK(sq_kernels_choose(NULL, &k, &error), &error);
    CHECK_OK(sq_kernels_choose("auto", &k, &error), &error);
    CHECK_FAILS(sq_kernels_choose("mmx", &k, &error), &error, SQ_ERROR_UNSUPPORTED, "mmx");
    CHECK(k == NULL);
}

/* The example of docs/FORMAT.md 2.4, byte for byte: weight 20 is bits 12 … 15 of bytes 8 … 11. */
static void test_format_example(void) {
    uint8_t codes[24] = {0};
    uint16_t lut[16];
    for (int i = 0; i < 16; i++) {
        lut[i] = sq_f32_to_f16((float)i);
    }
    codes[9] = 0xd0;
    sq_matrix m = {.type = SQ_TYPE_LUT4, .n_out = 1, .n_in = 44, .row_bytes = 24, .data = codes, .lut = lut};
    for (int s = 0; s < n_sets; s++) {
        float out[64];
        sets[s]->types[SQ_TYPE_LUT4].expand_row(&m, 0, out);
        for (int i = 0; i < 64; i++) {
            CHECK_EQ((int)out[i], i == 20 ? 13 : 0);
        }
    }
}

/* 8-bit tables with every finite scale there is. */
static void test_scales(void) {
    static const int8_t lut[16] = {-128, -127, -100, -77, -64, -33, -3, -1, 0, 1, 2, 5, 31, 85, 99, 127};
    uint8_t data[8] = {0};
    uint16_t scale;
    sq_matrix m = {.type = SQ_TYPE_LUT4, .n_out = 1, .n_in = 16, .row_bytes = sizeof data, .data = data};
    m.lut8 = lut;
    m.lut_scale = &scale;
    for (uint32_t k = 0; k < 16; k++) {
        pack4(data, 16, k, k);
    }
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        scale = (uint16_t)bits;
        for (int s = 0; s < n_sets && (bits & 0x7c00) != 0x7c00; s++) {
            float out[32];
            bool same = true;
            sets[s]->types[SQ_TYPE_LUT4].expand_row(&m, 0, out);
            for (uint32_t k = 0; k < 16; k++) {
                same = same && out[k] == (double)sq_f16_to_f32(scale) * lut[k];
            }
            CHECK_SAY(same, "%s: scale %04x: other entries than the definition's", sets[s]->name, bits);
        }
    }
}

static void test_inputs(void) {
    static const uint32_t n_ins[] = {1, 7, 8, 31, 32, 44, 64, 100, 128, 172, 512, 576, 577, 1000, 1536};
    static const uint32_t tokens[] = {1, 7};
    for (size_t i = 0; i < sizeof n_ins / sizeof *n_ins; i++) {
        check_matrix(21, n_ins[i], tokens, 2);
    }
    check_matrix(6, 2048, tokens, 2);
    check_matrix(5, 11008, tokens, 2);
}

/* Every width of a last block: D = 1 … 16. */
static void test_last_blocks(void) {
    for (uint32_t n_in = 3; n_in < 672; n_in += 13) {
        check_matrix(5, n_in, NULL, 0);
    }
}

static void test_outputs(void) {
    static const uint32_t n_outs[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 100, 577, 2048};
    static const uint32_t tokens[] = {2};
    for (size_t i = 0; i < sizeof n_outs / sizeof *n_outs; i++) {
        check_matrix(n_outs[i], 44, tokens, 1);
        check_matrix(n_outs[i], 32, tokens, 1);
    }
}

static void test_tokens(void) {
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 31, 48, 64, 100};
    check_matrix(19, 96, tokens, sizeof tokens / sizeof *tokens);
    check_matrix(7, 1100, tokens, sizeof tokens / sizeof *tokens);
}

static void test_wide_columns(void) {
    static const uint32_t tokens[] = {2};
    check_matrix(3, 65536 + 96, tokens, 1);
}

/* A kept weight that is not a number spoils its row of a prompt, and no other, whatever else the row keeps.
 */
static void test_not_a_number(void) {
    enum { N_IN = 1000, N_OUT = 5, ROW = 4 };
    for (sq_type type = SQ_TYPE_LUT2; type <= SQ_TYPE_LUT4; type++) {
        example e = example_create(type, true, N_OUT, N_IN, true);
        guarded x = activations(1, N_IN, N_IN + 32);
        ((uint16_t *)e.vals.data)[e.m.rows[ROW]] = 0x7e00;
        for (int s = 0; s < n_sets; s++) {
            if (!sets[s]->fixed_gemm) {
                continue;
            }
            uint8_t *packed = fixed_packed(sets[s], x.data, N_IN + 32, 1, N_IN);
            void *scratch = aligned_alloc(64, (sq_fixed_scratch_bytes(N_IN) + 63) / 64 * 64);
            float y[N_OUT];
            sets[s]->fixed_gemm(&e.m, packed, 1, y, N_OUT, 0, N_OUT, scratch);
            for (int r = 0; r < N_OUT; r++) {
                CHECK_SAY(isnan(y[r]) == (r == ROW), "%s %s: row %d is %g", sets[s]->name, e.m.name, r, y[r]);
            }
            free(packed);
            free(scratch);
        }
        guard_free(x);
        example_free(&e);
    }
}

/* Activations of which one is much larger than the others: an error of max |x| 2^-23 in each is allowed. */
static void test_large_activation(void) {
    enum { N_IN = 1000, N_OUT = 5 };
    for (sq_type type = SQ_TYPE_LUT2; type <= SQ_TYPE_LUT4; type++) {
        example e = example_create(type, true, N_OUT, N_IN, true);
        guarded x = activations(1, N_IN, N_IN);
        void *scratch = aligned_alloc(64, sq_gemv_scratch_bytes(N_IN, 1));
        float *large = (float *)x.data + 777, y[N_OUT];
        for (int s = 0; s < n_sets; s++) {
            *large = 30000;
            sets[s]->types[type].gemv(&e.m, x.data, N_IN, 1, y, N_OUT, 0, N_OUT, scratch);
            for (uint32_t r = 0; r < N_OUT; r++) {
                double tolerance, expected = dot(&e, r, x.data, &tolerance), weights = 0;
                for (uint32_t i = 0; i < N_IN; i++) {
                    weights += fabs((double)e.weights[r * N_IN + i]);
                }
                tolerance += (double)*large * 0x1p-23 * weights;
                CHECK_SAY(fabs(y[r] - expected) <= tolerance,
                          "%s %s: row %u: found %.9g, expected %.9g within %g", sets[s]->name, e.m.name, r,
                          y[r], expected, tolerance);
            }
            *large = s % 2 ? NAN : INFINITY;
            sets[s]->types[type].gemv(&e.m, x.data, N_IN, 1, y, N_OUT, 0, N_OUT, scratch);
            for (uint32_t r = 0; r < N_OUT; r++) {
                CHECK_SAY(!isfinite(y[r]), "%s %s: row %u hides what is not finite", sets[s]->name, e.m.name,
                          r);
            }
        }
        free(scratch);
        guard_free(x);
        example_free(&e);
    }
}

int main(void) {
    static const char *const names[] = {"scalar",     "avx2", "avxvnni", "avx512",
                                        "avx512vnni", "neon", "dotprod"};
    for (int i = 0; i < 7; i++) {
        if (!sq_kernels_choose(names[i], &sets[n_sets], NULL)) {
            printf("instruction set: %s\n", sets[n_sets++]->name);
        }
    }
    RUN(test_row_bytes);
    RUN(test_choose);
    RUN(test_format_example);
    RUN(test_scales);
    RUN(test_inputs);
    RUN(test_last_blocks);
    RUN(test_outputs);
    RUN(test_tokens);
    RUN(test_wide_columns);
    RUN(test_not_a_number);
    RUN(test_large_activation);
    return check_report();
}
