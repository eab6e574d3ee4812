// What of ONNX Runtime's C API operators on a device need beyond those of the processor (native/src/ort/api.hpp).
#pragma once

#include "../../../src/ort/status.hpp"

namespace augserve::cuda {

constexpr std::size_t GPU_COMPUTE_STREAM = 193;  // slot of KernelContext_GetGPUComputeStream

// The stream of this run, a cudaStream_t; nullptr where threads are emulated.
inline void *compute_stream([[maybe_unused]] const OrtApi &api, [[maybe_unused]] const OrtKernelContext *context) {
    void *stream = nullptr;
#ifndef AUGSERVE_EMULATED
    using Getter = ort::Checked<const OrtKernelContext *, void **>;
    ort::check(reinterpret_cast<const Getter *>(&api)[GPU_COMPUTE_STREAM](context, &stream));
#endif
    return stream;
}

}  // namespace augserve::cuda
