// What the AVX-512 files share: masks, and |d|^p in registers. Included after the target is set.
#pragma once

#include <immintrin.h>

#include "power_table.hpp"
#include "simd.hpp"

namespace augserve {
namespace {

constexpr std::size_t WIDTH = 16;

AUGSERVE_INLINE __mmask16 first(std::size_t n) { return n >= WIDTH ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

// Twice max(|d|, least)^(-1/2), to about 1e-7.
AUGSERVE_INLINE __m512 twice_inverse_root(__m512 d, __m512 least) {
    const __m512 a = _mm512_range_ps(d, least, 0x0b);  // the larger of both sizes
    const __m512 r = _mm512_rsqrt14_ps(a);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(_mm512_mul_ps(a, r), r, _mm512_set1_ps(3.0f)));
}

// The table and the polynomial in registers.
struct Powers {
    __m512 low, high, terms[PowerTable::DEGREE + 1], least;
};

AUGSERVE_INLINE Powers load_table(const PowerTable &table) {
    Powers powers;
    powers.low = _mm512_loadu_ps(table.steps);
    powers.high = _mm512_loadu_ps(table.steps + WIDTH);
    for (int k = 0; k <= PowerTable::DEGREE; k++) powers.terms[k] = _mm512_set1_ps(table.terms[k]);
    powers.least = _mm512_set1_ps(table.floor);
    return powers;
}

// max(a, least)^power
AUGSERVE_INLINE __m512 power_of(__m512 a, const Powers &powers) {
    a = _mm512_max_ps(a, powers.least);
    const __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(a), 23);
    const __m512 step = _mm512_permutex2var_ps(powers.low, exponent, powers.high);
    const __m512 u = _mm512_sub_ps(_mm512_getmant_ps(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), _mm512_set1_ps(1.5f));
    __m512 p = powers.terms[PowerTable::DEGREE];
#pragma GCC unroll 16
    for (int k = PowerTable::DEGREE - 1; k >= 0; k--) p = _mm512_fmadd_ps(p, u, powers.terms[k]);
    return _mm512_mul_ps(step, p);
}

}  // namespace
}  // namespace augserve
