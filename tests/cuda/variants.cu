#include "variants.h"

#include "decode.cuh"

namespace {

enum { N_WARPS = 8, N_THREADS = N_WARPS * SQ_LANES, BLOCKS_PER_PROCESSOR = 2, AT_ONCE = 4, BITS = 4 };

uint32_t blocks_of(const gpu_launch *l, uint32_t most) {
    return min(most, (uint32_t)(BLOCKS_PER_PROCESSOR * l->card->n_processors));
}

/* ---- planes of bytes --------------------------------------------------------------------------- */

/* Padded so that the eight columns that lanes read at once meet no bank twice. */
enum { PLANE_PAD = 32, PLANE_TOKENS = 4 };

/* Bytes of four entries of a row. */
__device__ __forceinline__ uint32_t bytes_look_up(const uint32_t table[4], uint32_t selectors,
                                                  uint32_t picks) {
    return bytes_permute(bytes_permute(table[0], table[1], selectors),
                         bytes_permute(table[2], table[3], selectors), picks);
}

__device__ __forceinline__ void planes_multiply(const span_codes<BITS> &codes, const tables<BITS> &t,
                                                const int8_t *column, int high[4], int low[4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t a_high[4], a_low[4], b[2] = {0, 0};
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint32_t c = component(codes.v[0], 2 * half + step);
            uint32_t selectors = bits_take(c, 0x77777777, 0),
                     picks = bits_take(c >> 1, 0x44444444, 0x32103210);
#pragma unroll
            for (int row = 0; row < 2; row++, selectors >>= 16, picks >>= 16) {
                a_high[2 * step + row] = bytes_look_up(t.high[row], selectors, picks);
                a_low[2 * step + row] = bytes_look_up(t.low[row], selectors, picks);
            }
        }
        if (column) {
            uint2 x = *(const uint2 *)(column + 32 * half);
            b[0] = x.x;
            b[1] = x.y;
        }
        mma_s8(high, a_high, b);
        mma_s8(low, a_low, b);
    }
}

__global__ void __launch_bounds__(N_THREADS) planes(variant_planes p) {
    int8_t *columns = shared_memory<int8_t>();
    const uint32_t warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES;
    const uint32_t n_columns = 2 * p.n_tokens, width = p.w.n_spans * SQ_CHUNK, stride = width + PLANE_PAD;
    const uint32_t first_tile = (uint64_t)p.w.n_tiles * blockIdx.x / gridDim.x;
    const uint32_t last_tile = (uint64_t)p.w.n_tiles * (blockIdx.x + 1) / gridDim.x;
    float *sums = (float *)(columns + (size_t)n_columns * stride); /* [2, N_WARPS, n_tokens, 16] */

    span_codes<BITS> group[AT_ONCE], next[AT_ONCE];
    auto group_load = [&](uint32_t tile, uint32_t span) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (tile < last_tile && span + i * N_WARPS < p.w.n_spans)
                next[i].load(p.w, tile, span + i * N_WARPS, lane);
    };
    group_load(first_tile, warp);
    next_kernel_start();
    previous_kernel_wait();
    for (uint32_t i = threadIdx.x; i < n_columns * (width / 16); i += N_THREADS) {
        uint32_t column = i / (width / 16), at = i % (width / 16) * 16;
        copy_async(columns + (size_t)column * stride + at, p.in + (size_t)column * p.stride + at);
    }
    copies_commit();
    copies_wait<0>();
    __syncthreads();

    const int8_t *mine =
        lane / 4 < n_columns ? columns + (size_t)(lane / 4) * stride + 8 * (lane % 4) : nullptr;
    for (uint32_t tile = first_tile; tile < last_tile; tile++) {
        tables<BITS> t;
        t.load(p.w, tile, lane);
        int high[4] = {}, low[4] = {};
        for (uint32_t turn = 0; turn < p.w.n_spans; turn += AT_ONCE * N_WARPS) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                group[i] = next[i];
            bool last = turn + AT_ONCE * N_WARPS >= p.w.n_spans;
            group_load(last ? tile + 1 : tile, warp + (last ? 0 : turn + AT_ONCE * N_WARPS));
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                uint32_t span = turn + warp + i * N_WARPS;
                if (span >= p.w.n_spans)
                    break;
                planes_multiply(group[i], t, mine ? mine + span * SQ_CHUNK : nullptr, high, low);
            }
        }
        uint32_t token = lane % 4, n = p.n_tokens * SQ_TILE;
        float *set = sums + (size_t)((tile - first_tile) % 2) * N_WARPS * n;
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (token < p.n_tokens)
                set[warp * n + token * SQ_TILE + lane / 4 + 8 * half] =
                    65536.0f * (float)high[2 * half] + 256.0f * (float)(high[2 * half + 1] + low[2 * half]) +
                    (float)low[2 * half + 1];
        __syncthreads();
        if (threadIdx.x < n) {
            uint32_t row = tile * SQ_TILE + threadIdx.x % SQ_TILE, of = threadIdx.x / SQ_TILE;
            float y = 0;
            for (uint32_t w = 0; w < N_WARPS; w++)
                y += set[w * n + threadIdx.x];
            p.out[(size_t)of * p.w.n_tiles * SQ_TILE + row] = y * p.scales[row] * p.in_scales[of];
        }
    }
}

