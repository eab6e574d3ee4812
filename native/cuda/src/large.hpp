// See large.cu.
#pragma once

#include "norm.cuh"
#include "plan.hpp"

namespace augserve::cuda {

// What the kernels for large sets keep between launches; each for two passes in turn.
struct Parts {
    Moments *moments;     // of each part
    Partial *partials[2];  // of each part
    Median *medians[2];   // of each set
    Affine *maps;         // of each set
};

// The affine maps of the sets of `groups` large groups, the most parts of one of which are `parts`.
template <class T>
void run_large(const Norm &norm, const T *x, const Table &table, std::uint32_t groups, std::uint32_t parts,
               const Parts &memory, Stream stream);

}  // namespace augserve::cuda
