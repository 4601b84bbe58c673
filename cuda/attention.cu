/* Rotation, the KV cache and attention over it, of one layer.
 *
 * A block has some rows (a row: a query head of a token) of the heads that share a KV head, and a split of
 * the positions they see; of few tokens it also norms and rotates its queries, and stores the new keys and
 * values of its split, before it reads them. A team of 8 lanes takes a position at a time, 8 components of 64
 * each, with a softmax in one pass of its own for each row (Milakov and Gimelshein, arXiv 1805.02867).
 *
 * Teams are merged in shared memory, splits by the block that is through last, both in a fixed order. */
#include "cache.cuh"
#include "parts.cuh"

namespace {

enum { N_THREADS = 128, N_WARPS = N_THREADS / SQ_LANES, TEAM = 8, N_TEAMS = N_THREADS / TEAM, PART = 64 };

/* Norms and rotates a head [head_dim] into `to`, by a warp; may be in place. */
__device__ void head_prepare(const gpu_attention &a, const float *norm, uint32_t token, const float *from,
                             float *to) {
    uint32_t lane = threadIdx.x % SQ_LANES, half = a.n_rot / 2;
    float sum = 0;
    for (uint32_t i = lane; norm && i < a.head_dim; i += SQ_LANES)
        sum += from[i] * from[i];
    float scale = norm ? 1 / sqrtf(lanes_sum(sum, SQ_LANES) / (float)a.head_dim + a.eps) : 1;
    for (uint32_t i = lane; i < a.head_dim; i += SQ_LANES)
        to[i] = norm ? from[i] * scale * norm[i] : from[i];
    __syncwarp();
    for (uint32_t i = lane; a.angles && i < half; i += SQ_LANES) {
        float2 turn = a.angles[(size_t)token * half + i]; /* cosine, sine */
        float x = to[i], y = to[i + half];
        to[i] = x * turn.x - y * turn.y;
        to[i + half] = y * turn.x + x * turn.y;
    }
    __syncwarp();
}

/* Stores key and value of a token, by a warp. */
template <sq_kv_type KV>
__device__ void kv_store(const gpu_attention &a, uint32_t kv_head, uint32_t token, float *scratch) {
    const float *qkv = a.qkv + (size_t)token * a.stride + kv_head * a.head_dim;
    uint32_t position = a.step->position + token;
    head_prepare(a, a.k_norm, token, qkv + a.k_at, scratch);
    row_store<KV, true>(scratch, a.head_dim, a.pitch, key_at(a, kv_head, position));
    row_store<KV, false>(qkv + a.v_at, a.head_dim, a.pitch, value_at(a, kv_head, position));
}

/* Of many tokens: all that precedes attention. Block (token, head), the KV heads behind the query heads. */
template <sq_kv_type KV> __global__ void __launch_bounds__(SQ_LANES) prepare(gpu_attention a) {
    next_kernel_start();
    previous_kernel_wait();
    uint32_t token = blockIdx.x, head = blockIdx.y;
    if (head < a.n_heads) {
        float *q = a.qkv + (size_t)token * a.stride + head * a.head_dim;
        head_prepare(a, a.q_norm, token, q, q);
    } else {
        kv_store<KV>(a, head - a.n_heads, token, shared_memory<float>());
    }
}

/* ROWS of a block; PARTS: of 64 components of a head. */
template <sq_kv_type KV, int ROWS, int PARTS>
__global__ void __launch_bounds__(N_THREADS, 4) attend(gpu_attention a, bool prepared) {
    const uint32_t width = PARTS * PART, part_floats = width + 2;
    float *q = shared_memory<float>();                    /* [ROWS, width] */
    float *scratch = q + ROWS * width;                    /* [N_WARPS, width] */
    float *parts = scratch + N_WARPS * width;             /* [N_TEAMS, ROWS, part_floats] */
    float *shares = parts + N_TEAMS * ROWS * part_floats; /* [N_WARPS, MAX_PARTS] */
    uint32_t *flag = (uint32_t *)(shares + N_WARPS * MAX_PARTS);
    const uint32_t kv_head = blockIdx.x, split = blockIdx.y, n_group = a.n_heads / a.n_kv_heads;
    const uint32_t first_row = blockIdx.z * ROWS,
                   n_rows = min(a.n_tokens * n_group - first_row, (uint32_t)ROWS);
    const uint32_t warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES;
    const uint32_t team = threadIdx.x / TEAM, member = threadIdx.x % TEAM;
    next_kernel_start();
    previous_kernel_wait();

    const uint32_t position = a.step->position;
    const position_range range = split_range(a, first_row, first_row + n_rows - 1, N_TEAMS);
    const uint32_t begin = range.begin, end = range.end;

    for (uint32_t r = warp; r < ROWS; r += N_WARPS) {
        for (uint32_t i = lane; i < width; i += SQ_LANES)
            q[r * width + i] = 0;
        __syncwarp();
        uint32_t token = (first_row + r) / n_group, head = kv_head * n_group + (first_row + r) % n_group;
        if (r < n_rows) {
            const float *from = a.qkv + (size_t)token * a.stride + head * a.head_dim;
            if (!prepared)
                head_prepare(a, a.q_norm, token, from, q + r * width);
            else
                for (uint32_t i = lane; i < a.head_dim; i += SQ_LANES)
                    q[r * width + i] = from[i];
        }
    }
    for (uint32_t p = max(begin, position) + warp; !prepared && p < end; p += N_WARPS)
        kv_store<KV>(a, kv_head, p - position, scratch + warp * width);
    __syncthreads();

    float largest[ROWS], sum[ROWS], out[ROWS][PARTS][8];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        largest[r] = -INFINITY;
        sum[r] = 0;
#pragma unroll
        for (int i = 0; i < PARTS; i++)
#pragma unroll
            for (int j = 0; j < 8; j++)
                out[r][i][j] = 0;
    }
    for (uint32_t first = begin; first < end; first += N_TEAMS) {
        uint32_t p = first + team;
        uint8_t *key = key_at(a, kv_head, min(p, end - 1)), *value = value_at(a, kv_head, min(p, end - 1));
        float score[ROWS] = {}, x[8];
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            row_load<KV, true>(key, a.pitch, PART * i + 8 * member, x);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    score[r] += x[j] * q[r * width + PART * i + 8 * member + j];
        }
        float weight[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float s = lanes_sum(score[r], TEAM) * a.scale;
            s = a.cap > 0 ? a.cap * tanhf(s / a.cap) : s;
            position_range seen = row_range(a, first_row + r);
            bool sees = p < end && r < (int)n_rows && p >= seen.begin && p < seen.end;
            float larger = sees ? fmaxf(largest[r], s) : largest[r];
            float shrink = largest[r] > -INFINITY ? expf(largest[r] - larger) : 0;
            weight[r] = sees ? expf(s - larger) : 0;
            largest[r] = larger;
            sum[r] = sum[r] * shrink + weight[r];
#pragma unroll
            for (int i = 0; i < PARTS; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    out[r][i][j] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            row_load<KV, false>(value, a.pitch, PART * i + 8 * member, x);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    out[r][i][j] += weight[r] * x[j];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float *part = parts + (team * ROWS + r) * part_floats;
        part[0] = largest[r]; /* all members write the same */
        part[1] = sum[r];
#pragma unroll
        for (int i = 0; i < PARTS; i++)
#pragma unroll
            for (int j = 0; j < 8; j++)
                part[2 + PART * i + 8 * member + j] = out[r][i][j];
    }
    __syncthreads();

    shares += warp * MAX_PARTS;
    if (gridDim.y == 1) {
        for (uint32_t r = warp; r < n_rows; r += N_WARPS)
            row_finish(a, kv_head, first_row + r,
                       {parts + r * part_floats, ROWS * part_floats, N_TEAMS, shares});
        return;
    }
    for (uint32_t r = warp; r < n_rows; r += N_WARPS) {
        row_parts mine = {parts + r * part_floats, ROWS * part_floats, N_TEAMS, shares};
        float *to = split_part(a, split, kv_head, first_row + r);
        float2 all = mine.merge();
        for (uint32_t i = lane; i < a.head_dim; i += SQ_LANES)
            to[2 + i] = mine.value(i);
        if (lane == 0) {
            to[0] = all.x;
            to[1] = all.y;
        }
        __syncwarp();
    }
    if (splits_complete(a, kv_head, blockIdx.z, flag))
        for (uint32_t r = warp; r < n_rows; r += N_WARPS)
            row_finish(a, kv_head, first_row + r,
                       {split_part(a, 0, kv_head, first_row + r), split_stride(a), gridDim.y, shares});
}

using attend_kernel = void (*)(gpu_attention, bool);

struct variant {
    attend_kernel attend;
    uint32_t n_rows, width;
    void (*prepare)(gpu_attention);
};

template <sq_kv_type KV, int ROWS, int PARTS> variant variant_with() {
    return {attend<KV, ROWS, PARTS>, ROWS, PARTS * PART, prepare<KV>};
}

/* The smallest that holds the head; fewer rows where there are not more, or registers would not do. */
template <sq_kv_type KV> variant variant_of(uint32_t head_dim, uint32_t n_rows) {
    uint32_t n_parts = (head_dim + PART - 1) / PART;
    if (n_parts <= 1)
        return n_rows == 1 ? variant_with<KV, 1, 1>() : variant_with<KV, 4, 1>();
    if (n_parts <= 2)
        return n_rows == 1 ? variant_with<KV, 1, 2>() : variant_with<KV, 4, 2>();
    return n_rows == 1 ? variant_with<KV, 1, 4>() : variant_with<KV, 2, 4>();
}

variant variant_of(sq_kv_type kv, uint32_t head_dim, uint32_t n_rows) {
    return kv == SQ_KV_F16   ? variant_of<SQ_KV_F16>(head_dim, n_rows)
           : kv == SQ_KV_F32 ? variant_of<SQ_KV_F32>(head_dim, n_rows)
                             : variant_of<SQ_KV_Q8>(head_dim, n_rows);
}

} // namespace

