// Interleaved sequences laid side by side and back, 16 by 16 values in registers, where passes_avx512.hpp finds AVX-512.
#pragma once

#include <cstddef>

#include "passes_avx512.hpp"

#ifdef AUGSERVE_AVX512

namespace augserve {

// As `separate` and `interleave` of elementwise.hpp, for at most 16 lanes.
void separate_avx512(const float *from, std::size_t stride, float *to, std::size_t leading, std::size_t n,
                     std::size_t lanes);
void interleave_avx512(const float *from, std::size_t leading, float *to, std::size_t stride, std::size_t n,
                       std::size_t lanes);

}  // namespace augserve

#endif
