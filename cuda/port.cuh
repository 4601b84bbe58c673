/* What the kernels need beyond CUDA C++: each a small function, so that tests/cuda/emulator can define it in
 * plain C++ and run the kernels on the CPU. */
#ifndef SQ_CUDA_PORT_CUH
#define SQ_CUDA_PORT_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#ifdef SQ_EMULATED
#include "emulated_device.h"
#else
#include <cuda_fp16.h>

/* The value of the low 16 bits, an f16. */
static __device__ __forceinline__ float f16_value(uint32_t bits) {
    return __half2float(__ushort_as_half((unsigned short)bits));
}

/* The nearest f16, ties to even. */
static __device__ __forceinline__ uint32_t f16_bits(float f) {
    return __half_as_ushort(__float2half_rn(f));
}

/* The same of two, side by side. */
static __device__ __forceinline__ uint32_t f16x2_bits(float low, float high) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

/* a - b, two f16 side by side */
static __device__ __forceinline__ uint32_t f16x2_sub(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

/* Byte i of the result is, of bytes 0 … 7 of a and b, the one that nibble i of `selector` names (PTX ISA,
 * prmt). A nibble's top bit is to be zero: it would ask for the sign. CUDA's __byte_perm masks it away
 * itself, with an instruction. */
static __device__ __forceinline__ uint32_t bytes_permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

/* (a & mask) | set, as one instruction: of what is shifted afterwards the compiler would make two. */
static __device__ __forceinline__ uint32_t bits_take(uint32_t a, uint32_t mask, uint32_t set) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(mask), "r"(set));
    return d;
}

/* C [16, 8] += A [16, 16] B [16, 8], by a warp, f16 with f32 sums. With g = lane / 4 and q = lane % 4 a lane
 * holds, two f16 to a register (PTX ISA, mma.m16n8k16):
 *
 *     a[0] A[g, 2q…]   a[1] A[g + 8, 2q…]   a[2] A[g, 2q + 8…]   a[3] A[g + 8, 2q + 8…]
 *     b[0] B[2q…, g]   b[1] B[2q + 8…, g]
 *     c[0], c[1] C[g, 2q…]   c[2], c[3] C[g + 8, 2q…] */
static __device__ __forceinline__ void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four matrices of 8 rows of 8 f16 from shared memory, by a warp: lane 8i + r brings the address of row r of
 * matrix i, 16 bytes aligned. With g = lane / 4 and q = lane % 4 a lane receives, of each, elements [g, 2q…],
 * or transposed [2q…, g] (PTX ISA, ldmatrix). */
static __device__ __forceinline__ void matrices_load(uint32_t m[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
static __device__ __forceinline__ void matrices_load_transposed(uint32_t m[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* The same of [16, 32] and [32, 8] signed bytes with sums of 32 bits: a lane holds four in place of two, and
 * of inputs 4q… and 4q + 16… in place of 2q… and 2q + 8… (PTX ISA, mma.m16n8k32). */
static __device__ __forceinline__ void mma_s8(int c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Of what is read once: it need not stay in the L1 cache. */
static __device__ __forceinline__ uint4 load_once(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

/* Copies 16 bytes to shared memory without waiting; copies_commit ends a group of such copies, and
 * copies_wait<N> waits until at most N groups are under way. */
static __device__ __forceinline__ void copy_async(void *shared, const void *global) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
        "l"(global)
        : "memory");
}
static __device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.commit_group;");
}
template <int N> static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Programmatic dependent launch: a kernel may begin while the one before it in the stream still runs, once
 * that has called next_kernel_start in every block; what it wrote may be read behind previous_kernel_wait.
 * Every kernel calls both, so that the waiting is transitive. */
static __device__ __forceinline__ void previous_kernel_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
static __device__ __forceinline__ void next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* The block's dynamic shared memory. */
template <typename T> static __device__ __forceinline__ T *shared_memory() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<T *>(memory);
}
#endif

#endif
