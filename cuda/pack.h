/* A quantized matrix as the kernels read it, and how it is made from the file's layout (docs/FORMAT.md). All
 * of this is index arithmetic for host and device: a kernel packs, tests/cuda/test_products.cpp checks it
 * on the CPU, through the emulator.
 *
 * Rows go in tiles of 16 slots, inputs in chunks of 64. A lane of a warp holds, of slots g = lane / 4 and
 * g + 8 of a tile, of each chunk 2 × 8 inputs, in the order in which mma wants them (port.cuh): as the sum
 * over the inputs does not care for their order, a lane takes 8 neighbours, which lie in 16 bytes of f16.
 *
 *     input of a chunk = 32·(step / 2) + 8·(lane % 4) + 4·(step % 2) + j,    step, j = 0 … 3
 *
 * A step is one mma; a lane's 8 codes of a step are n = 4·(slot / 8) + j. A span is a number of chunks that
 * fills whole vectors of 16 bytes for each lane; vectors are stored [tile, span, vector, lane]:
 *
 *     bits  chunks  vectors   of vector v, 32-bit component c
 *      2      2       1       nibble n, its half h: code n of step 2·(c % 2) + h of chunk c / 2
 *      3      4       3       nibble n, low three bits: code n of step v of chunk c; its top bit: bit v of
 *                             code n of step 3
 *      4      1       1       nibble n: code n of step c
 *      8      1       2       byte j: code 4·(c % 2) + j of step 2·v + c / 2      (Q8_0)
 *     16      1       4       half e: code 4·(c % 2) + 2·(c / 2) + e of step v    (F16)
 *
 * Positions past the last row or input are zero. */
#ifndef SQ_CUDA_PACK_H
#define SQ_CUDA_PACK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define SQ_BOTH static inline __host__ __device__
#else
#define SQ_BOTH static inline
#endif

enum { SQ_TILE = 16, SQ_CHUNK = 64, SQ_LANES = 32, SQ_STEPS = 4, SQ_STEP_CODES = 8 };

SQ_BOTH constexpr uint32_t sq_span_chunks(uint32_t bits) {
    return bits == 3 ? 4 : bits == 2 ? 2 : 1;
}
SQ_BOTH constexpr uint32_t sq_span_vectors(uint32_t bits) {
    return bits == 3 ? 3 : bits == 8 ? 2 : bits == 16 ? 4 : 1;
}
SQ_BOTH uint32_t sq_n_spans(uint32_t bits, uint32_t n_in) {
    uint32_t inputs = sq_span_chunks(bits) * SQ_CHUNK;
    return (n_in + inputs - 1) / inputs;
}
/* 32-bit words of tables of a slot: the low bytes of all entries, then the high bytes. */
SQ_BOTH constexpr uint32_t sq_table_words(uint32_t bits) {
    return bits <= 4 ? (2u << bits) / 4 : 0;
}
/* Where vector `vector` of a span begins, in vectors. */
SQ_BOTH size_t sq_vector_at(uint32_t bits, uint32_t n_spans, uint32_t tile, uint32_t span, uint32_t vector) {
    return (((size_t)tile * n_spans + span) * sq_span_vectors(bits) + vector) * SQ_LANES;
}

/* ---- the file's layout ------------------------------------------------------------------------- */

