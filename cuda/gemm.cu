/* y = W x for prompts: tiles of weights are decoded to f16 in shared memory, kept weights added to them
 * there, and multiplied with many columns. A column is a token, the high part of its operand alone, 11 bits;
 * or, where there are few inputs, one of a token's two parts, side by side. Sums are f32.
 *
 * A block has ROW_WARPS · 32 rows and TOKEN_WARPS · COLUMNS · 8 columns, and takes the inputs a chunk of 64
 * at a time. In decoding, a warp makes a tile of 16 rows from the packed codes, and a row has a thread that
 * walks its kept weights, which ascend by column, as the chunks go by. In multiplying, a warp has two tiles
 * and COLUMNS · 8 columns.
 *
 * In shared memory weights lie as mma wants them, [tile, step, lane] of 16 bytes; activations [token, 64 +
 * 32]. Both twice: while one chunk is multiplied, the next one's activations are under way and its weights
 * are decoded. */
#include "decode.cuh"

namespace {

enum {
    N_WARPS = 8,
    N_THREADS = N_WARPS * SQ_LANES,
    COLUMN_STRIDE = SQ_CHUNK + 32,
    TILE_VECTORS = SQ_STEPS * SQ_LANES,
    FEW_INPUTS = 1024 /* small models hear more of 11 bits, and their products end soon */
};

/* Columns that a token has. */
__host__ __device__ inline uint32_t parts_of(const gpu_product &p) {
    return p.w.n_in <= FEW_INPUTS ? 2 : 1;
}

template <int ROW_WARPS, int TOKEN_WARPS, int COLUMNS> struct shape {
    static_assert(ROW_WARPS * TOKEN_WARPS == N_WARPS, "all warps multiply");
    static constexpr int TILES = 2 * ROW_WARPS, N_COLUMNS = TOKEN_WARPS * COLUMNS * 8;
    static constexpr size_t WEIGHTS_BYTES = (size_t)TILES * TILE_VECTORS * sizeof(uint4);
    static constexpr size_t TOKENS_BYTES = (size_t)N_COLUMNS * COLUMN_STRIDE * sizeof(uint16_t);
    static constexpr size_t BYTES = 2 * (WEIGHTS_BYTES + TOKENS_BYTES);
};

/* Chunk `chunk` of columns [first, first + n), those past the last one being copies of it. */
__device__ void tokens_load(const gpu_product &p, uint32_t first, uint32_t n, uint32_t chunk, uint16_t *to) {
    const uint32_t parts = parts_of(p), last = parts * p.n_tokens - 1;
    for (uint32_t i = threadIdx.x; i < n * (SQ_CHUNK / 8); i += N_THREADS) {
        uint32_t column = i / (SQ_CHUNK / 8), at = i % (SQ_CHUNK / 8) * 8;
        size_t row = (size_t)2 / parts * min(first + column, last); /* of the operand, which has both parts */
        copy_async(to + column * COLUMN_STRIDE + at, p.in.data + row * p.in.stride + chunk * SQ_CHUNK + at);
    }
    copies_commit();
}

/* The weights of a chunk of a tile, in their order for mma. */
template <int BITS>
__device__ __forceinline__ void tile_decode(const span_codes<BITS> &codes, const tables<BITS> &t, int chunk,
                                            uint32_t lane, uint4 *to) {
#pragma unroll
    for (int step = 0; step < SQ_STEPS; step++) {
        uint32_t a[4] = {};
#pragma unroll
        for (int c = 0; c < (int)sq_span_chunks(BITS);
             c++) /* the codes' registers must have constant names */
            if (c == chunk)
                span_weights<BITS>(codes, t, c, step, a);
        if constexpr (BITS == 8) {
            float scale = f16_value(codes.scales[step / 2]), scale8 = f16_value(codes.scales[step / 2] >> 16);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float s = i % 2 ? scale8 : scale;
                a[i] = f16_bits(f16_value(a[i]) * s) | f16_bits(f16_value(a[i] >> 16) * s) << 16;
            }
        }
        to[step * SQ_LANES + lane] = make_uint4(a[0], a[1], a[2], a[3]);
    }
}

/* A thread's row of kept weights: what is next of it. */
struct kept {
    uint32_t at, end, entry;
    float inverse; /* 1 / the scale of the row's table */

