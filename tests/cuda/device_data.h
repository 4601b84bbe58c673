/* What tests of kernels upload and read back, on one stream. */
#ifndef DEVICE_DATA_H
#define DEVICE_DATA_H

#include <vector>

#include "check.h"
#include "gpu.h"

static cudaStream_t stream;

template <typename T> struct on_device {
    T *data = nullptr;
    size_t n;

    explicit on_device(const std::vector<T> &from) : n(from.size()) {
        CHECK_EQ(cudaMalloc(&data, n * sizeof(T)), cudaSuccess);
        cudaMemcpyAsync(data, from.data(), n * sizeof(T), cudaMemcpyHostToDevice, stream);
        cudaStreamSynchronize(stream);
    }
    on_device(const on_device &) = delete;
    ~on_device() { cudaFree(data); }
    std::vector<T> read() const {
        std::vector<T> to(n);
        cudaMemcpyAsync(to.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost, stream);
        CHECK_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        return to;
    }
};

/* The parts of activations: gpu_operand. */
struct operand_data {
    uint32_t stride;
    std::vector<uint16_t> parts;

    operand_data(uint32_t n_tokens, uint32_t width)
        : stride((uint32_t)gpu_round_up(width, SQ_OPERAND_PAD)), parts((size_t)2 * n_tokens * stride) {}
    void set(uint32_t token, uint32_t i, float x) {
        float scaled = x * SQ_OPERAND_SCALE;
        uint16_t *at = &parts[(size_t)2 * token * stride + i];
        at[0] = sq_f32_to_f16(scaled);
        at[stride] = sq_f32_to_f16((scaled - sq_f16_to_f32(at[0])) / SQ_LOW_SCALE);
    }
    float get(uint32_t token, uint32_t i) const {
        const uint16_t *at = &parts[(size_t)2 * token * stride + i];
        return (sq_f16_to_f32(at[0]) + sq_f16_to_f32(at[stride]) * SQ_LOW_SCALE) / SQ_OPERAND_SCALE;
    }
};

/* Of the emulator's blocks, warps and lanes. */
static void order_reverse(bool reverse) {
#ifdef SQ_EMULATED
    sq_emulator_reverse(reverse);
#else
    (void)reverse;
#endif
}

#endif
