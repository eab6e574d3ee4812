// The passes of phi = 1.5 for AVX-512, where compilers do not find by themselves that 1 / sqrt(a) is one approximate
// instruction and one step of refinement. The order of summation is that of passes.cpp.

#include "passes_avx512.hpp"

#ifdef AUGSERVE_AVX512

// GCC 12 warns of its own header, which leaves registers undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include "simd.hpp"

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")

namespace augserve {
namespace {

constexpr std::size_t WIDTH = 16, REGISTERS = LANES / WIDTH;

AUGSERVE_INLINE __mmask16 first(std::size_t n) { return n >= WIDTH ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

AUGSERVE_INLINE __m512 standard(__m512 value, Standard z) {
    return _mm512_mul_ps(_mm512_sub_ps(value, _mm512_set1_ps(z.center)), _mm512_set1_ps(z.inverse));
}

// max(|d|, least)^(-1/2), to about 1e-7.
AUGSERVE_INLINE __m512 inverse_root(__m512 d, float least) {
    const __m512 a = _mm512_max_ps(_mm512_abs_ps(d), _mm512_set1_ps(least));
    const __m512 r = _mm512_rsqrt14_ps(a);
    const __m512 half = _mm512_mul_ps(r, _mm512_set1_ps(0.5f));
    return _mm512_mul_ps(half, _mm512_fnmadd_ps(_mm512_mul_ps(a, r), r, _mm512_set1_ps(3.0f)));
}

AUGSERVE_INLINE float total(const __m512 *sums) {
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// Calls step(i, register, mask) for every WIDTH values.
template <class Step>
AUGSERVE_INLINE void each(std::size_t n, Step step) {
    std::size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma GCC unroll 4
        for (std::size_t k = 0; k < REGISTERS; k++) step(i + k * WIDTH, k, __mmask16(0xffff));
    }
#pragma GCC unroll 4
    for (std::size_t k = 0; k < REGISTERS; k++)
        if (i + k * WIDTH < n) step(i + k * WIDTH, k, first(n - i - k * WIDTH));
}

}  // namespace

NewtonSums newton_sums_root_avx512(const float *values, std::size_t n, Standard z, float y,
                                    float without) {
    __m512 weight[REGISTERS] = {}, residual[REGISTERS] = {};
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, values + i);
        const __m512 d = _mm512_sub_ps(_mm512_set1_ps(y), standard(value, z));
        const __mmask16 counts = _mm512_mask_cmp_ps_mask(mask, value, _mm512_set1_ps(without), _CMP_NEQ_UQ);
        const __m512 w = _mm512_maskz_mov_ps(counts, inverse_root(d, 1e-30f));
        weight[k] = _mm512_add_ps(weight[k], w);
        residual[k] = _mm512_fmadd_ps(w, d, residual[k]);
    });
    return {total(weight), total(residual)};
}

GradientSums gradient_sums_root_avx512(const float *values, const float *dy, std::size_t n, Standard t,
                                       float least) {
    __m512 sum[REGISTERS] = {}, product[REGISTERS] = {}, weight[REGISTERS] = {};
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 s = standard(_mm512_maskz_loadu_ps(mask, values + i), t);
        const __m512 g = _mm512_maskz_loadu_ps(mask, dy + i);
        sum[k] = _mm512_add_ps(sum[k], g);
        product[k] = _mm512_fmadd_ps(g, s, product[k]);
        weight[k] = _mm512_add_ps(weight[k], _mm512_maskz_mov_ps(mask, inverse_root(s, least)));
    });
    return {total(sum), total(product), total(weight), 0.0f};
}

void gradient_block_root_avx512(const float *values, const float *dy, float *out, std::size_t n, Standard t,
                                float least, GradientTerms by) {
    each(n, [&](std::size_t i, std::size_t, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 s = standard(_mm512_maskz_loadu_ps(mask, values + i), t);
        const __m512 g = _mm512_maskz_loadu_ps(mask, dy + i);
        __m512 d = _mm512_fmadd_ps(_mm512_set1_ps(by.by_dy), g, _mm512_set1_ps(by.constant));
        d = _mm512_fmadd_ps(_mm512_set1_ps(by.by_t), s, d);
        d = _mm512_fmadd_ps(_mm512_set1_ps(by.by_weight), inverse_root(s, least), d);
        _mm512_mask_storeu_ps(out + i, mask, d);
    });
}

}  // namespace augserve

#pragma GCC pop_options
#endif