    __device__ __forceinline__ void next(const gpu_matrix &w) { entry = at < end ? __ldg(w.sparse + at) : 0; }
    /* Adds those of inputs [.., chunk's end) to the row's weights; the order is that of sq_pack_code. */
    __device__ __forceinline__ void add(const gpu_matrix &w, uint32_t row, uint32_t chunk, uint4 *weights) {
        while (at < end && (entry & 0xffff) / SQ_CHUNK == chunk) {
            uint32_t k = entry % SQ_CHUNK, slot = row % SQ_TILE;
            uint32_t step = 2 * (k / 32) + k % 8 / 4, lane = slot % 8 * 4 + k % 32 / 8;
            uint16_t *weight = (uint16_t *)(weights + row / SQ_TILE * TILE_VECTORS + step * SQ_LANES + lane) +
                               2 * (slot / 8 + 2 * (k % 4 / 2)) + k % 2;
            *weight = (uint16_t)f16_bits(f16_value(*weight) + f16_value(entry >> 16) * inverse);
            at++;
            next(w);
        }
    }
};

/* What becomes of y of rows g and g + 8 of a tile, of one token. */
__device__ __forceinline__ void pair_use(const gpu_product &p, uint32_t tile, uint32_t g, uint32_t t, float y,
                                         float y8) {
    uint32_t row = tile * SQ_TILE + g;
    y = y * (1 / SQ_OPERAND_SCALE) * row_scale(p.w, row) + (p.w.bias ? p.w.bias[row] : 0);
    y8 = y8 * (1 / SQ_OPERAND_SCALE) * row_scale(p.w, row + 8) + (p.w.bias ? p.w.bias[row + 8] : 0);
    if (p.use == GPU_GATED) {
        operand_store(p.next, t, tile * 8 + g, gated(p.activation, y, y8));
    } else if (p.use == GPU_OPERAND) {
        operand_store(p.next, t, row, p.relu ? fmaxf(y, 0) : y);
        operand_store(p.next, t, row + 8, p.relu ? fmaxf(y8, 0) : y8);
    } else {
        float *out = p.out + (size_t)t * p.out_stride + row;
        out[0] = p.cap > 0 ? p.cap * tanhf(y / p.cap) : y;
        out[8] = p.cap > 0 ? p.cap * tanhf(y8 / p.cap) : y8;
    }
}