cudaError_t gpu_attention_prepare(const gpu_card *card) {
    cudaError_t result = cudaSuccess;
    for (sq_kv_type kv : {SQ_KV_F16, SQ_KV_F32, SQ_KV_Q8})
        for (uint32_t head_dim : {1u * PART, 2u * PART, 4u * PART})
            for (uint32_t n_rows : {1u, 4u}) {
                variant v = variant_of(kv, head_dim, n_rows);
                result = result ? result : gpu_kernel_prepare(v.attend, card);
                result = result ? result : gpu_kernel_prepare(v.prepare, card);
            }
    return result ? result : gpu_prompt_attention_prepare(card);
}

void gpu_attend(gpu_launch *l, const gpu_attention *a) {
    bool many = a->n_tokens > GPU_FEW_TOKENS;
    uint32_t n_rows = a->n_tokens * (a->n_heads / a->n_kv_heads);
    variant v = variant_of(a->kv, a->head_dim, n_rows);
    if (many)
        gpu_run(l, v.prepare, dim3(a->n_tokens, a->n_heads + a->n_kv_heads), dim3(SQ_LANES),
                v.width * sizeof(float), *a);
    if (many && !a->exact && a->kv != SQ_KV_F32 && a->head_dim % 2 == 0) {
        gpu_attend_prompt(l, a);
        return;
    }
    size_t floats =
        (v.n_rows + N_WARPS) * v.width + N_TEAMS * v.n_rows * (v.width + 2) + N_WARPS * MAX_PARTS + 1;
    uint32_t n_row_blocks = (n_rows + v.n_rows - 1) / v.n_rows;
    gpu_run(l, v.attend, dim3(a->n_kv_heads, splits_of(l->card, a->n_kv_heads * n_row_blocks), n_row_blocks),
            dim3(N_THREADS), floats * sizeof(float), *a, many);
}
