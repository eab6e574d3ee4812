// See upload.cu.
#pragma once

#include <cstddef>

#include "portable.cuh"

namespace augserve::cuda {

// Copies bytes of the host to memory of the device, aligned to 4; `size` is a multiple of 4.
void upload(void *to, const void *from, std::size_t size, Stream stream);

}  // namespace augserve::cuda