template <int BITS, int ROW_WARPS, int TOKEN_WARPS, int COLUMNS>
__global__ void __launch_bounds__(N_THREADS, 2) gemm(gpu_product p) {
    using S = shape<ROW_WARPS, TOKEN_WARPS, COLUMNS>;
    constexpr int CHUNKS = sq_span_chunks(BITS);
    uint8_t *memory = shared_memory<uint8_t>();
    const uint32_t warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES;
    const uint32_t first_tile = blockIdx.y * S::TILES, first_column = blockIdx.x * S::N_COLUMNS;
    const uint32_t n_chunks = (p.w.n_in + SQ_CHUNK - 1) / SQ_CHUNK;
    const uint32_t row_warp = warp / TOKEN_WARPS, token_warp = warp % TOKEN_WARPS;
    const bool decodes = warp < S::TILES && first_tile + warp < p.w.n_tiles;
    auto weights_of = [&](uint32_t set) { return (uint4 *)(memory + set % 2 * S::WEIGHTS_BYTES); };
    auto tokens_of = [&](uint32_t set) {
        return (uint16_t *)(memory + 2 * S::WEIGHTS_BYTES + set % 2 * S::TOKENS_BYTES);
    };

    tables<BITS> t;
    span_codes<BITS> codes, next;
    if (decodes) {
        t.load(p.w, first_tile + warp, lane);
        codes.load(p.w, first_tile + warp, 0, lane);
    }
    kept row = {};
    if (p.w.sparse_first && threadIdx.x < S::TILES * SQ_TILE &&
        first_tile + threadIdx.x / SQ_TILE < p.w.n_tiles) {
        const uint32_t *first = p.w.sparse_first + (size_t)first_tile * SQ_TILE + threadIdx.x;
        row.at = __ldg(first);
        row.end = __ldg(first + 1);
        row.inverse = 1 / row_scale(p.w, first_tile * SQ_TILE + threadIdx.x);
        row.next(p.w);
    }
    next_kernel_start();
    previous_kernel_wait();
    tokens_load(p, first_column, S::N_COLUMNS, 0, tokens_of(0));

    /* Decodes a chunk into its set; the codes of the next span are loaded a span ahead. */
    auto weights_make = [&](uint32_t chunk) {
        if (!decodes)
            return;
        uint32_t span = chunk / CHUNKS;
        if (chunk % CHUNKS == 0) {
            if (chunk)
                codes = next;
            if (span + 1 < p.w.n_spans)
                next.load(p.w, first_tile + warp, span + 1, lane);
        }
        tile_decode<BITS>(codes, t, chunk % CHUNKS, lane, weights_of(chunk) + warp * TILE_VECTORS);
    };
    weights_make(0);
    __syncthreads();
    row.add(p.w, threadIdx.x, 0, weights_of(0));

    float sums[2][COLUMNS][4] = {};
    for (uint32_t chunk = 0; chunk < n_chunks; chunk++) {
        copies_wait<0>();
        __syncthreads(); /* this chunk is complete, and nobody reads the other set any more */
        if (chunk + 1 < n_chunks)
            tokens_load(p, first_column, S::N_COLUMNS, chunk + 1, tokens_of(chunk + 1));
        const uint4 *weights = weights_of(chunk) + 2 * row_warp * TILE_VECTORS + lane;
        const uint16_t *tokens =
            tokens_of(chunk) + (token_warp * COLUMNS * 8 + lane / 4) * COLUMN_STRIDE + 8 * (lane % 4);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 a[2][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int step = 0; step < 2; step++)
                    a[i][step] = weights[i * TILE_VECTORS + (2 * half + step) * SQ_LANES];
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                uint4 x = *(const uint4 *)(tokens + n * 8 * COLUMN_STRIDE + 32 * half);
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    uint32_t b[2] = {component(x, 2 * step), component(x, 2 * step + 1)};
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        uint32_t w[4] = {a[i][step].x, a[i][step].y, a[i][step].z, a[i][step].w};
                        mma_f16(sums[i][n], w, b);
                    }
                }
            }
        }
        if (chunk + 1 < n_chunks) {
            weights_make(chunk + 1);
            __syncthreads();
            row.add(p.w, threadIdx.x, chunk + 1, weights_of(chunk + 1));
        }
    }
    const uint32_t parts = parts_of(p);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t tile = first_tile + 2 * row_warp + i;
        if (tile >= p.w.n_tiles)
            break;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            const float *y = sums[i][n]; /* of two columns, rows g and g + 8 */
            uint32_t column = first_column + (token_warp * COLUMNS + n) * 8 + 2 * (lane % 4);
            if (parts == 2 && column / 2 < p.n_tokens) {
                pair_use(p, tile, lane / 4, column / 2, y[0] + y[1] * SQ_LOW_SCALE,
                         y[2] + y[3] * SQ_LOW_SCALE);
            } else if (parts == 1) {
                for (int j = 0; j < 2; j++)
                    if (column + j < p.n_tokens)
                        pair_use(p, tile, lane / 4, column + j, y[j], y[2 + j]);
            }
        }
    }
}

using wide = shape<4, 2, 8>;   /* 128 rows, 128 columns */
using narrow = shape<2, 4, 2>; /* 64 rows, 64 columns */
using gemm_kernel = void (*)(gpu_product);

template <int BITS> gemm_kernel kernel_of(bool is_wide) {
    return is_wide ? gemm<BITS, 4, 2, 8> : gemm<BITS, 2, 4, 2>;
}

gemm_kernel kernel_of(uint32_t bits, bool is_wide) {
    switch (bits) {
    case 2:
        return kernel_of<2>(is_wide);
    case 3:
        return kernel_of<3>(is_wide);
    case 4:
        return kernel_of<4>(is_wide);
    case 8:
        return kernel_of<8>(is_wide);
    default:
        return kernel_of<16>(is_wide);
    }
}

} // namespace

cudaError_t gpu_gemm_prepare(const gpu_card *card) {
    cudaError_t result = cudaSuccess;
    for (uint32_t bits : {2u, 3u, 4u, 8u, 16u})
        for (bool is_wide : {true, false})
            if (result == cudaSuccess)
                result = gpu_kernel_prepare(kernel_of(bits, is_wide), card);
    return result;
}

void gpu_gemm(gpu_launch *l, const gpu_product *p) {
    const uint32_t n_columns = parts_of(*p) * p->n_tokens;
    bool is_wide = n_columns > (uint32_t)narrow::N_COLUMNS;
    uint32_t tiles = is_wide ? wide::TILES : narrow::TILES,
             columns = is_wide ? wide::N_COLUMNS : narrow::N_COLUMNS;
    gpu_run(l, kernel_of(p->w.bits, is_wide),
            dim3((n_columns + columns - 1) / columns, (p->w.n_tiles + tiles - 1) / tiles), dim3(N_THREADS),
            is_wide ? wide::BYTES : narrow::BYTES, *p);
}
