/* y = W x for 1 to 16 tokens, with all that comes before and after: the norm's root mean square, kept
 * weights, bias, and what becomes of y.
 *
 *     a block     some tiles of 16 rows, one after another; its warps share the spans of inputs
 *     a warp      decodes its spans into the A operand of mma, for activations in shared memory. Up to 8
 *                 tokens columns 2t and 2t + 1 of B are the two parts of token t's activations; of more
 *                 tokens column t is the high part alone
 *     a thread    also sums the kept weights of one row: blockDim / 16 threads share a row
 *
 * Partial sums meet in shared memory and are added in a fixed order: no atomics, the same result every time.
 * Codes of the next tile are under way while a tile ends, and the first ones before the kernel that makes the
 * activations is through. */
#include "decode.cuh"

namespace {

/* Spans that a warp loads at once: 32 to 64 bytes a lane, and as much again for the next turn. */
SQ_BOTH constexpr int spans_at_once(int bits) {
    return bits == 4 ? 4 : bits == 2 || bits == 8 ? 2 : 1;
}

/* Shared memory, for `n_columns` columns of a phase of the inputs. The padding puts neighbouring columns 64
 * bytes apart modulo 128: the eight lanes that read at once meet no bank twice. */
enum { COLUMN_PAD = 32 };

struct layout {
    uint32_t phase_spans, column_stride; /* of the activations, f16 */
    size_t sums_at, sparse_at, scales_at, bytes;
};

__host__ __device__ layout layout_of(uint32_t bits, uint32_t n_tokens, uint32_t n_columns, uint32_t n_warps,
                                     uint32_t phase_spans) {
    layout l;
    l.phase_spans = phase_spans;
    l.column_stride = phase_spans * sq_span_chunks(bits) * SQ_CHUNK + COLUMN_PAD;
    l.sums_at = (size_t)n_columns * l.column_stride * sizeof(uint16_t);
    l.sparse_at = l.sums_at + (size_t)2 * n_warps * n_tokens * SQ_TILE * sizeof(float);
    l.scales_at = l.sparse_at + (size_t)2 * n_tokens * SQ_TILE * sizeof(float);
    l.bytes = l.scales_at + GPU_GEMV_TOKENS * sizeof(float);
    return l;
}

/* Where a warp is in its stream of spans: tiles, in each the phases, in each its share of the spans. */
struct cursor {
    uint32_t tile, phase, span;
};

template <int BITS>
__device__ __forceinline__ void group_load(span_codes<BITS> (&group)[spans_at_once(BITS)],
                                           const gpu_matrix &w, const cursor &at, uint32_t last_tile,
                                           uint32_t end, uint32_t n_warps, uint32_t lane) {
#pragma unroll
    for (int i = 0; i < spans_at_once(BITS); i++)
        if (at.tile < last_tile && at.span + i * n_warps < end)
            group[i].load(w, at.tile, at.span + i * n_warps, lane);
}

/* Makes of a mixture's product that of the block's job; false: this width has nothing to do. */
__device__ bool job_take(gpu_product &p) {
    gpu_job job = p.jobs[blockIdx.y];
    if (!job.n || p.experts[job.expert].bits != p.w.bits)
        return false;
    p.w = p.experts[job.expert];
    p.n_tokens = job.n;
    if (p.in_rows)
        p.in_rows += job.first;
    else
        p.in.data += (size_t)2 * job.first * p.in.stride;
    p.out = p.out ? p.out + (size_t)job.first * p.out_stride : nullptr;
    p.next.data += (size_t)2 * job.first * p.next.stride;
    return true;
}

/* The token of the operand that is the product's token t. */
template <bool ROUTED> __device__ __forceinline__ uint32_t in_row(const gpu_product &p, uint32_t t) {
    return ROUTED && p.in_rows ? p.in_rows[t] : t;
}

/* Inputs [first, first + n) of all columns to shared memory. */
template <bool SPLIT, bool ROUTED>
__device__ void activations_load(const gpu_product &p, const layout &l, uint32_t first, uint32_t n,
                                 uint16_t *columns) {
    uint32_t vectors = n / 8, n_columns = (SPLIT ? 2 : 1) * p.n_tokens;
    for (uint32_t i = threadIdx.x; i < n_columns * vectors; i += blockDim.x) {
        uint32_t column = i / vectors, at = i % vectors * 8;
        uint32_t row = SPLIT ? 2 * in_row<ROUTED>(p, column / 2) + column % 2 : 2 * column;
        copy_async(columns + (size_t)column * l.column_stride + at,
                   p.in.data + (size_t)row * p.in.stride + first + at);
    }
    copies_commit();
    copies_wait<0>();
}

/* 1 / the root mean square of each token, by a warp each. */
template <bool ROUTED>
__device__ void scales_load(const gpu_product &p, uint32_t warp, uint32_t lane, uint32_t n_warps,
                            float *scales) {
    const gpu_squares &s = p.in_squares;
    for (uint32_t t = warp; t < p.n_tokens; t += n_warps) {
        float sum = 0;
        for (uint32_t i = lane; s.sums && i < s.n_tiles; i += SQ_LANES)
            sum += s.sums[(size_t)in_row<ROUTED>(p, t) * s.stride + i];
        sum = lanes_sum(sum, SQ_LANES);
        if (lane == 0)
            scales[t] = s.sums ? 1 / sqrtf(sum / (float)s.n + s.eps) : 1;
    }
}

/* Kept weights of a row, dealt to `n` threads of which this is number `i`: entries [begin, end), of columns
 * that are in the phase. `entry` is the thread's first, loaded before. */
template <int TOKENS, bool SPLIT>
__device__ __forceinline__ void sparse_add(const gpu_product &p, const layout &l, const uint16_t *columns,
                                           uint32_t phase_first, uint32_t phase_inputs, uint32_t entry,
                                           uint32_t at, uint32_t end, uint32_t n, float sums[TOKENS]) {
    for (; at < end; at += n, entry = at < end ? __ldg(p.w.sparse + at) : 0) {
        uint32_t column = (entry & 0xffff) - phase_first;
        if (column >= phase_inputs) /* also where it lies before the phase */
            continue;
        float value = f16_value(entry >> 16);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            if (t < (int)p.n_tokens) {
                const uint16_t *x = columns + (size_t)(SPLIT ? 2 : 1) * t * l.column_stride + column;
                sums[t] += value * operand_value(x[0], SPLIT ? x[l.column_stride] : 0);
            }
    }
}

/* What becomes of y, of row `slot` of the tile and token t. All lanes of the warp call it, those of tokens
 * that are not there too; 16 neighbouring lanes have the slots of a token. */
__device__ void y_use(const gpu_product &p, uint32_t tile, uint32_t slot, uint32_t t, float y) {
    bool there = t < p.n_tokens;
    uint32_t row = tile * SQ_TILE + slot;
    switch (p.use) {
    case GPU_STORE:
        if (there)
            p.out[(size_t)t * p.out_stride + row] = p.cap > 0 ? p.cap * tanhf(y / p.cap) : y;
        break;
    case GPU_ADD: {
        float x = 0;
        if (there) {
            float *at = p.out + (size_t)t * p.out_stride + row;
            *at = x = *at + y;
            operand_store(p.next, t, row, x * p.next_weight[row]);
        }
        float squares = lanes_sum(x * x, SQ_TILE);
        if (there && slot == 0)
            p.next_squares[(size_t)t * p.w.n_tiles + tile] = squares;
        break;
    }
    case GPU_GATED: {
        float up = __shfl_xor_sync(0xffffffff, y, 8);
        if (there && slot < 8)
            operand_store(p.next, t, tile * 8 + slot, gated(p.activation, y, up));
        break;
    }
    case GPU_OPERAND:
        if (there)
            operand_store(p.next, t, row, p.relu ? fmaxf(y, 0) : y);
        break;
    }
}

/* GROUPS: of eight columns; SPLIT: a token has two; ROUTED: a block has a job of a mixture's. */
template <int BITS, int GROUPS, bool SPLIT, bool ROUTED>
__global__ void __launch_bounds__(512) gemv(gpu_product p, uint32_t phase_spans) {
    constexpr int TOKENS = (SPLIT ? 4 : 8) * GROUPS;
    constexpr int AT_ONCE = spans_at_once(BITS);
    if constexpr (ROUTED) {
        previous_kernel_wait();
        if (!job_take(p))
            return;
    }
    uint8_t *memory = shared_memory<uint8_t>();
    uint32_t n_warps = blockDim.x / SQ_LANES, warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES;
    const uint32_t n_columns = (SPLIT ? 2 : 1) * p.n_tokens;
    layout l = layout_of(BITS, p.n_tokens, n_columns, n_warps, phase_spans);
    uint16_t *columns = (uint16_t *)memory;
    float *scales = (float *)(memory + l.scales_at);
    const uint32_t first_tile = (uint64_t)p.w.n_tiles * blockIdx.x / gridDim.x;
    const uint32_t last_tile = (uint64_t)p.w.n_tiles * (blockIdx.x + 1) / gridDim.x;
    const uint32_t n_spans = p.w.n_spans, span_inputs = sq_span_chunks(BITS) * SQ_CHUNK;

    /* A thread's row of kept weights, and its place among those who share it. */
    const uint32_t n_sharers = blockDim.x / SQ_TILE, my_slot = threadIdx.x / n_sharers;
    const uint32_t my_place = threadIdx.x % n_sharers;

    cursor at = {first_tile, 0, warp};
    span_codes<BITS> group[AT_ONCE], next[AT_ONCE];
    group_load<BITS>(next, p.w, at, last_tile, min(phase_spans, n_spans), n_warps, lane);
    next_kernel_start();
    previous_kernel_wait();
    scales_load<ROUTED>(p, warp, lane, n_warps, scales);

    const uint16_t *lane_columns[GROUPS];
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        uint32_t column = 8 * i + lane / 4;
        lane_columns[i] =
            column < n_columns ? columns + (size_t)column * l.column_stride + 8 * (lane % 4) : nullptr;
    }
    const bool one_phase = phase_spans >= n_spans;
    if (one_phase)
        activations_load<SPLIT, ROUTED>(p, l, 0, n_spans * span_inputs, columns);
    __syncthreads();

