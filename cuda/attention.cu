/* Rotation, the KV cache and attention over it, of one layer.
 *
 *     a block     some rows (a row: a query head of a token) of the heads that share a KV head, and a split
 * of the positions they see; of few tokens it also norms and rotates its queries, and stores the new keys and
 * values of its split, before it reads them a team      8 lanes take a position at a time, 8 components of 64
 * each, with a softmax in one pass of its own for each row (Milakov and Gimelshein, arXiv 1805.02867)
 *
 * Teams are merged in shared memory, splits by the block that is through last, both in a fixed order. */
#include "decode.cuh"

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
__device__ void kv_store(const gpu_attention &a, uint32_t kv_head, uint32_t token, float *scratch) {
    uint32_t lane = threadIdx.x % SQ_LANES;
    const float *qkv = a.qkv + (size_t)token * a.stride + kv_head * a.head_dim;
    size_t at = ((size_t)kv_head * a.n_ctx + a.step->position + token) * a.pitch;
    head_prepare(a, a.k_norm, token, qkv + a.k_at, scratch);
    for (uint32_t i = lane; i < a.pitch; i += SQ_LANES) {
        a.keys[at + i] = i < a.head_dim ? (uint16_t)f16_bits(scratch[i]) : 0;
        a.values[at + i] = i < a.head_dim ? (uint16_t)f16_bits(qkv[a.v_at + i]) : 0;
    }
    __syncwarp();
}

/* Of many tokens: all that precedes attention. Block (token, head), the KV heads behind the query heads. */
__global__ void __launch_bounds__(SQ_LANES) prepare(gpu_attention a) {
    next_kernel_start();
    previous_kernel_wait();
    uint32_t token = blockIdx.x, head = blockIdx.y;
    if (head < a.n_heads) {
        float *q = a.qkv + (size_t)token * a.stride + head * a.head_dim;
        head_prepare(a, a.q_norm, token, q, q);
    } else {
        kv_store(a, head - a.n_heads, token, shared_memory<float>());
    }
}

/* Eight f16 of a cache's row, from component i on; zeros past its end. */
__device__ __forceinline__ void row_load(const uint16_t *row, uint32_t pitch, uint32_t i, float x[8]) {
    uint4 v = i < pitch ? *(const uint4 *)(row + i) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < 8; j++)
        x[j] = f16_value(component(v, j / 2) >> 16 * (j % 2));
}

/* What is to be merged: the largest score, the sum of weights, and the weighted values. */
struct merge {
    float largest, sum;
};

/* Of n parts `stride` floats apart, each a `merge` and then [head_dim]: what each counts for, and their sum.
 */
__device__ merge parts_merge(const float *parts, size_t stride, uint32_t n) {
    merge all = {-INFINITY, 0};
    for (uint32_t i = 0; i < n; i++)
        all.largest = fmaxf(all.largest, parts[i * stride]);
    for (uint32_t i = 0; i < n; i++)
        if (parts[i * stride] > -INFINITY)
            all.sum += parts[i * stride + 1] * expf(parts[i * stride] - all.largest);
    return all;
}

__device__ float parts_value(const float *parts, size_t stride, uint32_t n, float largest,
                             uint32_t component) {
    float value = 0;
    for (uint32_t i = 0; i < n; i++)
        if (parts[i * stride] > -INFINITY)
            value += parts[i * stride + 2 + component] * expf(parts[i * stride] - largest);
    return value;
}

