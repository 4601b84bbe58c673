/* Attention of many tokens over the KV cache, of one layer, by tensor cores: scores and values are products
 * of f16 with sums in f32, the softmax in one pass is f32 (Dao, arXiv 2307.08691).
 *
 * A block has 64 rows (a row: a query head of a token) of the heads that share a KV head, and a split of the
 * positions they see, a tile of them at a time. A warp has 16 of the rows: their queries, scores and outputs
 * stay in its registers, the scores' being laid out as the weights of the values must be.
 *
 * In shared memory lie the keys and the values of a tile, [TILE, WIDTH + 8] f16: with 8 more, eight rows that
 * ldmatrix reads at once lie in different banks. Both twice: the next tile is under way while one is used. */
#include "cache.cuh"
#include "parts.cuh"

namespace {

enum { N_WARPS = 4, N_THREADS = N_WARPS * SQ_LANES, WARP_ROWS = 16 };
static_assert(N_WARPS * WARP_ROWS == GPU_ATTENTION_ROWS, "partial results have room for all rows");

/* Heads of up to WIDTH, zeros behind them; TILE positions. */
template <int WIDTH> struct shape {
    static constexpr int TILE = WIDTH > 128 ? 32 : 64, STRIDE = WIDTH + 8;
    static constexpr int ELEMENTS = TILE * STRIDE; /* of a tile's keys, and of its values */
    static constexpr size_t BYTES = 4 * (size_t)ELEMENTS * sizeof(uint16_t);
    static constexpr int BLOCKS = WIDTH <= 128 ? 3 : 2; /* a multiprocessor's registers */
    /* Queries as high parts of 11 bits and, where registers are left, what these are off by: exp() turns what
     * scores are off by into shares of the weights. */
    static constexpr int PARTS = WIDTH <= 64 ? 2 : 1;
};

/* Keys or values of positions [first, …), those from `end` on being copies of the last. */
template <sq_kv_type KV, bool KEY, int WIDTH>
__device__ void tile_load(const gpu_attention &a, uint32_t kv_head, uint32_t first, uint32_t end,
                          uint16_t *to) {
    constexpr int VECTORS = WIDTH / 8;
    for (uint32_t i = threadIdx.x; i < shape<WIDTH>::TILE * VECTORS; i += N_THREADS) {
        uint32_t p = min(first + i / VECTORS, end - 1), at = i % VECTORS * 8;
        uint8_t *row = KEY ? key_at(a, kv_head, p) : value_at(a, kv_head, p);
        uint16_t *vector = to + i / VECTORS * shape<WIDTH>::STRIDE + at;
        if (KV == SQ_KV_F16 && at < a.pitch) {
            copy_async(vector, row + at * sizeof(uint16_t));
        } else {
            float x[8];
            row_load<KV, KEY>(row, a.pitch, at, x);
            *(uint4 *)vector = make_uint4(f16x2_bits(x[0], x[1]), f16x2_bits(x[2], x[3]),
                                          f16x2_bits(x[4], x[5]), f16x2_bits(x[6], x[7]));
        }
    }
}

template <sq_kv_type KV, int WIDTH>
__global__ void __launch_bounds__(N_THREADS, shape<WIDTH>::BLOCKS) attend(gpu_attention a) {
    using S = shape<WIDTH>;
    constexpr int TILE = S::TILE, STRIDE = S::STRIDE;
    uint16_t *tiles = shared_memory<uint16_t>(); /* [2, keys and values, TILE, STRIDE] */
    /* The last rows see most: theirs are the blocks to begin first. */
    const uint32_t kv_head = blockIdx.x, rows = gridDim.z - 1 - blockIdx.z;
    const uint32_t warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES, g = lane / 4, q = lane % 4;
    const uint32_t n_group = a.n_heads / a.n_kv_heads, first_row = rows * GPU_ATTENTION_ROWS;
    const uint32_t last_row = min(first_row + GPU_ATTENTION_ROWS, a.n_tokens * n_group) - 1;
    const uint32_t warp_row = min(first_row + warp * WARP_ROWS, last_row);
    const uint32_t warp_last_row = min(warp_row + WARP_ROWS - 1, last_row);
    next_kernel_start();
    previous_kernel_wait();
    const position_range split = split_range(a, first_row, last_row, TILE);
    auto load = [&](uint32_t first, uint32_t set) {
        tile_load<KV, true, WIDTH>(a, kv_head, first, split.end, tiles + 2 * set * S::ELEMENTS);
        tile_load<KV, false, WIDTH>(a, kv_head, first, split.end, tiles + (2 * set + 1) * S::ELEMENTS);
        copies_commit();
    };
    if (split.begin < split.end)
        load(split.begin, 0);

    /* A lane has rows g and g + 8 of the warp's; beyond the last row they are copies of it. */
    uint32_t row[2], query[S::PARTS][WIDTH / 16][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        row[i] = first_row + warp * WARP_ROWS + g + 8 * i;
        uint32_t there = min(row[i], last_row), head = kv_head * n_group + there % n_group;
        const float *from = a.qkv + (size_t)(there / n_group) * a.stride + head * a.head_dim + 2 * q;
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j++) {
            bool inside = 8 * j + 2 * q < a.head_dim;
            float2 x = inside ? *(const float2 *)(from + 8 * j) : make_float2(0, 0);
            x = make_float2(x.x * a.scale, x.y * a.scale);
#pragma unroll
            for (int part = 0; part < S::PARTS; part++) {
                uint32_t bits = query[part][j / 2][i + j % 2 * 2] = f16x2_bits(x.x, x.y);
                x = make_float2(x.x - f16_value(bits), x.y - f16_value(bits >> 16));
            }
        }
    }
    /* Positions that all rows of the warp see. */
    const uint32_t all_begin = row_range(a, warp_last_row).begin, all_end = row_range(a, warp_row).end;

