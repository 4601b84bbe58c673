/* From packed codes (pack.h) to the weights' registers of mma_f16, and the product of a span with
 * activations.
 *
 * Indices of 2, 3 and 4 bits are looked up in registers: a table of f16 is kept as its low and its high
 * bytes, and a byte permute looks up four indices at once, that are the low three bits of four nibbles. (A
 * fourth bit would make it replicate signs: it is masked away.) The low and high bytes found are then
 * interleaved. */
#ifndef SQ_CUDA_DECODE_CUH
#define SQ_CUDA_DECODE_CUH

#include "gpu.h"
#include "port.cuh"

/* ---- tables ------------------------------------------------------------------------------------ */

/* Tables of a lane's two rows. */
template <int BITS> struct tables {
    static constexpr int N = BITS <= 4 ? (1 << BITS) / 4 : 1;
    uint32_t low[2][N], high[2][N];

    __device__ __forceinline__ void load(const gpu_matrix &w, uint32_t tile, uint32_t lane) {
        if constexpr (BITS <= 4) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t *row =
                    w.tables + ((size_t)tile * SQ_TILE + lane / 4 + 8 * half) * sq_table_words(BITS);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    low[half][i] = __ldg(row + i);
                    high[half][i] = __ldg(row + N + i);
                }
            }
        }
    }
};

/* Four entries of one row: `selectors` hold, in the low 16 bits, a nibble for each, `picks` for 4 bits which
 * half of the table. first: entries 0 and 1 as f16, second: 2 and 3. */
template <int BITS>
static __device__ __forceinline__ void look_up(const uint32_t *low, const uint32_t *high, uint32_t selectors,
                                               uint32_t picks, uint32_t *first, uint32_t *second) {
    constexpr int N = tables<BITS>::N;
    uint32_t l = bytes_permute(low[0], low[N == 1 ? 0 : 1], selectors);
    uint32_t h = bytes_permute(high[0], high[N == 1 ? 0 : 1], selectors);
    if (BITS == 4) {
        l = bytes_permute(l, bytes_permute(low[N - 2 < 0 ? 0 : N - 2], low[N - 1], selectors), picks);
        h = bytes_permute(h, bytes_permute(high[N - 2 < 0 ? 0 : N - 2], high[N - 1], selectors), picks);
    }
    *first = bytes_permute(l, h, 0x5140);
    *second = bytes_permute(l, h, 0x7362);
}

/* The eight codes of a step, a nibble each, row g's in the low half: the weights as mma wants them. */
template <int BITS>
static __device__ __forceinline__ void step_weights(const tables<BITS> &t, uint32_t codes, uint32_t a[4]) {
    uint32_t selectors = BITS == 4 ? bits_take(codes, 0x77777777, 0) : codes;
    uint32_t picks = BITS == 4 ? bits_take(codes >> 1, 0x44444444, 0x32103210) : 0;
    look_up<BITS>(t.low[0], t.high[0], selectors, picks, &a[0], &a[2]);
    look_up<BITS>(t.low[1], t.high[1], selectors >> 16, picks >> 16, &a[1], &a[3]);
}

/* ---- spans ------------------------------------------------------------------------------------- */

/* What a lane reads of a span. */
template <int BITS> struct span_codes {
    uint4 v[sq_span_vectors(BITS)];
    uint32_t scales[2]; /* Q8_0: of the two blocks of a chunk, of rows g and g + 8 */

    __device__ __forceinline__ void load(const gpu_matrix &w, uint32_t tile, uint32_t span, uint32_t lane) {
        const uint4 *from = w.codes + sq_vector_at(BITS, w.n_spans, tile, span, 0) + lane;
#pragma unroll
        for (int i = 0; i < (int)sq_span_vectors(BITS); i++)
            v[i] = load_once(from + i * SQ_LANES);
        if (BITS == 8) {
            const uint32_t *s = w.tables + (((size_t)tile * w.n_spans + span) * 2) * 8 + lane / 4;
            scales[0] = __ldg(s);
            scales[1] = __ldg(s + 8);
        }
    }
};

