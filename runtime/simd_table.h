/* The table of an instruction set that has all shared bodies: included after them. */
#ifndef SQ_SIMD_TABLE_H
#define SQ_SIMD_TABLE_H

#include "simd_attention.h"
#include "simd_matrix.h"
#include "simd_ops.h"

/* `set` is the name, as in sq_cpu_has_<set>; family: of gemv of tables, lut or digits; pack and product:
 * fixed_pack and fixed_gemm, or NULL. */
#define SIMD_KERNELS(set, family, pack, product)                                                             \
    {                                                                                                        \
        .name = #set,                                                                                        \
        .supported = sq_cpu_has_##set,                                                                       \
        .types = SIMD_TYPES(family##2_gemv, family##3_gemv, family##4_gemv),                                 \
        .gemm = gemm,                                                                                        \
        .fixed_pack = pack,                                                                                  \
        .fixed_gemm = product,                                                                               \
        .rms_norm = rms_norm,                                                                                \
        .layer_norm = layer_norm,                                                                            \
        .gated = {[SQ_SILU] = silu_mul, [SQ_GELU] = gelu_mul},                                               \
        .relu = relu,                                                                                        \
        .softcap = softcap,                                                                                  \
        .rope = rope,                                                                                        \
        .add = add,                                                                                          \
        .scale = scale,                                                                                      \
        .kv_store = {[SQ_KV_F16] = kv_store_f16, [SQ_KV_F32] = kv_store_f32, [SQ_KV_Q8] = kv_store_q8},      \
        .attend = {[SQ_KV_F16] = attend_f16, [SQ_KV_F32] = attend_f32, [SQ_KV_Q8] = attend_q8},              \
    }

#endif