/* ROWS of a block; PARTS: of 64 components of a head. */
template <int ROWS, int PARTS>
__global__ void __launch_bounds__(N_THREADS, 4) attend(gpu_attention a, bool prepared) {
    const uint32_t width = PARTS * PART, part_floats = width + 2;
    float *q = shared_memory<float>();        /* [ROWS, width] */
    float *scratch = q + ROWS * width;        /* [N_WARPS, width] */
    float *parts = scratch + N_WARPS * width; /* [N_TEAMS, ROWS, part_floats] */
    uint32_t *last = (uint32_t *)(parts + N_TEAMS * ROWS * part_floats);
    const uint32_t kv_head = blockIdx.x, split = blockIdx.y, n_group = a.n_heads / a.n_kv_heads;
    const uint32_t first_row = blockIdx.z * ROWS,
                   n_rows = min(a.n_tokens * n_group - first_row, (uint32_t)ROWS);
    const uint32_t warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES;
    const uint32_t team = threadIdx.x / TEAM, member = threadIdx.x % TEAM;
    next_kernel_start();
    previous_kernel_wait();

    const uint32_t position = a.step->position;
    const uint32_t first_token = first_row / n_group, last_token = (first_row + n_rows - 1) / n_group;
    const uint32_t seen = position + last_token + 1; /* by the last token, from the first one's window on */
    const uint32_t oldest =
        a.window && position + first_token + 1 > a.window ? position + first_token + 1 - a.window : 0;
    const uint32_t length = ((seen - oldest + gridDim.y - 1) / gridDim.y + N_TEAMS - 1) / N_TEAMS * N_TEAMS;
    const uint32_t begin = min(oldest + split * length, seen), end = min(begin + length, seen);

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
        kv_store(a, kv_head, p - position, scratch + warp * width);
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
        const size_t at = ((size_t)kv_head * a.n_ctx + min(p, end - 1)) * a.pitch;
        float score[ROWS] = {}, x[8];
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            row_load(a.keys + at, a.pitch, PART * i + 8 * member, x);
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
            uint32_t now = position + (first_row + r) / n_group;
            bool sees = p < end && r < (int)n_rows && p <= now && (!a.window || now - p < a.window);
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
            row_load(a.values + at, a.pitch, PART * i + 8 * member, x);
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

    /* Split s of row r of this block at partial + ((s · n_kv_heads + kv_head) · n_tokens · n_group + row) · …
     */
    const size_t row_floats = a.head_dim + 2, n_all_rows = (size_t)a.n_kv_heads * a.n_tokens * n_group;
    float *rows = a.partial + ((size_t)kv_head * a.n_tokens * n_group + first_row) * row_floats;
    const float *merged = parts;
    size_t stride = ROWS * part_floats, row_stride = part_floats;
    uint32_t n_parts = N_TEAMS;
    if (gridDim.y > 1) {
        for (uint32_t r = warp; r < n_rows; r += N_WARPS) {
            merge all = parts_merge(parts + r * part_floats, stride, N_TEAMS);
            float *to = rows + (split * n_all_rows + r) * row_floats;
            for (uint32_t i = lane; i < a.head_dim; i += SQ_LANES)
                to[2 + i] = parts_value(parts + r * part_floats, stride, N_TEAMS, all.largest, i);
            if (lane == 0) {
                to[0] = all.largest;
                to[1] = all.sum;
            }
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)
            *last = atomicInc(a.arrivals + kv_head * gridDim.z + blockIdx.z, gridDim.y - 1) == gridDim.y - 1;
        __syncthreads();
        if (!*last)
            return;
        __threadfence();
        merged = rows;
        stride = n_all_rows * row_floats;
        row_stride = row_floats;
        n_parts = gridDim.y;
    }
    for (uint32_t r = warp; r < n_rows; r += N_WARPS) {
        merge all = parts_merge(merged + r * row_stride, stride, n_parts);
        uint32_t token = (first_row + r) / n_group, head = kv_head * n_group + (first_row + r) % n_group;
        for (uint32_t i = lane; i < a.head_dim; i += SQ_LANES)
            operand_store(a.out, token, head * a.head_dim + i,
                          parts_value(merged + r * row_stride, stride, n_parts, all.largest, i) / all.sum);
    }
}

using attend_kernel = void (*)(gpu_attention, bool);

struct variant {
    attend_kernel kernel;
    uint32_t n_rows, width;
};

/* The smallest that holds the head; fewer rows where there are not more, or registers would not do. */
variant variant_of(uint32_t head_dim, uint32_t n_rows) {
    uint32_t n_parts = (head_dim + PART - 1) / PART;
    if (n_parts <= 1)
        return n_rows == 1 ? variant{attend<1, 1>, 1, PART} : variant{attend<4, 1>, 4, PART};
    if (n_parts <= 2)
        return n_rows == 1 ? variant{attend<1, 2>, 1, 2 * PART} : variant{attend<4, 2>, 4, 2 * PART};
    return n_rows == 1 ? variant{attend<1, 4>, 1, 4 * PART} : variant{attend<2, 4>, 2, 4 * PART};
}

} // namespace

uint32_t gpu_attention_splits(const gpu_card *card, uint32_t n_kv_heads) {
    uint32_t n = 2 * card->n_processors / n_kv_heads;
    return n < 1 ? 1 : n > 32 ? 32 : n;
}

cudaError_t gpu_attention_prepare(const gpu_card *card) {
    cudaError_t result = gpu_kernel_prepare(prepare, card);
    for (uint32_t head_dim : {1u * PART, 2u * PART, 4u * PART})
        for (uint32_t n_rows : {1u, 4u})
            if (!result)
                result = gpu_kernel_prepare(variant_of(head_dim, n_rows).kernel, card);
    return result;
}

void gpu_attend(gpu_launch *l, const gpu_attention *a) {
    bool many = a->n_tokens > GPU_FEW_TOKENS;
    uint32_t n_rows = a->n_tokens * (a->n_heads / a->n_kv_heads);
    variant v = variant_of(a->head_dim, n_rows);
    size_t part_floats = v.width + 2;
    size_t floats = (v.n_rows + N_WARPS) * v.width + N_TEAMS * v.n_rows * part_floats + 1;
    if (many)
        gpu_run(l, prepare, dim3(a->n_tokens, a->n_heads + a->n_kv_heads), dim3(SQ_LANES),
                v.width * sizeof(float), *a);
    gpu_run(l, v.kernel, dim3(a->n_kv_heads, many ? 1 : a->n_splits, (n_rows + v.n_rows - 1) / v.n_rows),
            dim3(N_THREADS), floats * sizeof(float), *a, many);
}
