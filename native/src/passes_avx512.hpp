// What passes_avx512.cpp offers, where the compiler can build it; the processor is asked at run time.
#pragma once

#include "passes.hpp"
#include "power_table.hpp"

#if (defined(AUGSERVE_CLONES) || defined(AUGSERVE_INTRINSICS)) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define AUGSERVE_AVX512 1

namespace augserve {

BlockMoments block_moments_avx512(const float *values, std::size_t n);
NewtonSums newton_sums_root_avx512(const float *values, std::size_t n, Standard z, float y, float without);
NewtonSums newton_sums_avx512(const float *values, std::size_t n, Standard z, float y, float without,
                               const PowerTable &table);
std::size_t pack_values_avx512(const float *values, std::size_t n, float without, float *to);
SideSums side_sums_avx512(const float *values, std::size_t n, Standard z, float y, float inverse_reach,
                          const PowerTable &table);
GradientSums gradient_sums_root_avx512(const float *values, const float *dy, std::size_t n, Standard t, float least);
void gradient_block_root_avx512(const float *values, const float *dy, float *out, std::size_t n, Standard t,
                                float least, GradientTerms by);

inline bool has_avx512() {
    static const bool found = __builtin_cpu_supports("x86-64-v4");
    return found;
}

}  // namespace augserve
#endif