/* ---- a table in a warp's lanes ----------------------------------------------------------------- */

enum { SHUFFLE_ROWS = 4 };

__global__ void __launch_bounds__(N_THREADS) shuffle(variant_shuffle p) {
    float *x = shared_memory<float>();
    const uint32_t warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES, n_blocks = p.n_in / 1024;
    next_kernel_start();
    previous_kernel_wait();
    for (uint32_t i = threadIdx.x; i < p.n_in; i += N_THREADS)
        x[i] = p.in[i];
    __syncthreads();
    for (uint32_t row = (blockIdx.x * N_WARPS + warp) * SHUFFLE_ROWS; row < p.n_out;
         row += gridDim.x * N_WARPS * SHUFFLE_ROWS) {
        float entry[SHUFFLE_ROWS], sums[SHUFFLE_ROWS] = {};
#pragma unroll
        for (int r = 0; r < SHUFFLE_ROWS; r++)
            entry[r] = __ldg(p.tables + (size_t)(row + r) * 16 + lane % 16);
        for (uint32_t block = 0; block < n_blocks; block++) {
            uint4 codes[SHUFFLE_ROWS];
#pragma unroll
            for (int r = 0; r < SHUFFLE_ROWS; r++)
                codes[r] = load_once(p.codes + ((size_t)(row + r) * n_blocks + block) * SQ_LANES + lane);
#pragma unroll
            for (int j = 0; j < 32; j++) {
                float value = x[block * 1024 + j * SQ_LANES + lane];
#pragma unroll
                for (int r = 0; r < SHUFFLE_ROWS; r++) {
                    int code = (int)(component(codes[r], j / 8) >> 4 * (j % 8));
                    sums[r] += value * __shfl_sync(0xffffffff, entry[r], code, 16);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < SHUFFLE_ROWS; r++) {
            float sum = lanes_sum(sums[r], SQ_LANES);
            if (lane == 0)
                p.out[row + r] = sum;
        }
    }
}

/* ---- limits ------------------------------------------------------------------------------------ */

__global__ void __launch_bounds__(N_THREADS) read_codes(gpu_matrix w, uint32_t *out) {
    const size_t n = sq_vector_at(w.bits, w.n_spans, w.n_tiles, 0, 0), turn = (size_t)gridDim.x * N_THREADS;
    uint32_t all = 0;
    next_kernel_start();
    previous_kernel_wait();
    for (size_t i = (size_t)blockIdx.x * N_THREADS + threadIdx.x; i < n; i += AT_ONCE * turn) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            v[k] = i + k * turn < n ? load_once(w.codes + i + k * turn) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            all |= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    if (all == 0x12345678) /* hardly ever, and unknown to the compiler */
        *out = all;
}

__global__ void __launch_bounds__(N_THREADS) permute(uint32_t n, uint32_t *out) {
    uint32_t i = blockIdx.x * N_THREADS + threadIdx.x, chain[4] = {i, i + 1, i + 2, i + 3};
    for (int k = 0; k < VARIANT_PERMUTES / 4; k++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            chain[c] = bytes_permute(chain[c], i, chain[c]);
    if (i < n)
        out[i] = chain[0] ^ chain[1] ^ chain[2] ^ chain[3];
}

size_t planes_bytes(const variant_planes *p) {
    return (size_t)2 * p->n_tokens * (p->w.n_spans * SQ_CHUNK + PLANE_PAD) +
           (size_t)2 * N_WARPS * p->n_tokens * SQ_TILE * sizeof(float);
}

} // namespace

cudaError_t variants_prepare(const gpu_card *card) {
    cudaError_t result = gpu_kernel_prepare(planes, card);
    return result ? result : gpu_kernel_prepare(shuffle, card);
}

void variant_planes_launch(gpu_launch *l, const variant_planes *p) {
    gpu_run(l, planes, dim3(blocks_of(l, p->w.n_tiles)), dim3(N_THREADS), planes_bytes(p), *p);
}

void variant_shuffle_launch(gpu_launch *l, const variant_shuffle *p) {
    uint32_t rows = N_WARPS * SHUFFLE_ROWS;
    gpu_run(l, shuffle, dim3(blocks_of(l, (p->n_out + rows - 1) / rows)), dim3(N_THREADS),
            p->n_in * sizeof(float), *p);
}

void variant_read_launch(gpu_launch *l, const gpu_matrix *w, uint32_t *out) {
    gpu_run(l, read_codes, dim3(blocks_of(l, w->n_tiles)), dim3(N_THREADS), 0, *w, out);
}

void variant_permute_launch(gpu_launch *l, uint32_t n, uint32_t *out) {
    gpu_run(l, permute, dim3((n + N_THREADS - 1) / N_THREADS), dim3(N_THREADS), 0, n, out);
}
