// What the kernels ask of a compiler: CUDA's, or a plain C++ one with tests/emulator.hpp, where the same kernels run on
// the processor, thread by thread.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef AUGSERVE_EMULATED
#include "../tests/emulator.hpp"
#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <string>

#define AUGSERVE_DYNAMIC_SHARED(name) extern __shared__ __align__(16) float name[]  // for accesses of four
#define AUGSERVE_ALONE __noinline__
#define AUGSERVE_UNROLL _Pragma("unroll")
#define AUGSERVE_UNROLL_4 _Pragma("unroll 4")

namespace augserve::cuda {

using Half = __half;
using Stream = cudaStream_t;

inline void check(cudaError_t status, const char *what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// `shared`: bytes of AUGSERVE_DYNAMIC_SHARED.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared, Stream stream,
            const Arguments &...arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    constexpr std::size_t always = 48 * 1024, ours = 4096;  // of memory of a block; without asking, and in kernels
    if (shared + ours > always)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
              "a kernel's memory");
    check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "a kernel could not be launched");
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(Half value) { return __half2float(value); }
__device__ inline void round_to(float value, float &result) { result = value; }
__device__ inline void round_to(float value, Half &result) { result = __float2half_rn(value); }

// To 2^-22.9, of a number that is not denormal.
__device__ inline float reciprocal_root(float value) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// shuffle(word) of each word of a value.
template <class T, class Shuffle>
__device__ T by_words(const T &value, Shuffle shuffle) {
    static_assert(sizeof(T) % 4 == 0, "whole words");
    unsigned words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    AUGSERVE_UNROLL
    for (unsigned &word : words) word = shuffle(word);
    T other;
    memcpy(&other, words, sizeof(T));
    return other;
}

// The value of the lane whose number differs in these bits.
template <class T>
__device__ T shuffle_xor(const T &value, unsigned bits) {
    return by_words(value, [bits](unsigned word) { return __shfl_xor_sync(0xffffffffu, word, bits); });
}

// The value of the warp's first lane.
template <class T>
__device__ T shuffle_first(const T &value) {
    return by_words(value, [](unsigned word) { return __shfl_sync(0xffffffffu, word, 0); });
}

}  // namespace augserve::cuda

#endif

#include <cstring>

#define AUGSERVE_ANYWHERE __host__ __device__

namespace augserve::cuda {

AUGSERVE_ANYWHERE inline std::uint32_t float_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

AUGSERVE_ANYWHERE inline float bits_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace augserve::cuda
