/* Products of rows whose tables are of 8 bits (docs/FORMAT.md section 2) with one or few tokens, in bytes:
 * what x86_avx512.c includes after simd_matrix.h. An entry is an integer times the row's scale, so a token's
 * activations are made integers too, of 24 bits, whose digits to the base of 256 are bytes:
 *
 *     x[i] ≈ s q[i],  s = max |x| / LARGEST,  q = d0 + 256 d1 + 65536 d2,  -128 <= d <= 127
 *     y = s · scale · Σ_k 256^k Σ_i code[i] d_k[i]
 *
 * The sums are exact: y differs from that of x as it is by at most max |x| Σ |w| / 2^23, as sums in f32 do.
 * An instruction multiplies four bytes where FMA multiplies one float, and one lookup finds four times as
 * many weights.
 *
 * Beyond the list of simd_matrix.h it takes
 *
 *   vi                    vectors of W int32_t
 *   vi_nearest            f32 to int32_t, rounded to nearest
 *   bytes_table           a row's table of codes, each plus BYTES_OFFSET
 *   bytes_load bytes_at   makes one; 4 W lookups by the low nibbles of bytes
 *   bytes_dot             sums + the products of four such bytes and four i8 side by side */
#ifndef SQ_SIMD_DIGITS_H
#define SQ_SIMD_DIGITS_H

#include "simd_matrix.h"

enum { N_DIGITS = 3, DIGITS_LARGEST = 0x7f7f00, DIGITS_BIAS = 0x808080 };

/* A token's activations, followed by its digits in the order of the lookups: for each vector of 16 dwords of
 * codes (those of a plane; in a block of less than 128 weights of 3 bits, of its four planes) for each field
 * f of a byte, for each digit k, byte 4 i + b holds d_k of the weight of byte b's field f of dword i. */
typedef struct digits {
    vi start[N_DIGITS]; /* -BYTES_OFFSET Σ d_k over the lanes */
    float scale;        /* s; a NaN where x is not finite */
    _Alignas(64) int8_t bytes[][N_DIGITS][4 * BLOCK_DWORDS];
} digits;

/* Fields of a code in a byte. */
SQ_INLINE uint32_t n_byte_fields(int bits) {
    return n_fields(bits) / 4;
}

/* One vector of dwords, from x in the order of its positions 16 j + i. */
SQ_INLINE void digits_pack_vector(int bits, const float *x, vf inverse, digits *d, size_t vector) {
    for (uint32_t f = 0; f < n_byte_fields(bits); f++) {
        int8_t (*out)[4 * BLOCK_DWORDS] = d->bytes[vector * n_byte_fields(bits) + f];
        for (int h = 0; h < BLOCK_DWORDS / W; h++) {
            vu q[4];
            for (int b = 0; b < 4; b++) {
                const float *from = x + BLOCK_DWORDS * (n_byte_fields(bits) * b + f) + W * h;
                q[b] = (vu)vi_nearest(vf_load(from) * inverse) + DIGITS_BIAS;
            }
            vu even01 = (q[0] & 0xff00ffu) | (q[1] & 0xff00ffu) << 8;
            vu even23 = (q[2] & 0xff00ffu) | (q[3] & 0xff00ffu) << 8;
            vu packed[N_DIGITS] = {
                (even01 & 0xffffu) | even23 << 16,
                (q[0] >> 8 & 0xffu) | (q[1] & 0xff00u) | (q[2] & 0xff00u) << 8 | (q[3] & 0xff00u) << 16,
                even01 >> 16 | (even23 & 0xffff0000u),
            };
            for (int k = 0; k < N_DIGITS; k++) {
                packed[k] ^= 0x80808080u;
                memcpy(out[k] + 4 * W * h, &packed[k], sizeof packed[k]);
                d->start[k] = bytes_dot(d->start[k], (vu){0} + BYTES_OFFSET * 0x01010101u, packed[k]);
            }
        }
    }
}