    for (uint32_t tile = first_tile; tile < last_tile; tile++) {
        tables<BITS> t;
        t.load(p.w, tile, lane);
        uint32_t sparse_at = 0, sparse_end = 0, entry = 0;
        if (p.w.sparse_first) {
            const uint32_t *row = p.w.sparse_first + (size_t)tile * SQ_TILE + my_slot;
            sparse_at = __ldg(row) + my_place;
            sparse_end = __ldg(row + 1);
            entry = sparse_at < sparse_end ? __ldg(p.w.sparse + sparse_at) : 0;
        }
        float sums[GROUPS][4] = {}, sparse_sums[TOKENS] = {};
        for (uint32_t phase = 0; phase < n_spans; phase += phase_spans) {
            uint32_t end = min(phase + phase_spans, n_spans);
            if (!one_phase) {
                __syncthreads();
                activations_load<SPLIT, ROUTED>(p, l, phase * span_inputs, (end - phase) * span_inputs,
                                                columns);
                __syncthreads();
            }
            /* All warps take as many turns, whether they have spans left or not. */
            for (uint32_t turn = phase; turn < end; turn += AT_ONCE * n_warps) {
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++)
                    group[i] = next[i];
                uint32_t span = turn + warp;
                if (turn + AT_ONCE * n_warps < end)
                    at = {tile, phase, span + AT_ONCE * n_warps};
                else if (end < n_spans)
                    at = {tile, end, end + warp};
                else
                    at = {tile + 1, 0, warp};
                group_load<BITS>(next, p.w, at, last_tile, min(at.phase + phase_spans, n_spans), n_warps,
                                 lane);
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    if (span + i * n_warps >= end)
                        break;
                    const uint16_t *x[GROUPS];
#pragma unroll
                    for (int n = 0; n < GROUPS; n++)
                        x[n] = lane_columns[n]
                                   ? lane_columns[n] + (size_t)(span + i * n_warps - phase) * span_inputs
                                   : nullptr;
                    span_multiply<BITS, GROUPS>(group[i], t, x, sums);
                }
            }
            if (p.w.sparse_first)
                sparse_add<TOKENS, SPLIT>(p, l, columns, phase * span_inputs, (end - phase) * span_inputs,
                                          entry, sparse_at, sparse_end, n_sharers, sparse_sums);
        }

        /* Two sets of sums, by turns: no thread is more than a barrier ahead. */
        uint32_t set = (tile - first_tile) % 2;
        float *warp_sums = (float *)(memory + l.sums_at) + (size_t)set * n_warps * p.n_tokens * SQ_TILE;
        float *row_sparse = (float *)(memory + l.sparse_at) + (size_t)set * p.n_tokens * SQ_TILE;
        float *to = warp_sums + (size_t)warp * p.n_tokens * SQ_TILE + lane / 4;
