/* What happens to the residual stream outside the matrices: embedding, norms that whole tokens must be there
 * for, the gate of matrices of two widths, and the choice of the next token. A block has a token. */
#include "decode.cuh"

namespace {

enum { N_THREADS = 256, N_WARPS = N_THREADS / SQ_LANES };

/* The sum of x over the block, in every thread. */
__device__ float block_sum(float x, float *scratch) {
    x = lanes_sum(x, SQ_LANES);
    __syncthreads();
    if (threadIdx.x % SQ_LANES == 0)
        scratch[threadIdx.x / SQ_LANES] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < N_WARPS; i++)
        sum += scratch[i];
    return sum;
}

/* kernels.h, rms_norm or, with a bias, layer_norm, of v [n] in shared memory, in place: each thread the
 * elements threadIdx.x, threadIdx.x + N_THREADS, … */
__device__ void norm(const gpu_norm &norm, float eps, uint32_t n, float *v, float *scratch) {
    if (!norm.weight)
        return;
    float sum = 0, mean = 0;
    if (norm.bias) {
        for (uint32_t i = threadIdx.x; i < n; i += N_THREADS)
            sum += v[i];
        mean = block_sum(sum, scratch) / (float)n;
        sum = 0;
    }
    for (uint32_t i = threadIdx.x; i < n; i += N_THREADS)
        sum += (v[i] - mean) * (v[i] - mean);
    float scale = 1 / sqrtf(block_sum(sum, scratch) / (float)n + eps);
    for (uint32_t i = threadIdx.x; i < n; i += N_THREADS)
        v[i] = (v[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
}

/* x = v, next = before(x); v [n] in shared memory */
__device__ void token_finish(const gpu_residual &r, uint32_t t, float *v, float *scratch) {
    for (uint32_t i = threadIdx.x; r.x && i < r.n; i += N_THREADS)
        r.x[(size_t)t * r.stride + i] = v[i];
    norm(r.before, r.eps, r.n, v, scratch);
    for (uint32_t i = threadIdx.x; i < r.n; i += N_THREADS)
        operand_store(r.next, t, i, v[i]);
}

/* Element i of what is added to token t. */
__device__ float added(const gpu_residual &r, uint32_t t, uint32_t i) {
    if (!r.routes.n_used)
        return r.h[(size_t)t * r.stride + i];
    float sum = 0;
    for (uint32_t k = t * r.routes.n_used; k < (t + 1) * r.routes.n_used; k++)
        sum += r.routes.weights[k] * r.h[(size_t)r.routes.places[k] * r.stride + i];
    return sum;
}

__global__ void __launch_bounds__(N_THREADS) residual(gpu_residual r) {
    float *scratch = shared_memory<float>(), *v = scratch + N_WARPS;
    uint32_t t = blockIdx.x;
    next_kernel_start();
    previous_kernel_wait();
    const float *x = r.x + (size_t)t * r.stride;
    for (uint32_t i = threadIdx.x; i < r.n; i += N_THREADS)
        v[i] = r.h ? added(r, t, i) : x[i];
    if (r.h) {
        norm(r.out, r.eps, r.n, v, scratch);
        for (uint32_t i = threadIdx.x; i < r.n; i += N_THREADS)
            v[i] += x[i];
        norm(r.after, r.eps, r.n, v, scratch);
    }
    token_finish(r, t, v, scratch);
}

/* v += scale · row of the matrix, kept weights too */
__device__ void row_add(const gpu_matrix &w, uint32_t row, float scale, float *v) {
    for (uint32_t i = threadIdx.x; i < w.n_in; i += N_THREADS)
        v[i] += scale * packed_weight(w, row, i);
    __syncthreads();
    if (w.sparse_first)
        for (uint32_t i = w.sparse_first[row] + threadIdx.x; i < w.sparse_first[row + 1]; i += N_THREADS)
            v[w.sparse[i] & 0xffff] += scale * f16_value(w.sparse[i] >> 16);
    __syncthreads();
}

__global__ void __launch_bounds__(N_THREADS) enter(gpu_entry e, gpu_residual r) {
    float *scratch = shared_memory<float>(), *v = scratch + N_WARPS;
    uint32_t t = blockIdx.x;
    next_kernel_start();
    previous_kernel_wait();
#pragma unroll
    for (int table = 0; table < SQ_N_ROPES; table++)
        for (uint32_t i = threadIdx.x; e.angles.frequencies[table] && i < e.angles.half; i += N_THREADS) {
            float angle = (float)(e.step->position + t) *
                          e.angles.frequencies[table][e.step->long_rope * e.angles.half + i];
            float scale = e.angles.scale[table];
            e.angles.table[((size_t)table * gridDim.x + t) * e.angles.half + i] = {cosf(angle) * scale,
                                                                                   sinf(angle) * scale};
        }
    for (uint32_t i = threadIdx.x; i < r.n; i += N_THREADS)
        v[i] = e.given ? e.given[(size_t)t * e.given_stride + i] : 0;
    __syncthreads();
    if (!e.given)
        row_add(e.embedding, (uint32_t)e.step->tokens[t], e.scale, v);
    if (e.positions.codes)
        row_add(e.positions, e.step->position + t, 1, v);
    token_finish(r, t, v, scratch);
}

__global__ void __launch_bounds__(N_THREADS)
    gate_kernel(const float *gate, const float *up, uint32_t stride, uint32_t n, sq_activation activation,
                gpu_operand next) {
    uint32_t t = blockIdx.y, i = blockIdx.x * N_THREADS + threadIdx.x;
    next_kernel_start();
    previous_kernel_wait();
    if (i < n)
        operand_store(next, t, i,
                      gated(activation, gate[(size_t)t * stride + i], up[(size_t)t * stride + i]));
}

/* The larger logit, of equal ones the lower id. */
__device__ __forceinline__ void choose(float &value, uint32_t &id, float other, uint32_t other_id) {
    if (other > value || (other == value && other_id < id)) {
        value = other;
        id = other_id;
    }
}

__device__ void lanes_choose(float &value, uint32_t &id) {
    for (int i = SQ_LANES / 2; i > 0; i /= 2) {
        float other = __shfl_xor_sync(0xffffffff, value, i);
        uint32_t other_id = __shfl_xor_sync(0xffffffff, id, i);
        choose(value, id, other, other_id);
    }
}

__global__ void __launch_bounds__(1024)
    argmax(const float *logits, uint32_t stride, uint32_t n, sq_token *greedy) {
    float *values = shared_memory<float>();
    uint32_t *ids = (uint32_t *)(values + SQ_LANES);
    next_kernel_start();
    previous_kernel_wait();
    float value = -INFINITY;
    uint32_t id = n - 1, warp = threadIdx.x / SQ_LANES, lane = threadIdx.x % SQ_LANES;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        choose(value, id, logits[(size_t)blockIdx.x * stride + i], i);
    lanes_choose(value, id);
    if (lane == 0) {
        values[warp] = value;
        ids[warp] = id;
    }
    __syncthreads();
    value = values[lane];
    id = ids[lane];
    lanes_choose(value, id);
    if (threadIdx.x == 0)
        greedy[blockIdx.x] = (sq_token)id;
}

size_t token_bytes(uint32_t n) {
    return (N_WARPS + (size_t)n) * sizeof(float);
}

} // namespace

cudaError_t gpu_residual_prepare(const gpu_card *card) {
    cudaError_t result = gpu_kernel_prepare(enter, card);
    if (!result)
        result = gpu_kernel_prepare(residual, card);
    if (!result)
        result = gpu_kernel_prepare(gate_kernel, card);
    return result ? result : gpu_kernel_prepare(argmax, card);
}

void gpu_enter(gpu_launch *l, const gpu_entry *e, const gpu_residual *r, uint32_t n_tokens) {
    gpu_run(l, enter, dim3(n_tokens), dim3(N_THREADS), token_bytes(r->n), *e, *r);
}

void gpu_add_residual(gpu_launch *l, const gpu_residual *r, uint32_t n_tokens) {
    gpu_run(l, residual, dim3(n_tokens), dim3(N_THREADS), token_bytes(r->n), *r);
}

void gpu_gate(gpu_launch *l, const float *gate, const float *up, uint32_t stride, uint32_t n,
              sq_activation activation, gpu_operand next, uint32_t n_tokens) {
    gpu_run(l, gate_kernel, dim3((n + N_THREADS - 1) / N_THREADS, n_tokens), dim3(N_THREADS), 0, gate, up,
            stride, n, activation, next);
}

void gpu_argmax(gpu_launch *l, const float *logits, uint32_t stride, uint32_t n, sq_token *greedy,
                uint32_t n_tokens) {
    gpu_run(l, argmax, dim3(n_tokens), dim3(1024), 2 * SQ_LANES * sizeof(float), logits, stride, n, greedy);
}
