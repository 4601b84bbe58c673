/* Which experts a mixture's tokens go to (runtime/experts.h), chosen on the device: the graph of a step is
 * the same whatever they are. One block: a warp chooses for a token, then a thread places what an expert got.
 */
#include "decode.cuh"

namespace {

enum { N_THREADS = 1024, N_WARPS = N_THREADS / SQ_LANES };

struct choice {
    float logit;
    int32_t expert;

    /* The larger logit first, of equal ones the lower id. */
    __device__ bool before(const choice &other) const {
        return logit > other.logit || (logit == other.logit && expert < other.expert);
    }
};

/* NaN is as good as nothing. */
__device__ float logit_of(float x) {
    return x == x ? x : -INFINITY;
}

/* The best expert behind `last`, in every lane. */
__device__ choice best_behind(const choice &last, const float *logits, uint32_t n, uint32_t lane) {
    choice best = {-INFINITY, INT32_MAX};
    for (uint32_t e = lane; e < n; e += SQ_LANES) {
        choice c = {logit_of(logits[e]), (int32_t)e};
        if (last.before(c) && c.before(best))
            best = c;
    }
    for (int i = SQ_LANES / 2; i > 0; i /= 2) {
        choice other = {__shfl_xor_sync(0xffffffff, best.logit, i),
                        __shfl_xor_sync(0xffffffff, best.expert, i)};
        if (other.before(best))
            best = other;
    }
    return best;
}

/* experts.h, sq_experts_choose, by a warp. */
__device__ void token_choose(const float *logits, bool normalised, const gpu_routes &r, uint32_t t,
                             uint32_t lane) {
    uint32_t *experts = r.experts + (size_t)t * r.n_used;
    float *weights = r.weights + (size_t)t * r.n_used;
    choice last = {INFINITY, -1};
    float most = 0, sum = 0;
    for (uint32_t k = 0; k < r.n_used; k++) {
        last = best_behind(last, logits, r.n_experts, lane);
        most = k ? most : last.logit;
        float weight = expf(last.logit - most);
        sum += weight;
        if (lane == 0) {
            experts[k] = (uint32_t)last.expert;
            weights[k] = weight;
        }
    }
    if (!normalised) {
        sum = 0;
        for (uint32_t e = lane; e < r.n_experts; e += SQ_LANES)
            sum += expf(logit_of(logits[e]) - most);
        sum = lanes_sum(sum, SQ_LANES);
    }
    for (uint32_t k = 0; lane == 0 && k < r.n_used; k++)
        weights[k] /= sum;
}

/* Places and jobs of expert e, the first ones of them given. */
__device__ void expert_place(const gpu_routes &r, uint32_t n_places, uint32_t e, uint32_t place,
                             uint32_t job) {
    uint32_t first = place;
    for (uint32_t i = 0; i < n_places; i++)
        if (r.experts[i] == e) {
            r.places[i] = place;
            r.tokens[place++] = i / r.n_used;
        }
    for (; first < place; first += GPU_FEW_TOKENS)
        r.jobs[job++] = {e, first, min(place - first, (uint32_t)GPU_FEW_TOKENS)};
}

__global__ void __launch_bounds__(N_THREADS) route(const float *logits, uint32_t stride, bool normalised,
                                                   gpu_routes r, uint32_t n_tokens, uint32_t n_jobs) {
    uint32_t *first_place = shared_memory<uint32_t>(), *first_job = first_place + r.n_experts;
    const uint32_t n_places = n_tokens * r.n_used;
    next_kernel_start();
    previous_kernel_wait();
    for (uint32_t t = threadIdx.x / SQ_LANES; t < n_tokens; t += N_WARPS)
        token_choose(logits + (size_t)t * stride, normalised, r, t, threadIdx.x % SQ_LANES);
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < r.n_experts; e += N_THREADS) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < n_places; i++)
            n += r.experts[i] == e;
        first_place[e] = n;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t place = 0, job = 0;
        for (uint32_t e = 0; e < r.n_experts; e++) {
            uint32_t n = first_place[e];
            first_place[e] = place;
            first_job[e] = job;
            place += n;
            job += (n + GPU_FEW_TOKENS - 1) / GPU_FEW_TOKENS;
        }
        for (; job < n_jobs; job++)
            r.jobs[job].n = 0;
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < r.n_experts; e += N_THREADS)
        expert_place(r, n_places, e, first_place[e], first_job[e]);
}

} // namespace

cudaError_t gpu_experts_prepare(const gpu_card *card) {
    return gpu_kernel_prepare(route, card);
}

void gpu_route(gpu_launch *l, const float *logits, uint32_t stride, bool normalised, const gpu_routes *routes,
               uint32_t n_tokens) {
    gpu_run(l, route, dim3(1), dim3(N_THREADS), 2 * routes->n_experts * sizeof(uint32_t), logits, stride,
            normalised, *routes, n_tokens, gpu_n_jobs(routes, n_tokens));
}