/* s, and 1 / s. */
SQ_INLINE float digits_scale(const float *x, uint32_t n_in, vf *inverse) {
    vf largest = vf_zero(), strange = vf_zero();
    for (size_t i = 0; i < sq_pad(n_in); i += W) {
        vf v = vf_load(x + i);
        largest = vf_max(largest, vf_max(v, -v));
        strange = vf_fma(v, vf_zero(), strange); /* NaN where v is not finite */
    }
    float lanes[W], max = 0;
    vf_store(lanes, largest);
    for (int i = 0; i < W; i++) {
        max = max > lanes[i] ? max : lanes[i];
    }
    v4 nan = vf_sums((const vf[4]){strange, vf_zero(), vf_zero(), vf_zero()});
    float factor = max > SQ_FIXED_TINY ? DIGITS_LARGEST / max : 0;
    *inverse = vf_set1(factor);
    return (factor > 0 ? 1 / factor : 0) + nan[0];
}

SQ_INLINE void digits_pack(int bits, const float *x, uint32_t n_in, digits *d) {
    const uint32_t block = BLOCK_DWORDS * n_fields(bits), left = n_in % block_of(bits);
    vf inverse;
    d->scale = digits_scale(x, n_in, &inverse);
    memset(d->start, 0, sizeof d->start);
    size_t vector = 0;
    for (; vector < (n_in - left) / block; vector++) {
        digits_pack_vector(bits, x + vector * block, inverse, d, vector);
    }
    x += n_in - left;
    /* Narrow planes, the fourth of 3 bits among them: side by side in a vector where they fit into one. They
     * end within the padding of x. */
    uint32_t n_dwords = (left + n_per_dword(bits) - 1) / n_per_dword(bits);
    uint32_t n_planes = n_planes_used(bits), n_vectors = n_planes * n_dwords <= BLOCK_DWORDS ? 1 : n_planes;
    for (uint32_t v = 0; left && v < n_vectors; v++) {
        float positions[16 * BLOCK_DWORDS] = {0};
        for (uint32_t p = v; p < (n_vectors == 1 ? n_planes : v + 1); p++) {
            float *to = positions + (n_vectors == 1 ? p * n_dwords : 0);
            for (int j = 0; j < n_fields(bits); j++, to += BLOCK_DWORDS, x += n_dwords) {
                memcpy(to, x, n_dwords * sizeof *x);
            }
        }
        digits_pack_vector(bits, positions, inverse, d, vector + v);
    }
    for (int k = 0; k < N_DIGITS; k++) {
        d->start[k] = -d->start[k];
    }
}

/* Of a token, a multiple of 64, for any width of indices. */
SQ_INLINE size_t digits_bytes(uint32_t n_in) {
    return sizeof(digits) + (n_in / 512 + 1) * 512 * N_DIGITS;
}

typedef vi digit_sums[N_DIGITS];

/* Adds the products of a vector of dwords of some rows: part h of it, of W lanes. */
SQ_INLINE void digits_plane(int bits, int n_rows, int n_tokens, const bytes_table *tables, const vu *plane,
                            const int8_t *bytes, size_t token_bytes, digit_sums *sums) {
    vu codes[GEMV_ROWS];
    for (int r = 0; r < n_rows; r++) {
        codes[r] = plane[r];
    }
    for (uint32_t f = 0; f < n_byte_fields(bits); f++, bytes += 4 * BLOCK_DWORDS * N_DIGITS) {
        vu weights[GEMV_ROWS];
        for (int r = 0; r < n_rows; r++) {
            weights[r] = bytes_at(&tables[r], codes[r]);
            codes[r] >>= field_bits(bits);
        }
        for (int t = 0; t < n_tokens; t++) {
            for (int k = 0; k < N_DIGITS; k++) {
                vu x = vu_load(bytes + t * token_bytes + 4 * BLOCK_DWORDS * k);
                for (int r = 0; r < n_rows; r++) {
                    vi *sum = &sums[r * n_tokens + t][k];
                    *sum = bytes_dot(*sum, weights[r], x);
                }
            }
        }
    }
}

