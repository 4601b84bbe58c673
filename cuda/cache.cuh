/* Rows of the KV cache on the device: the key and the value of a position, of a KV head. A row is `pitch`
 * elements, zeros from head_dim on, and of Q8 then its scales, f32: of a key one for each SQ_KEY_GROUP
 * components, of a value one (kernels.h). Bytes of a row: gpu_row_bytes. */
#ifndef SQ_CUDA_CACHE_CUH
#define SQ_CUDA_CACHE_CUH

#include "decode.cuh"

/* Where the row of a position is. */
static __device__ __forceinline__ uint8_t *key_at(const gpu_attention &a, uint32_t kv_head,
                                                  uint32_t position) {
    return a.keys + ((size_t)kv_head * a.n_ctx + position) * a.key_bytes;
}
static __device__ __forceinline__ uint8_t *value_at(const gpu_attention &a, uint32_t kv_head,
                                                    uint32_t position) {
    return a.values + ((size_t)kv_head * a.n_ctx + position) * a.value_bytes;
}

/* Scale of component i of a row of Q8. */
template <bool KEY>
static __device__ __forceinline__ float *scale_at(uint8_t *row, uint32_t pitch, uint32_t i) {
    return (float *)(row + pitch) + (KEY ? i / SQ_KEY_GROUP : 0);
}

/* Eight components of a row, from i on, a multiple of 8; zeros past its end. */
template <sq_kv_type KV, bool KEY>
static __device__ __forceinline__ void row_load(uint8_t *row, uint32_t pitch, uint32_t i, float x[8]) {
    constexpr int BYTES = KV == SQ_KV_F32 ? 4 : KV == SQ_KV_F16 ? 2 : 1;
    uint2 v[BYTES] = {};
    float scale = 0;
    if (i < pitch) {
        const uint8_t *at = row + (size_t)BYTES * i;
        if constexpr (BYTES == 1) {
            v[0] = *(const uint2 *)at;
            scale = *scale_at<KEY>(row, pitch, i);
        } else {
#pragma unroll
            for (int j = 0; j < BYTES; j += 2) {
                uint4 pair = ((const uint4 *)at)[j / 2];
                v[j] = make_uint2(pair.x, pair.y);
                v[j + 1] = make_uint2(pair.z, pair.w);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const uint2 &pair = v[j * BYTES / 8];
        uint32_t word = j * BYTES % 8 < 4 ? pair.x : pair.y;
        if constexpr (KV == SQ_KV_F32)
            x[j] = __uint_as_float(word);
        else if constexpr (KV == SQ_KV_F16)
            x[j] = f16_value(word >> 16 * (j % 2));
        else
            x[j] = scale * (float)(int8_t)(word >> 8 * (j % 4));
    }
}

/* Stores x [head_dim] as a row, by a warp. */
template <sq_kv_type KV, bool KEY>
static __device__ void row_store(const float *x, uint32_t head_dim, uint32_t pitch, uint8_t *row) {
    uint32_t lane = threadIdx.x % SQ_LANES;
    float largest = 0;
    for (uint32_t i = lane; KV == SQ_KV_Q8 && !KEY && i < head_dim; i += SQ_LANES)
        largest = fmaxf(largest, fabsf(x[i]));
    if (KV == SQ_KV_Q8 && !KEY)
        largest = lanes_max(largest, SQ_LANES);
    for (uint32_t first = 0; first < pitch; first += SQ_LANES) { /* all lanes: those of a group meet */
        uint32_t i = first + lane;
        float value = i < head_dim ? x[i] : 0;
        if (KV == SQ_KV_Q8 && KEY)
            largest = lanes_max(fabsf(value), SQ_KEY_GROUP);
        if (i >= pitch)
            continue;
        if constexpr (KV == SQ_KV_F32) {
            ((float *)row)[i] = value;
        } else if constexpr (KV == SQ_KV_F16) {
            ((uint16_t *)row)[i] = (uint16_t)f16_bits(value);
        } else {
            /* attention.c, i8_set; not as one multiply-add, which would round once in place of twice */
            float inverse = largest > 0 ? 127 / largest : 0;
            row[i] = (uint8_t)__float_as_uint(__fmul_rn(value, inverse) + 0x1.8p23f);
            *scale_at<KEY>(row, pitch, i) = largest / 127; /* all of a group write the same */
        }
    }
    __syncwarp();
}

#endif