static __device__ __forceinline__ uint32_t component(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Two signed bytes as f16, exactly: 1024 + (q + 128) has its low byte as it comes. */
static __device__ __forceinline__ uint32_t bytes_weights(uint32_t biased, uint32_t selector) {
    return f16x2_sub(bytes_permute(biased, 0x64646464, selector), 0x64806480);
}

/* The weights of step `step` (0 … 3) of chunk `chunk` of the span. */
template <int BITS>
static __device__ __forceinline__ void span_weights(const span_codes<BITS> &s, const tables<BITS> &t,
                                                    int chunk, int step, uint32_t a[4]) {
    if constexpr (BITS == 2) {
        step_weights<BITS>(t, component(s.v[0], 2 * chunk + step / 2) >> 2 * (step % 2) & 0x33333333, a);
    } else if constexpr (BITS == 3) {
        uint32_t codes;
        if (step < 3)
            codes = component(s.v[step], chunk) & 0x77777777;
        else
            codes = (component(s.v[0], chunk) >> 3 & 0x11111111) |
                    (component(s.v[1], chunk) >> 2 & 0x22222222) |
                    (component(s.v[2], chunk) >> 1 & 0x44444444);
        step_weights<BITS>(t, codes, a);
    } else if constexpr (BITS == 4) {
        step_weights<BITS>(t, component(s.v[0], step), a);
    } else if constexpr (BITS == 8) {
        uint32_t g = component(s.v[step / 2], 2 * (step % 2)) ^ 0x80808080;
        uint32_t g8 = component(s.v[step / 2], 2 * (step % 2) + 1) ^ 0x80808080;
        a[0] = bytes_weights(g, 0x4140);
        a[1] = bytes_weights(g8, 0x4140);
        a[2] = bytes_weights(g, 0x4342);
        a[3] = bytes_weights(g8, 0x4342);
    } else {
        a[0] = s.v[step].x;
        a[1] = s.v[step].y;
        a[2] = s.v[step].z;
        a[3] = s.v[step].w;
    }
}

/* Adds the product of a span and of `N` groups of eight columns of activations to `sums`. `columns`: of each
 * group, f16 in shared memory, at this lane's column and its first input of the span (8 · (lane % 4)); NULL:
 * a column of zeros. */
template <int BITS, int N>
static __device__ __forceinline__ void span_multiply(const span_codes<BITS> &s, const tables<BITS> &t,
                                                     const uint16_t *const columns[N], float sums[N][4]) {
#pragma unroll
    for (int chunk = 0; chunk < (int)sq_span_chunks(BITS); chunk++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 x[N];
            float block[N][4]; /* Q8_0 alone: before its scale */
#pragma unroll
            for (int n = 0; n < N; n++) {
                x[n] = columns[n] ? *(const uint4 *)(columns[n] + SQ_CHUNK * chunk + 32 * half)
                                  : make_uint4(0, 0, 0, 0);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    block[n][i] = 0;
            }
#pragma unroll
            for (int step = 0; step < 2; step++) {
                uint32_t a[4];
                span_weights<BITS>(s, t, chunk, 2 * half + step, a);
#pragma unroll
                for (int n = 0; n < N; n++) {
                    uint32_t b[2] = {component(x[n], 2 * step), component(x[n], 2 * step + 1)};
                    mma_f16(BITS == 8 ? block[n] : sums[n], a, b);
                }
            }
            if (BITS == 8) {
                float scale = f16_value(s.scales[half]), scale8 = f16_value(s.scales[half] >> 16);
#pragma unroll
                for (int n = 0; n < N; n++) {
                    sums[n][0] += scale * block[n][0];
                    sums[n][1] += scale * block[n][1];
                    sums[n][2] += scale8 * block[n][2];
                    sums[n][3] += scale8 * block[n][3];
                }
            }
        }
    }
}