/* out[r · n_tokens + t] = the products as f32, lane by lane. */
SQ_INLINE void digits_finish(const sq_matrix *w, const digits *const *tokens, uint32_t row, int n_rows,
                             int n_tokens, digit_sums *sums, vf *out) {
    for (int r = 0; r < n_rows; r++) {
        vf row_scale = vf_set1_f16((const uint8_t *)(w->lut_scale + row + r));
        for (int t = 0; t < n_tokens; t++) {
            const vi *sum = sums[r * n_tokens + t];
            vf total = __builtin_convertvector(sum[N_DIGITS - 1], vf);
            for (int k = N_DIGITS - 2; k >= 0; k--) {
                total = vf_fma(total, vf_set1(256), __builtin_convertvector(sum[k], vf));
            }
            out[r * n_tokens + t] = total * (row_scale * vf_set1(tokens[t]->scale));
        }
    }
}

/* Plane p of a narrow block, or all of them one behind the other. */
SQ_INLINE dwords narrow_plane(int bits, const uint8_t *codes, uint32_t n_dwords, uint32_t p, bool together) {
    if (bits != 3 || (!together && p < 3)) {
        return dwords_load(codes + 4 * p * n_dwords, n_dwords);
    }
    dwords stored = together ? dwords_load(codes, 3 * n_dwords) : (dwords){0}, spare = {0};
    for (int i = 0; i < 3; i++) {
        dwords plane = dwords_load(codes + 4 * i * n_dwords, n_dwords);
        dwords_add_spare(&spare, &plane, i);
    }
    for (int h = 0; together && h < BLOCK_DWORDS / W; h++) { /* past the fourth plane this finds zeros */
        stored.part[h] |= dwords_at(&spare, vu_iota() + W * h - 3 * n_dwords);
    }
    return together ? stored : spare;
}