    float out[WIDTH / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (uint32_t first = split.begin, set = 0; first < split.end; first += TILE, set ^= 1) {
        copies_wait<0>();
        __syncthreads(); /* this tile is complete, and nobody reads the other set any more */
        if (first + TILE < split.end)
            load(first + TILE, set ^ 1);

        float score[TILE / 8][4] = {};
        const uint16_t *keys =
            tiles + 2 * set * S::ELEMENTS + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int step = 0; step < WIDTH / 16; step++)
#pragma unroll
            for (int n = 0; n < TILE / 16; n++) {
                uint32_t b[4];
                matrices_load(b, keys + 16 * n * STRIDE + 16 * step);
#pragma unroll
                for (int part = 0; part < S::PARTS; part++) {
                    mma_f16(score[2 * n], query[part][step], b);
                    mma_f16(score[2 * n + 1], query[part][step], b + 2);
                }
            }
        if (a.cap > 0)
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    score[n][j] = a.cap * tanhf(score[n][j] / a.cap);
        if (first < all_begin || first + TILE > all_end) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                position_range seen = row_range(a, min(row[i], last_row));
#pragma unroll
                for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        uint32_t p = first + 8 * n + 2 * q + j;
                        if (p < seen.begin || p >= seen.end)
                            score[n][2 * i + j] = -INFINITY;
                    }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float larger = largest[i];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
                larger = fmaxf(larger, fmaxf(score[n][2 * i], score[n][2 * i + 1]));
            larger = lanes_max(larger, 4);
            float base = larger > -INFINITY ? larger : 0, shrink = __expf(largest[i] - base);
            largest[i] = larger;
            sum[i] *= shrink;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; j++) {
                    score[n][j] = __expf(score[n][j] - base);
                    sum[i] += score[n][j];
                }
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++) {
                out[n][2 * i] *= shrink;
                out[n][2 * i + 1] *= shrink;
            }
        }
        const uint16_t *values = tiles + (2 * set + 1) * S::ELEMENTS + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
            uint32_t weights[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = score[2 * step + i / 2] + i % 2 * 2;
                weights[i] = f16x2_bits(pair[0], pair[1]);
            }
#pragma unroll
            for (int n = 0; n < WIDTH / 16; n++) {
                uint32_t b[4];
                matrices_load_transposed(b, values + 16 * step * STRIDE + 16 * n);
                mma_f16(out[2 * n], weights, b);
                mma_f16(out[2 * n + 1], weights, b + 2);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] = lanes_sum(sum[i], 4);
        if (row[i] > last_row)
            continue;
        float *part = split_part(a, blockIdx.y, kv_head, row[i]);
        uint32_t head = kv_head * n_group + row[i] % n_group;
        if (gridDim.y > 1 && q == 0) {
            part[0] = largest[i];
            part[1] = sum[i];
        }
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) {
            uint32_t at = 8 * n + 2 * q;
            float x = out[n][2 * i], y = out[n][2 * i + 1];
            if (at < a.head_dim && gridDim.y > 1)
                *(float2 *)(part + 2 + at) = make_float2(x, y);
            else if (at < a.head_dim)
                operand_store_pair(a.out, row[i] / n_group, head * a.head_dim + at, x / sum[i], y / sum[i]);
        }
    }
    if (gridDim.y == 1 || !splits_complete(a, kv_head, rows, shared_memory<uint32_t>()))
        return;
    float *shares = shared_memory<float>() + 4 + warp * MAX_PARTS;
    for (uint32_t r = first_row + warp; r <= last_row; r += N_WARPS)
        row_finish(a, kv_head, r, {split_part(a, 0, kv_head, r), split_stride(a), gridDim.y, shares});
}

struct variant {
    void (*attend)(gpu_attention);
    size_t shared_bytes;
};

template <int WIDTH> variant variant_with(sq_kv_type kv) {
    return {kv == SQ_KV_F16 ? attend<SQ_KV_F16, WIDTH> : attend<SQ_KV_Q8, WIDTH>, shape<WIDTH>::BYTES};
}

variant variant_of(sq_kv_type kv, uint32_t head_dim) {
    return head_dim <= 64    ? variant_with<64>(kv)
           : head_dim <= 128 ? variant_with<128>(kv)
                             : variant_with<256>(kv);
}

} // namespace

cudaError_t gpu_prompt_attention_prepare(const gpu_card *card) {
    cudaError_t result = cudaSuccess;
    for (sq_kv_type kv : {SQ_KV_F16, SQ_KV_Q8})
        for (uint32_t head_dim : {64u, 128u, 256u})
            result = result ? result : gpu_kernel_prepare(variant_of(kv, head_dim).attend, card);
    return result;
}

void gpu_attend_prompt(gpu_launch *l, const gpu_attention *a) {
    uint32_t n_rows = a->n_tokens * (a->n_heads / a->n_kv_heads);
    uint32_t n_row_blocks = (n_rows + GPU_ATTENTION_ROWS - 1) / GPU_ATTENTION_ROWS;
    variant v = variant_of(a->kv, a->head_dim);
    gpu_run(l, v.attend, dim3(a->n_kv_heads, splits_of(l->card, a->n_kv_heads * n_row_blocks), n_row_blocks),
            dim3(N_THREADS), v.shared_bytes, *a);
}
