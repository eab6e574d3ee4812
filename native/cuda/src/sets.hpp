// See sets.cu.
#pragma once

#include "norm.cuh"
#include "plan.hpp"

namespace augserve::cuda {

// Statistics and y of `groups` groups of one size, of whose sets the largest has `largest` values.
template <class T>
void run_sets(Size size, const Norm &norm, const Tensors<T> &t, const Table &table, std::uint32_t groups,
              std::uint32_t largest, Stream stream);

}  // namespace augserve::cuda
