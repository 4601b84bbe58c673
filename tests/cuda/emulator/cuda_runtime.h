/* An emulator of the CUDA runtime: the kernels of cuda/ compiled as plain C++ and run on the CPU, for tests
 * on machines without a GPU. Found in place of the toolkit's header, by include path.
 *
 *     a block's threads   fibers on the thread that launches; a barrier switches to the next fiber
 *     warp operations     barriers of a warp's 32 fibers, with a slot for what each brings
 *     shared memory       one buffer for the block in turn, sized exactly, so that ASan sees its ends
 *     streams, events     in order, at once; a capture records launches, a graph runs them again
 *
 * What a GPU leaves open is made an error: a warp operation that not all lanes reach, or a barrier that
 * some threads never reach, ends the program with a message. Blocks, warps and lanes run in ascending order,
 * or in descending order after sq_emulator_reverse(true): a result that depends on it is a race. */
#ifndef SQ_EMULATOR_CUDA_RUNTIME_H
#define SQ_EMULATOR_CUDA_RUNTIME_H

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define SQ_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__    __restrict
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline uint2 make_uint2(uint32_t x, uint32_t y) {
    return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}

/* ---- a kernel's view --------------------------------------------------------------------------- */

extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

/* The block's dynamic shared memory. */
void *emulated_shared();
/* Barriers of the block and of the warp. */
void __syncthreads();
void __syncwarp(unsigned mask = 0xffffffff);
/* Each lane brings n_bytes; returns the slots of all 32 lanes, `stride` apart, until the warp's next but one
 * operation. */
const uint8_t *emulated_exchange(const void *mine, size_t n_bytes, size_t *stride);
unsigned emulated_lane();

template <typename T> T emulated_lane_value(T value, unsigned lane) {
    size_t stride;
    const uint8_t *slots = emulated_exchange(&value, sizeof value, &stride);
    T result;
    memcpy(&result, slots + lane * stride, sizeof result);
    return result;
}
template <typename T> T __shfl_sync(unsigned, T value, int lane, int width = 32) {
    unsigned first = emulated_lane() / width * width;
    return emulated_lane_value(value, first + (unsigned)lane % width);
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
    return emulated_lane_value(value, emulated_lane() ^ (unsigned)mask);
}

inline void __threadfence() {}
inline unsigned atomicInc(unsigned *address, unsigned limit) {
    unsigned old = *address;
    *address = old >= limit ? 0 : old + 1;
    return old;
}
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __expf(float a) {
    return expf(a);
}
inline uint32_t __float_as_uint(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
inline float __uint_as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
template <typename T> T __ldg(const T *p) {
    return *p;
}
using std::max;
using std::min;

/* ---- the host's view --------------------------------------------------------------------------- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};
typedef struct emulated_stream *cudaStream_t;
typedef struct emulated_event *cudaEvent_t;
typedef struct emulated_graph *cudaGraph_t;
typedef struct emulated_graph *cudaGraphExec_t;
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        int programmaticStreamSerializationAllowed;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_total);
cudaError_t emulated_malloc(void **p, size_t n_bytes);
template <typename T> cudaError_t cudaMalloc(T **p, size_t n_bytes) {
    return emulated_malloc((void **)p, n_bytes);
}
template <typename T> cudaError_t cudaMallocHost(T **p, size_t n_bytes) {
    return emulated_malloc((void **)p, n_bytes);
}
cudaError_t cudaFree(void *p);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t n_bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to);
template <typename F> cudaError_t cudaFuncSetAttribute(F *, cudaFuncAttribute, int value) {
    return value >= 0 ? cudaSuccess : cudaErrorInvalidValue;
}

/* Runs now, or records where the stream captures. */
cudaError_t emulated_launch(const cudaLaunchConfig_t *config, std::function<void()> kernel);
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                               Arguments &&...arguments) {
    return emulated_launch(config, std::bind(kernel, Parameters(arguments)...));
}

/* In which order blocks, warps and lanes run from now on. */
extern "C" void sq_emulator_reverse(bool reverse);
/* What looking for cards says from now on: a cudaError_t, and how many there are, of which compute capability
 * MAJOR.0; and how much memory is free, which no allocation may exceed. At first: 0, 1, 9, 1 GB. */
extern "C" void sq_emulator_card(int result, int n_cards, int major, size_t n_bytes_free);

#endif
