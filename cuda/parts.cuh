/* Softmax in parts: each part of a row of attention has the largest score it saw, the sum of the weights
 * exp(score - largest), and the weighted values [head_dim], one behind the other. A part that saw nothing has
 * -infinity and zeros. Parts are merged in a fixed order. */
#ifndef SQ_CUDA_PARTS_CUH
#define SQ_CUDA_PARTS_CUH

#include "decode.cuh"

enum { MAX_PARTS = SQ_LANES };

/* `n` parts of a row, at most MAX_PARTS, `stride` floats apart; shares: [MAX_PARTS] of the warp's own. */
struct row_parts {
    const float *at;
    size_t stride;
    uint32_t n;
    float *shares;

    /* The largest score of all and the sum of all weights; and what each part counts for. By a warp. */
    __device__ float2 merge() const {
        uint32_t lane = threadIdx.x % SQ_LANES;
        bool there = lane < n;
        float mine = there ? at[lane * stride] : -INFINITY, largest = lanes_max(mine, SQ_LANES);
        float share = mine > -INFINITY ? expf(mine - largest) : 0;
        float sum = lanes_sum(there ? share * at[lane * stride + 1] : 0, SQ_LANES);
        shares[lane] = share;
        __syncwarp();
        return make_float2(largest, sum);
    }
    /* The weighted values of all; behind merge. */
    __device__ float value(uint32_t component) const {
        float sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += shares[i] * at[i * stride + 2 + component];
        return sum;
    }
};

/* Splits of the positions, of blocks that are n_blocks without: so many that they fill the card. */
static inline uint32_t splits_of(const gpu_card *card, uint32_t n_blocks) {
    uint32_t n = gpu_attention_blocks(card) / n_blocks;
    return n < 1 ? 1 : n > MAX_PARTS ? (uint32_t)MAX_PARTS : n;
}

struct position_range {
    uint32_t begin, end;
};

/* The positions that row `row` sees: a token's query heads that share a KV head, then the next token's. */
static __device__ __forceinline__ position_range row_range(const gpu_attention &a, uint32_t row) {
    uint32_t end = a.step->position + row / (a.n_heads / a.n_kv_heads) + 1;
    return {a.window && end > a.window ? end - a.window : 0, end};
}

/* This block's split of what rows [first, last] see, a multiple of `unit` long but for the last one. */
static __device__ __forceinline__ position_range split_range(const gpu_attention &a, uint32_t first,
                                                             uint32_t last, uint32_t unit) {
    uint32_t oldest = row_range(a, first).begin, end = row_range(a, last).end;
    uint32_t length = ((end - oldest + gridDim.y - 1) / gridDim.y + unit - 1) / unit * unit;
    uint32_t begin = min(oldest + blockIdx.y * length, end);
    return {begin, min(begin + length, end)};
}

/* Where a split leaves its part of a row; that of the next split is split_stride floats on. */
static __device__ __forceinline__ size_t split_stride(const gpu_attention &a) {
    return (size_t)a.n_heads * a.n_tokens * (a.head_dim + 2);
}
static __device__ __forceinline__ float *split_part(const gpu_attention &a, uint32_t split, uint32_t kv_head,
                                                    uint32_t row) {
    uint32_t n_rows = a.n_heads / a.n_kv_heads * a.n_tokens;
    return a.partial + split * split_stride(a) + ((size_t)kv_head * n_rows + row) * (a.head_dim + 2);
}

/* Whether all other splits of the same rows, of which a block is number `rows` of gridDim.z, have left their
 * parts. Called by all threads, behind the block's own; `flag`: in shared memory. */
static __device__ bool splits_complete(const gpu_attention &a, uint32_t kv_head, uint32_t rows,
                                       uint32_t *flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        *flag = atomicInc(a.arrivals + kv_head * gridDim.z + rows, gridDim.y - 1) == gridDim.y - 1;
    __syncthreads();
    __threadfence();
    return *flag;
}

/* Merges the parts of a row into the output, by a warp. */
static __device__ void row_finish(const gpu_attention &a, uint32_t kv_head, uint32_t row,
                                  const row_parts &parts) {
    uint32_t n_group = a.n_heads / a.n_kv_heads, head = kv_head * n_group + row % n_group;
    float sum = parts.merge().y;
    for (uint32_t i = threadIdx.x % SQ_LANES; i < a.head_dim; i += SQ_LANES)
        operand_store(a.out, row / n_group, head * a.head_dim + i, parts.value(i) / sum);
    __syncwarp();
}

#endif