#pragma unroll
        for (int n = 0; n < GROUPS; n++)
#pragma unroll
            for (int j = 0; j < (SPLIT ? 1 : 2); j++) {
                uint32_t token = SPLIT ? 4 * n + lane % 4 : 8 * n + 2 * (lane % 4) + j;
                if (token < p.n_tokens) {
                    to[token * SQ_TILE] = operand_sum(sums[n][j], SPLIT ? sums[n][1] : 0);
                    to[token * SQ_TILE + 8] = operand_sum(sums[n][2 + j], SPLIT ? sums[n][3] : 0);
                }
            }
        if (p.w.sparse_first) {
#pragma unroll
            for (int token = 0; token < TOKENS; token++)
                if (token < (int)p.n_tokens) {
                    float sum = lanes_sum(sparse_sums[token], n_sharers);
                    if (my_place == 0)
                        row_sparse[token * SQ_TILE + my_slot] = sum;
                }
        }
        __syncthreads();
        for (uint32_t i = warp * SQ_LANES; i < p.n_tokens * SQ_TILE; i += blockDim.x) {
            uint32_t slot = lane % SQ_TILE, token = (i + lane) / SQ_TILE;
            float y = 0;
            if (token < p.n_tokens) {
                for (uint32_t w = 0; w < n_warps; w++)
                    y += warp_sums[((size_t)w * p.n_tokens + token) * SQ_TILE + slot];
                y *= row_scale(p.w, tile * SQ_TILE + slot);
                y += p.w.sparse_first ? row_sparse[token * SQ_TILE + slot] : 0;
                y *= scales[token];
                y += p.w.bias ? p.w.bias[tile * SQ_TILE + slot] : 0;
            }
            y_use(p, tile, slot, token, y);
        }
    }
}

