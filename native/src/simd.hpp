// One source for several instruction sets: functions marked AUGSERVE_SIMD are compiled for each of them, and the
// loader picks one for the processor at hand. Where the compiler cannot do that there is one plain version.
//
// Sums are kept in LANES partial sums whose number does not depend on the instruction set, so that a sum is taken
// in the same order everywhere.
#pragma once

#include <cstddef>

#if defined(AUGSERVE_CLONES) && defined(__x86_64__) && defined(__GNUC__)
#if __GNUC__ >= 12
#define AUGSERVE_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define AUGSERVE_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define AUGSERVE_SIMD
#endif

#if defined(__GNUC__) || defined(__clang__)
#define AUGSERVE_INLINE static inline __attribute__((always_inline))
#define AUGSERVE_LAMBDA __attribute__((always_inline))
#define AUGSERVE_RESTRICT __restrict__
#else
#define AUGSERVE_INLINE static inline
#define AUGSERVE_LAMBDA
#define AUGSERVE_RESTRICT
#endif

namespace augserve {

constexpr std::size_t LANES = 64;   // four registers of 16, enough to hide the latency of an addition
constexpr std::size_t BLOCK = 1024; // values at a time: 4 KiB, which stay in the first cache; a multiple of LANES

// Ask for `n` floats that are about to be read, or written: a processor guesses what comes next within a page of memory,
// but not where the next row begins.
template <bool WRITTEN = false>
inline void ask_for(const float *values, std::size_t n) {
#if defined(__GNUC__) || defined(__clang__)
    for (std::size_t i = 0; i < n; i += 16) __builtin_prefetch(values + i, WRITTEN ? 1 : 0);
#else
    (void)values, (void)n;
#endif
}

}  // namespace augserve
