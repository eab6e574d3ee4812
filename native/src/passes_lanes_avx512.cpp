// See lanes_avx512.hpp. Four rows at a time, each with sums of its own: enough to hide the latency of an addition, and
// shorter sums round less.

#include "lanes_avx512.hpp"

#ifdef AUGSERVE_AVX512

// GCC 12 warns of its own header, which leaves registers undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")

#include "registers_avx512.hpp"

namespace augserve {
namespace {

constexpr std::size_t TOGETHER = 4;

// Calls step(row, k) for every row, k the number of its sums.
template <class Step>
AUGSERVE_INLINE void each(std::size_t n, Step step) {
    std::size_t i = 0;
    for (; i + TOGETHER <= n; i += TOGETHER) {
#pragma GCC unroll 4
        for (std::size_t k = 0; k < TOGETHER; k++) step(i + k, k);
    }
    for (; i < n; i++) step(i, 0);
}

AUGSERVE_INLINE __m512 get(const Lane &lane) { return _mm512_load_ps(lane.v); }

AUGSERVE_INLINE void add(Lane &lane, const __m512 *sums) {
    const __m512 all = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    _mm512_store_ps(lane.v, _mm512_add_ps(get(lane), all));
}

template <class Weight>
AUGSERVE_INLINE void newton(Rows x, const LanePoint &at, Lane &weight, Lane &residual, Weight weight_of) {
    const __mmask16 mask = first(x.lanes);
    const __m512 center = get(at.center), inverse = get(at.inverse), y = get(at.y), without = get(at.without);
    __m512 w_sum[TOGETHER] = {}, g_sum[TOGETHER] = {};
    each(x.n, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, x.first + x.at(i) * x.stride);
        const __m512 d = _mm512_fnmadd_ps(_mm512_sub_ps(value, center), inverse, y);
        const __mmask16 counts = _mm512_cmp_ps_mask(value, without, _CMP_NEQ_UQ);
        const __m512 w = _mm512_maskz_mov_ps(counts, weight_of(d));
        w_sum[k] = _mm512_add_ps(w_sum[k], w);
        g_sum[k] = _mm512_fmadd_ps(w, d, g_sum[k]);
    });
    add(weight, w_sum);
    add(residual, g_sum);
}

}  // namespace

void lane_moments(Rows x, LaneMoments &sums) {
    const __mmask16 mask = first(x.lanes);
    const __m512i sign = _mm512_set1_epi32(0x7fffffff), one = _mm512_set1_epi32(1);
    __m512 sum[TOGETHER] = {}, low = get(sums.low), high = get(sums.high);
    __m512i magnitude = _mm512_loadu_si512(sums.magnitude), zeros = _mm512_loadu_si512(sums.zeros);
    each(x.n, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, x.first + x.at(i) * x.stride);
        const __m512i size = _mm512_and_si512(_mm512_castps_si512(value), sign);
        sum[k] = _mm512_add_ps(sum[k], value);
        low = _mm512_min_ps(low, value);
        high = _mm512_max_ps(high, value);
        magnitude = _mm512_max_epi32(magnitude, size);
        zeros = _mm512_mask_add_epi32(zeros, _mm512_testn_epi32_mask(size, size), zeros, one);
    });
    add(sums.sum, sum);
    _mm512_store_ps(sums.low.v, low);
    _mm512_store_ps(sums.high.v, high);
    _mm512_storeu_si512(sums.magnitude, magnitude);
    _mm512_storeu_si512(sums.zeros, zeros);
}

void lane_squares(Rows x, const Lane &mean, Lane &squares, Lane &rest) {
    const __mmask16 mask = first(x.lanes);
    const __m512 m = get(mean);
    __m512 square[TOGETHER] = {}, left[TOGETHER] = {};
    each(x.n, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x.first + x.at(i) * x.stride), m);
        square[k] = _mm512_fmadd_ps(d, d, square[k]);
        left[k] = _mm512_add_ps(left[k], d);
    });
    add(squares, square);
    add(rest, left);
}

void lane_newton(Rows x, const LanePoint &at, const PowerTable *table, Lane &weight, Lane &residual) {
    if (table) {
        const Powers powers = load_table(*table);
        newton(x, at, weight, residual,
               [&](__m512 d) AUGSERVE_LAMBDA { return power_of(_mm512_abs_ps(d), powers); });
    } else {
        const __m512 least = _mm512_set1_ps(1e-30f), half = _mm512_set1_ps(0.5f);
        newton(x, at, weight, residual,
               [&](__m512 d) AUGSERVE_LAMBDA { return _mm512_mul_ps(half, twice_inverse_root(d, least)); });
    }
}