using gemv_kernel = void (*)(gpu_product, uint32_t);

template <int BITS> gemv_kernel kernel_of(uint32_t n_tokens, bool routed) {
    if (routed)
        return n_tokens <= 4 ? gemv<BITS, 1, true, true> : gemv<BITS, 2, true, true>;
    return n_tokens <= 4   ? gemv<BITS, 1, true, false>
           : n_tokens <= 8 ? gemv<BITS, 2, true, false>
                           : gemv<BITS, 2, false, false>;
}

gemv_kernel kernel_of(uint32_t bits, uint32_t n_tokens, bool routed) {
    switch (bits) {
    case 2:
        return kernel_of<2>(n_tokens, routed);
    case 3:
        return kernel_of<3>(n_tokens, routed);
    case 4:
        return kernel_of<4>(n_tokens, routed);
    case 8:
        return kernel_of<8>(n_tokens, routed);
    default:
        return kernel_of<16>(n_tokens, routed);
    }
}

} // namespace

cudaError_t gpu_gemv_prepare(const gpu_card *card) {
    cudaError_t result = cudaSuccess;
    for (uint32_t bits : {2u, 3u, 4u, 8u, 16u})
        for (uint32_t n_tokens : {4u, 8u, 16u})
            for (bool routed : {false, true})
                if (result == cudaSuccess)
                    result = gpu_kernel_prepare(kernel_of(bits, n_tokens, routed), card);
    return result;
}

void gpu_gemv(gpu_launch *l, const gpu_product *p, gpu_shape shape) {
    uint32_t n_warps = shape.n_warps ? shape.n_warps : 8;
    uint32_t blocks = shape.blocks_per_processor ? shape.blocks_per_processor : 2;
    uint32_t n_columns = (p->n_tokens > GPU_FEW_TOKENS ? 1 : 2) * p->n_tokens, phase_spans = p->w.n_spans;
    size_t budget = l->card->shared_bytes / blocks - 1024; /* which the system keeps of each block's */
    layout chosen = layout_of(p->w.bits, p->n_tokens, n_columns, n_warps, phase_spans);
    while (phase_spans > 1 && chosen.bytes > budget) {
        phase_spans = (phase_spans + 1) / 2;
        chosen = layout_of(p->w.bits, p->n_tokens, n_columns, n_warps, phase_spans);
    }
    uint32_t n_jobs = p->experts ? p->n_jobs : 1;
    uint32_t n_blocks = min(p->w.n_tiles, (blocks * l->card->n_processors + n_jobs - 1) / n_jobs);
    gpu_run(l, kernel_of(p->w.bits, p->n_tokens, p->experts), dim3(n_blocks, n_jobs),
            dim3(n_warps * SQ_LANES), chosen.bytes, *p, phase_spans);
}
