// See rows.cu.
#pragma once

#include "norm.cuh"

namespace augserve::cuda {

// y of the rows of `groups` groups, of which the largest has `rows` rows. `maps`: of each set, or nullptr where the
// running statistics stand for all.
template <class T>
void run_rows(const Norm &norm, const Tensors<T> &t, const Table &table, std::uint32_t groups, std::uint32_t rows,
              const Affine *maps, Stream stream);

}  // namespace augserve::cuda
