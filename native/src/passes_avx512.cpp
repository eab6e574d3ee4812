// The passes of the solver for AVX-512, where compilers do not find by themselves that 1 / sqrt(a) is one approximate
// instruction and one step of refinement, or that a table of 32 numbers fits into two registers. The order of summation is that of passes.cpp.

#include "passes_avx512.hpp"

#ifdef AUGSERVE_AVX512

// GCC 12 warns of its own header, which leaves registers undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include "simd.hpp"

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")

#include "registers_avx512.hpp"

namespace augserve {
namespace {

constexpr std::size_t REGISTERS = LANES / WIDTH;

AUGSERVE_INLINE __m512 standard(__m512 value, Standard z) {
    return _mm512_mul_ps(_mm512_sub_ps(value, _mm512_set1_ps(z.center)), _mm512_set1_ps(z.inverse));
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

BlockMoments block_moments_avx512(const float *values, std::size_t n) {
    const __m512 some = _mm512_set1_ps(values[0]);
    const __m512i sign = _mm512_set1_epi32(0x7fffffff);
    __m512 sum[REGISTERS] = {}, squares[REGISTERS] = {}, low[REGISTERS] = {some, some, some, some};
    __m512 high[REGISTERS] = {some, some, some, some};
    __m512i bits[REGISTERS] = {};
    std::size_t zeros = 0;
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, values + i);
        const __m512i size = _mm512_and_si512(_mm512_castps_si512(value), sign);
        sum[k] = _mm512_add_ps(sum[k], value);
        low[k] = _mm512_mask_min_ps(low[k], mask, low[k], value);
        high[k] = _mm512_mask_max_ps(high[k], mask, high[k], value);
        bits[k] = _mm512_max_epi32(bits[k], size);
        zeros += std::size_t(__builtin_popcount(_mm512_mask_testn_epi32_mask(mask, size, size)));
    });
    const float all = total(sum), mean = all / float(n);
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 d = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, values + i), _mm512_set1_ps(mean));
        squares[k] = _mm512_fmadd_ps(d, d, squares[k]);
    });
    const __m512 lows = _mm512_min_ps(_mm512_min_ps(low[0], low[1]), _mm512_min_ps(low[2], low[3]));
    const __m512 highs = _mm512_max_ps(_mm512_max_ps(high[0], high[1]), _mm512_max_ps(high[2], high[3]));
    const __m512i largest = _mm512_max_epi32(_mm512_max_epi32(bits[0], bits[1]), _mm512_max_epi32(bits[2], bits[3]));
    return {all, total(squares), _mm512_reduce_min_ps(lows), _mm512_reduce_max_ps(highs),
            std::uint32_t(_mm512_reduce_max_epi32(largest)), zeros};
}

namespace {

template <bool ALL, bool NEAR>
AUGSERVE_INLINE NewtonSums root_sums(const float *values, std::size_t n, Standard z, float y, float without) {
    const __m512 from_zero = _mm512_set1_ps(y + z.center * z.inverse);
    __m512 weight[REGISTERS] = {}, residual[REGISTERS] = {};
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, values + i);
        const __m512 d = NEAR ? _mm512_fnmadd_ps(value, _mm512_set1_ps(z.inverse), from_zero)
                              : _mm512_sub_ps(_mm512_set1_ps(y), standard(value, z));
        if (!ALL) mask = _mm512_mask_cmp_ps_mask(mask, value, _mm512_set1_ps(without), _CMP_NEQ_UQ);
        const __m512 w = _mm512_maskz_mov_ps(mask, twice_inverse_root(d, _mm512_set1_ps(1e-30f)));
        weight[k] = _mm512_add_ps(weight[k], w);
        residual[k] = _mm512_fmadd_ps(w, d, residual[k]);
    });
    return {0.5f * total(weight), 0.5f * total(residual)};
}

}  // namespace

std::size_t pack_values_avx512(const float *values, std::size_t n, float without, float *to) {
    const __m512 atom = _mm512_set1_ps(without);
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i += WIDTH) {
        const __mmask16 there = first(n - i);
        const __m512 value = _mm512_maskz_loadu_ps(there, values + i);
        const __mmask16 others = _mm512_mask_cmp_ps_mask(there, value, atom, _CMP_NEQ_UQ);
        _mm512_storeu_ps(to + count, _mm512_maskz_compress_ps(others, value));  // to memory itself it is slow
        count += std::size_t(__builtin_popcount(others));
    }
    return count;
}