static __device__ __forceinline__ float row_scale(const gpu_matrix &w, uint32_t row) {
    return w.scales ? __ldg(w.scales + row) : 1;
}

/* ---- one weight -------------------------------------------------------------------------------- */

/* The value of a code, dense part alone. */
static __device__ inline float packed_weight(const gpu_matrix &w, uint32_t row, uint32_t input) {
    uint32_t tile = row / SQ_TILE, slot = row % SQ_TILE;
    uint32_t code = sq_packed_code(w.bits, (const uint32_t *)w.codes, w.n_spans, tile, slot, input);
    if (w.bits == 16)
        return f16_value(code);
    if (w.bits == 8) {
        uint32_t scales = w.tables[((size_t)tile * w.n_spans * 2 + input / 32) * 8 + slot % 8];
        return f16_value(slot < 8 ? scales : scales >> 16) * (float)(int8_t)code;
    }
    const uint8_t *table = (const uint8_t *)(w.tables + (size_t)row * sq_table_words(w.bits));
    return f16_value(table[code] | (uint32_t)table[(1u << w.bits) + code] << 8) * row_scale(w, row);
}

/* ---- activations ------------------------------------------------------------------------------- */

/* The parts of an activation, the high one in the low half: gpu_operand. */
static __device__ __forceinline__ uint32_t operand_parts(float x) {
    float scaled = fminf(fmaxf(x * SQ_OPERAND_SCALE, -65504.0f), 65504.0f);
    uint32_t high = f16_bits(scaled);
    return high | f16_bits((scaled - f16_value(high)) * (1 / SQ_LOW_SCALE)) << 16;
}

static __device__ __forceinline__ void operand_store(const gpu_operand &o, uint32_t token, uint32_t i,
                                                     float x) {
    uint32_t parts = operand_parts(x);
    uint16_t *at = o.data + (size_t)2 * token * o.stride + i;
    at[0] = (uint16_t)parts;
    at[o.stride] = (uint16_t)(parts >> 16);
}

/* Activations i and i + 1, i even. */
static __device__ __forceinline__ void operand_store_pair(const gpu_operand &o, uint32_t token, uint32_t i,
                                                          float x, float y) {
    uint32_t parts = operand_parts(x), next = operand_parts(y);
    uint16_t *at = o.data + (size_t)2 * token * o.stride + i;
    *(uint32_t *)at = bytes_permute(parts, next, 0x5410);
    *(uint32_t *)(at + o.stride) = bytes_permute(parts, next, 0x7632);
}

static __device__ __forceinline__ float operand_value(uint32_t high, uint32_t low) {
    return (f16_value(high) + f16_value(low) * SQ_LOW_SCALE) * (1 / SQ_OPERAND_SCALE);
}

/* sums[0], sums[1] of mma: products with the high and the low parts. */
static __device__ __forceinline__ float operand_sum(float high, float low) {
    return (high + low * SQ_LOW_SCALE) * (1 / SQ_OPERAND_SCALE);
}

static __device__ __forceinline__ float gated(sq_activation activation, float gate, float up) {
    float z = gate;
    if (activation == SQ_GELU) /* its tanh form, as a logistic: tanh(y) = 2 / (1 + exp(-2y)) - 1 */
        z = gate * (1.5957691216f + 0.0713548162726f * gate * gate);
    return gate / (1 + expf(-z)) * up;
}

/* ---- sums -------------------------------------------------------------------------------------- */

/* The sum over `n` neighbouring lanes, a power of 2, in each of them. All lanes of the warp call it. */
static __device__ __forceinline__ float lanes_sum(float x, int n) {
    for (int i = n / 2; i > 0; i /= 2)
        x += __shfl_xor_sync(0xffffffff, x, i);
    return x;
}

/* The same of the largest. */
static __device__ __forceinline__ float lanes_max(float x, int n) {
    for (int i = n / 2; i > 0; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, i));
    return x;
}

#endif
