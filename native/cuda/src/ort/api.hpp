// What of ONNX Runtime's C API operators on a device need beyond those of the processor (native/src/ort/api.hpp).
#pragma once

#include "../../../src/ort/api.hpp"
#include "../../../src/ort/status.hpp"

namespace augserve::cuda {

using ort::API_VERSION;
using ort::check;
using ort::Checked;
using ort::ElementType;
using ort::FAIL;
using ort::Failure;
using ort::FLOAT;
using ort::FLOAT16;
using ort::guarded;
using ort::INT64;

constexpr std::size_t GPU_COMPUTE_STREAM = 193;  // slot of KernelContext_GetGPUComputeStream
constexpr int MEMORY_OF_HOST = -2, MEMORY_OF_PROVIDER = 0;

// The stream of this run, a cudaStream_t.
inline void *compute_stream(const OrtApi &api, const OrtKernelContext *context) {
    using Getter = Checked<const OrtKernelContext *, void **>;
    void *stream = nullptr;
    check(reinterpret_cast<const Getter *>(&api)[GPU_COMPUTE_STREAM](context, &stream));
    return stream;
}

}  // namespace augserve::cuda