NewtonSums newton_sums_root_avx512(const float *values, std::size_t n, Standard z, float y, float without) {
    // Where 0 is not far from the values one operation gives d, with a rounding of |center| / std times 6e-8.
    const bool near = z.center * z.inverse < 4.0f && z.center * z.inverse > -4.0f;
    if (without != NO_VALUE)
        return near ? root_sums<false, true>(values, n, z, y, without) : root_sums<false, false>(values, n, z, y, without);
    return near ? root_sums<true, true>(values, n, z, y, without) : root_sums<true, false>(values, n, z, y, without);
}

NewtonSums newton_sums_avx512(const float *values, std::size_t n, Standard z, float y, float without,
                               const PowerTable &table) {
    const Powers powers = load_table(table);
    __m512 weight[REGISTERS] = {}, residual[REGISTERS] = {};
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, values + i);
        const __m512 d = _mm512_sub_ps(_mm512_set1_ps(y), standard(value, z));
        const __mmask16 counts = _mm512_mask_cmp_ps_mask(mask, value, _mm512_set1_ps(without), _CMP_NEQ_UQ);
        const __m512 w = _mm512_maskz_mov_ps(counts, power_of(_mm512_abs_ps(d), powers));
        weight[k] = _mm512_add_ps(weight[k], w);
        residual[k] = _mm512_fmadd_ps(w, d, residual[k]);
    });
    return {total(weight), total(residual)};
}

SideSums side_sums_avx512(const float *values, std::size_t n, Standard z, float y, float inverse_reach,
                          const PowerTable &table) {
    const Powers powers = load_table(table);
    __m512 left[2] = {}, right[2] = {}, left_weight[2] = {}, right_weight[2] = {};
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 d = _mm512_sub_ps(_mm512_set1_ps(y), standard(_mm512_maskz_loadu_ps(mask, values + i), z));
        const __m512 a = _mm512_mul_ps(_mm512_abs_ps(d), _mm512_set1_ps(inverse_reach));
        const __m512 w = power_of(a, powers);
        const __mmask16 is_left = _mm512_mask_cmp_ps_mask(mask, d, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __mmask16 is_right = _kandn_mask16(is_left, mask);
        const std::size_t at = k % 2;
        left_weight[at] = _mm512_mask_add_ps(left_weight[at], is_left, left_weight[at], w);
        right_weight[at] = _mm512_mask_add_ps(right_weight[at], is_right, right_weight[at], w);
        left[at] = _mm512_mask3_fmadd_ps(w, a, left[at], is_left);
        right[at] = _mm512_mask3_fmadd_ps(w, a, right[at], is_right);
    });
    return {_mm512_reduce_add_ps(_mm512_add_ps(left[0], left[1])),
            _mm512_reduce_add_ps(_mm512_add_ps(right[0], right[1])),
            _mm512_reduce_add_ps(_mm512_add_ps(left_weight[0], left_weight[1])),
            _mm512_reduce_add_ps(_mm512_add_ps(right_weight[0], right_weight[1]))};
}

GradientSums gradient_sums_root_avx512(const float *values, const float *dy, std::size_t n, Standard t,
                                       float least) {
    __m512 sum[REGISTERS] = {}, product[REGISTERS] = {}, weight[REGISTERS] = {};
    each(n, [&](std::size_t i, std::size_t k, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 s = standard(_mm512_maskz_loadu_ps(mask, values + i), t);
        const __m512 g = _mm512_maskz_loadu_ps(mask, dy + i);
        sum[k] = _mm512_add_ps(sum[k], g);
        product[k] = _mm512_fmadd_ps(g, s, product[k]);
        weight[k] = _mm512_add_ps(weight[k], _mm512_maskz_mov_ps(mask, twice_inverse_root(s, _mm512_set1_ps(least))));
    });
    return {total(sum), total(product), 0.5f * total(weight), 0.0f};
}

void gradient_block_root_avx512(const float *values, const float *dy, float *out, std::size_t n, Standard t,
                                float least, GradientTerms by) {
    each(n, [&](std::size_t i, std::size_t, __mmask16 mask) AUGSERVE_LAMBDA {
        const __m512 s = standard(_mm512_maskz_loadu_ps(mask, values + i), t);
        const __m512 g = _mm512_maskz_loadu_ps(mask, dy + i);
        __m512 d = _mm512_fmadd_ps(_mm512_set1_ps(by.by_dy), g, _mm512_set1_ps(by.constant));
        d = _mm512_fmadd_ps(_mm512_set1_ps(by.by_t), s, d);
        d = _mm512_fmadd_ps(_mm512_set1_ps(0.5f * by.by_weight), twice_inverse_root(s, _mm512_set1_ps(least)), d);
        _mm512_mask_storeu_ps(out + i, mask, d);
    });
}

}  // namespace augserve

#pragma GCC pop_options
#endif