SQ_BOTH uint32_t sq_file_word(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Code `i` of a row of n_in: an index, of 8 bits the quant's byte, of 16 bits the weight. */
SQ_BOTH uint32_t sq_file_code(uint32_t bits, const uint8_t *row, uint32_t n_in, uint32_t i) {
    if (bits == 16)
        return row[2 * (size_t)i] | (uint32_t)row[2 * (size_t)i + 1] << 8;
    if (bits == 8)
        return row[(size_t)(i / 32) * 34 + 2 + i % 32];
    uint32_t per_dword = bits == 3 ? 32 : 32 / bits, block = 16 * per_dword;
    uint32_t first = i / block * block, left = n_in - first;
    uint32_t n_dwords = left < block ? (left + per_dword - 1) / per_dword : 16;
    const uint8_t *codes = row + (size_t)first / 8 * bits;
    uint32_t field = (i - first) / n_dwords, dword = (i - first) % n_dwords;
    if (bits != 3)
        return sq_file_word(codes + 4 * dword) >> bits * field & ((1u << bits) - 1);
    if (field < 24)
        return sq_file_word(codes + 4 * (field / 8 * n_dwords + dword)) >> 4 * (field % 8) & 7;
    uint32_t code = 0;
    for (uint32_t plane = 0; plane < 3; plane++)
        code |= (sq_file_word(codes + 4 * (plane * n_dwords + dword)) >> (4 * (field - 24) + 3) & 1) << plane;
    return code;
}

/* ---- packing ----------------------------------------------------------------------------------- */

/* Rows of the file that go to slots [first_slot, first_slot + rows_per_tile) of the tiles from first_tile on:
 * all 16 of a tile, or 8, so that rows of two matrices meet in one lane. */
typedef struct sq_pack_source {
    const uint8_t *data; /* of row row0 */
    size_t row_bytes;
    uint32_t bits, n_in;
    uint32_t row0, n_rows; /* n_rows from row0 on are there */
    uint32_t first_tile, first_slot, rows_per_tile;
} sq_pack_source;

/* The source's row in a slot of a tile; UINT32_MAX where it has none there. */
SQ_BOTH uint32_t sq_pack_row(const sq_pack_source *s, uint32_t tile, uint32_t slot) {
    if (tile < s->first_tile || slot < s->first_slot || slot - s->first_slot >= s->rows_per_tile)
        return UINT32_MAX;
    uint32_t row = (tile - s->first_tile) * s->rows_per_tile + slot - s->first_slot;
    return row >= s->row0 && row - s->row0 < s->n_rows ? row : UINT32_MAX;
}

SQ_BOTH uint32_t sq_pack_code(const sq_pack_source *s, uint32_t tile, uint32_t lane, uint32_t chunk,
                              uint32_t step, uint32_t n) {
    uint32_t row = sq_pack_row(s, tile, lane / 4 + 8 * (n / 4));
    uint32_t input = SQ_CHUNK * chunk + 32 * (step / 2) + 8 * (lane % 4) + 4 * (step % 2) + n % 4;
    if (row == UINT32_MAX || input >= s->n_in)
        return 0;
    return sq_file_code(s->bits, s->data + (row - s->row0) * s->row_bytes, s->n_in, input);
}

/* Component c of a lane's vector: what the source has of it. */
SQ_BOTH uint32_t sq_pack_word(const sq_pack_source *s, uint32_t tile, uint32_t span, uint32_t vector,
                              uint32_t lane, uint32_t c) {
    uint32_t word = 0;
    switch (s->bits) {
    case 2:
        for (uint32_t i = 0; i < 16; i++)
            word |= sq_pack_code(s, tile, lane, 2 * span + c / 2, 2 * (c % 2) + i % 2, i / 2) << 2 * i;
        break;
    case 3:
        for (uint32_t n = 0; n < 8; n++) {
            word |= sq_pack_code(s, tile, lane, 4 * span + c, vector, n) << 4 * n;
            word |= (sq_pack_code(s, tile, lane, 4 * span + c, 3, n) >> vector & 1) << (4 * n + 3);
        }
        break;
    case 4:
        for (uint32_t n = 0; n < 8; n++)
            word |= sq_pack_code(s, tile, lane, span, c, n) << 4 * n;
        break;
    case 8:
        for (uint32_t j = 0; j < 4; j++)
            word |= sq_pack_code(s, tile, lane, span, 2 * vector + c / 2, 4 * (c % 2) + j) << 8 * j;
        break;
    default:
        for (uint32_t e = 0; e < 2; e++)
            word |= sq_pack_code(s, tile, lane, span, vector, 4 * (c % 2) + 2 * (c / 2) + e) << 16 * e;
    }
    return word;
}

/* The code of one weight, out of the packed words. */
SQ_BOTH uint32_t sq_packed_code(uint32_t bits, const uint32_t *words, uint32_t n_spans, uint32_t tile,
                                uint32_t slot, uint32_t input) {
    uint32_t chunk = input / SQ_CHUNK, k = input % SQ_CHUNK, lane = slot % 8 * 4 + k % 32 / 8;
    uint32_t step = 2 * (k / 32) + k % 8 / 4, n = 4 * (slot / 8) + k % 4, chunks = sq_span_chunks(bits);
    const uint32_t *span = words + 4 * sq_vector_at(bits, n_spans, tile, chunk / chunks, 0) + 4 * lane;
    const uint32_t vector = 4 * SQ_LANES; /* in words */
    switch (bits) {
    case 2:
        return span[2 * (chunk % 2) + step / 2] >> (4 * n + 2 * (step % 2)) & 3;
    case 3:
        if (step < 3)
            return span[step * vector + chunk % 4] >> 4 * n & 7;
        return (span[chunk % 4] >> (4 * n + 3) & 1) | (span[vector + chunk % 4] >> (4 * n + 3) & 1) << 1 |
               (span[2 * vector + chunk % 4] >> (4 * n + 3) & 1) << 2;
    case 4:
        return span[step] >> 4 * n & 15;
    case 8:
        return span[step / 2 * vector + 2 * (step % 2) + n / 4] >> 8 * (n % 4) & 255;
    default:
        return span[step * vector + n / 4 + 2 * (n % 4 / 2)] >> 16 * (n % 2) & 0xffff;
    }
}

#endif
