// One run of a norm: the launches that its plan asks for, in order, on a stream.
#pragma once

#include <cstddef>

#include "plan.hpp"

namespace augserve::cuda {

// Bytes of device memory that the run needs while it lasts.
std::size_t scratch_size(const Plan &plan);

// `scratch`: so many bytes, aligned to 256; `norm.access` is set here. Pointers are the device's. Nothing waits for the
// device; throws where a launch fails.
template <class T>
void forward(const Plan &plan, Norm norm, const Tensors<T> &t, void *scratch, Stream stream);

}  // namespace augserve::cuda