/* dot_tile (simd_matrix.h), of digits. */
SQ_INLINE void digits_dot(int bits, const sq_matrix *w, operand in, uint32_t row, int n_rows, int n_tokens,
                          kept_task *kept, vf *out) {
    const uint32_t n_planes = n_planes_of(bits), n_blocks = w->n_in / block_of(bits);
    const size_t token_bytes = in.packed_bytes,
                 vector_bytes = 4 * BLOCK_DWORDS * N_DIGITS * n_byte_fields(bits);
    const uint8_t *codes = w->data + row * w->row_bytes;
    const size_t stride = w->row_bytes;
    const digits *tokens[FEW_TOKENS];
    const uint8_t *ahead = prefetch_from(w, row, n_rows);
    bytes_table tables[GEMV_ROWS];
    digit_sums sums[TILE_SUMS];
    for (int t = 0; t < n_tokens; t++) {
        tokens[t] = (const digits *)(in.packed + t * token_bytes);
    }
    for (int r = 0; r < n_rows; r++) {
        tables[r] = bytes_load(bits, w->lut8 + ((size_t)(row + r) << bits));
    }
    for (int i = 0; i < n_rows * n_tokens; i++) {
        for (int k = 0; k < N_DIGITS; k++) {
            sums[i][k] = tokens[i % n_tokens]->start[k];
        }
    }
    const int8_t *bytes = tokens[0]->bytes[0][0];
    const int8_t *end = bytes + n_blocks * n_planes_used(bits) * vector_bytes;
    for (; bytes < end; bytes += n_planes_used(bits) * vector_bytes) {
        for (int h = 0; h < BLOCK_DWORDS / W; h++) {
            vu plane[GEMV_ROWS], spare[GEMV_ROWS];
            for (uint32_t p = 0; p < n_planes; p++) {
                for (int r = 0; r < n_rows; r++) {
                    plane[r] = vu_load(codes + r * stride + 64 * p + 4 * W * h);
                    prefetch(in.cache, &ahead, 4 * W);
                    spare[r] = p ? spare[r] | spare_bits(plane[r], p) : spare_bits(plane[r], p);
                }
                digits_plane(bits, n_rows, n_tokens, tables, plane, bytes + p * vector_bytes + 4 * W * h,
                             token_bytes, sums);
            }
            if (bits == 3) {
                digits_plane(bits, n_rows, n_tokens, tables, spare, bytes + 3 * vector_bytes + 4 * W * h,
                             token_bytes, sums);
            }
            for (uint32_t p = 0; p < n_planes_used(bits) && n_tokens == 1; p++) {
                kept_step(kept);
            }
        }
        codes += 64 * n_planes;
    }
    uint32_t left = w->n_in % block_of(bits);
    if (left) {
        uint32_t n_dwords = (left + n_per_dword(bits) - 1) / n_per_dword(bits);
        bool together = n_planes_used(bits) * n_dwords <= BLOCK_DWORDS;
        dwords planes[GEMV_ROWS];
        for (uint32_t p = 0; p < (together ? 1 : n_planes_used(bits)); p++, bytes += vector_bytes) {
            for (int r = 0; r < n_rows; r++) {
                planes[r] = narrow_plane(bits, codes + r * stride, n_dwords, p, together);
                prefetch(in.cache, &ahead, 4 * n_planes * n_dwords);
            }
            for (int h = 0; h < BLOCK_DWORDS / W; h++) {
                vu plane[GEMV_ROWS];
                for (int r = 0; r < n_rows; r++) {
                    plane[r] = planes[r].part[h];
                }
                digits_plane(bits, n_rows, n_tokens, tables, plane, bytes + 4 * W * h, token_bytes, sums);
            }
        }
    }
    digits_finish(w, tokens, row, n_rows, n_tokens, sums, out);
}

SQ_INLINE void digits_gemv(int bits, const row_gemvs *gemvs, const sq_matrix *w, const float *x, size_t ldx,
                           uint32_t n_tokens, float *y, size_t ldy, uint32_t row0, uint32_t row1,
                           void *scratch) {
    operand in = {x, ldx, scratch, digits_bytes(w->n_in), 0};
    for (uint32_t t = 0; t < n_tokens; t++) {
        digits_pack(bits, x + t * ldx, w->n_in, (digits *)(in.packed + t * in.packed_bytes));
    }
    gemv(gemvs, w, in, n_tokens, y, ldy, row0, row1, (float *)(in.packed + n_tokens * in.packed_bytes));
}

#define DIGITS_OF(bits)                                                                                      \
    SQ_INLINE void digits##bits##_dot(const sq_matrix *w, operand in, uint32_t row, int n_rows,              \
                                      int n_tokens, kept_task *kept, vf *sums) {                             \
        digits_dot(bits, w, in, row, n_rows, n_tokens, kept, sums);                                          \
    }                                                                                                        \
    ROW_GEMVS(digits##bits)                                                                                  \
    static void digits##bits##_gemv(const sq_matrix *w, const float *x, size_t ldx, uint32_t n_tokens,       \
                                    float *y, size_t ldy, uint32_t row0, uint32_t row1, void *scratch) {     \
        if (w->lut8) {                                                                                       \
            digits_gemv(bits, &digits##bits##_rows, w, x, ldx, n_tokens, y, ldy, row0, row1, scratch);       \
        } else {                                                                                             \
            lut##bits##_gemv(w, x, ldx, n_tokens, y, ldy, row0, row1, scratch);                              \
        }                                                                                                    \
    }
DIGITS_OF(2)
DIGITS_OF(3)
DIGITS_OF(4)
#undef DIGITS_OF

#endif