void lane_affine(Rows x, float *y, std::size_t y_stride, const LaneMap &map) {
    const __mmask16 mask = first(x.lanes);
    const __m512 center = get(map.center), scale = get(map.scale), shift = get(map.shift);
    each(x.n, [&](std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, x.first + x.at(i) * x.stride);
        _mm512_mask_storeu_ps(y + x.at(i) * y_stride, mask, _mm512_fmadd_ps(_mm512_sub_ps(value, center), scale, shift));
    });
}

void lane_gradient_sums(Rows x, const float *dy, std::size_t dy_stride, const LaneGradient &g, LaneGradientSums &sums) {
    const __mmask16 mask = first(x.lanes);
    const __m512 center = get(g.center), inverse = get(g.inverse), least = get(g.least), one = _mm512_set1_ps(1.0f);
    __m512 sum[TOGETHER] = {}, product[TOGETHER] = {}, weight[TOGETHER] = {}, low[TOGETHER] = {}, high[TOGETHER] = {};
    const auto common = [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, x.first + x.at(i) * x.stride);
        const __m512 up = _mm512_maskz_loadu_ps(mask, dy + x.at(i) * dy_stride);
        const __m512 t = _mm512_mul_ps(_mm512_sub_ps(value, center), inverse);
        sum[k] = _mm512_add_ps(sum[k], up);
        product[k] = _mm512_fmadd_ps(up, t, product[k]);
        return t;
    };
    if (g.root) {
        each(x.n, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
            weight[k] = _mm512_add_ps(weight[k], twice_inverse_root(common(i, k), least));
        });
        for (__m512 &part : weight) part = _mm512_mul_ps(part, _mm512_set1_ps(0.5f));
    } else if (g.ends) {
        const __m512 at_low = get(g.low), at_high = get(g.high);
        each(x.n, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
            common(i, k);
            const __m512 value = _mm512_maskz_loadu_ps(mask, x.first + x.at(i) * x.stride);
            low[k] = _mm512_mask_add_ps(low[k], _mm512_cmp_ps_mask(value, at_low, _CMP_EQ_OQ), low[k], one);
            high[k] = _mm512_mask_add_ps(high[k], _mm512_cmp_ps_mask(value, at_high, _CMP_EQ_OQ), high[k], one);
        });
        add(sums.at_low, low);
        add(sums.at_high, high);
    } else {
        each(x.n, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA { common(i, k); });
    }
    add(sums.dy, sum);
    add(sums.dy_t, product);
    add(sums.weight, weight);
}

void lane_gradient(Rows x, const float *dy, std::size_t dy_stride, float *dx, std::size_t dx_stride,
                   const LaneGradient &g, const LaneGradientTerms &by) {
    const __mmask16 mask = first(x.lanes);
    const __m512 center = get(g.center), inverse = get(g.inverse), least = get(g.least);
    const __m512 by_dy = get(by.by_dy), by_t = get(by.by_t), constant = get(by.constant);
    const __m512 half_weight = _mm512_mul_ps(get(by.by_weight), _mm512_set1_ps(0.5f));
    const __m512 low = get(g.low), high = get(g.high), at_low = get(by.at_low), at_high = get(by.at_high);
    each(x.n, [&](std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        const __m512 value = _mm512_maskz_loadu_ps(mask, x.first + x.at(i) * x.stride);
        const __m512 up = _mm512_maskz_loadu_ps(mask, dy + x.at(i) * dy_stride);
        const __m512 t = _mm512_mul_ps(_mm512_sub_ps(value, center), inverse);
        __m512 d = _mm512_fmadd_ps(by_dy, up, _mm512_fmadd_ps(by_t, t, constant));
        if (g.root) d = _mm512_fmadd_ps(half_weight, twice_inverse_root(t, least), d);
        if (g.ends) {
            d = _mm512_mask_add_ps(d, _mm512_cmp_ps_mask(value, low, _CMP_EQ_OQ), d, at_low);
            d = _mm512_mask_add_ps(d, _mm512_cmp_ps_mask(value, high, _CMP_EQ_OQ), d, at_high);
        }
        _mm512_mask_storeu_ps(dx + x.at(i) * dx_stride, mask, d);
    });
}

}  // namespace augserve

#pragma GCC pop_options
#endif
