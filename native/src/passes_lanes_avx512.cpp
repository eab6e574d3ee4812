// See lanes_avx512.hpp. Four positions at a time, each with sums of its own: enough to hide the latency of an addition,
// and shorter sums round less. Sixteen channels are read and written without a mask: loads with one cost twice the time
// in cache, and more from memory, where the processor does not read ahead for them.

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

// Calls step(i, k) for i < n, k the number of its sums.
template <class Step>
AUGSERVE_INLINE void together(std::size_t n, Step step) {
    std::size_t i = 0;
    for (; i + TOGETHER <= n; i += TOGETHER) {
#pragma GCC unroll 4
        for (std::size_t k = 0; k < TOGETHER; k++) step(i + k, k);
    }
    for (; i < n; i++) step(i, 0);
}

// Calls step(row, position, k) for every position.
template <class Step>
AUGSERVE_INLINE void each(const Walk &walk, Step step) {
    const std::int64_t *order = walk.order;
    if (walk.positions > 1) {
        for (std::size_t r = 0; r < walk.rows; r++) {
            const std::size_t row = order ? std::size_t(order[r]) : r;
            together(walk.positions, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA { step(row, i, k); });
        }
    } else if (order) {
        together(walk.rows, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA { step(std::size_t(order[i]), 0, k); });
    } else {
        together(walk.rows, [&](std::size_t i, std::size_t k) AUGSERVE_LAMBDA { step(i, 0, k); });
    }
}

AUGSERVE_INLINE __m512 get(const Lane &lane) { return _mm512_load_ps(lane.v); }

AUGSERVE_INLINE void add(Lane &lane, const __m512 *sums) {
    const __m512 all = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    _mm512_store_ps(lane.v, _mm512_add_ps(get(lane), all));
}

// The values of up to sixteen channels: ALL of them, or the first of them and 0 for the others.
template <bool ALL>
struct Channels {
    __mmask16 mask;

    explicit Channels(std::size_t lanes) : mask(first(lanes)) {}
    AUGSERVE_LAMBDA __m512 load(const float *from) const {
        return ALL ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask, from);
    }
    AUGSERVE_LAMBDA void store(float *to, __m512 values) const {
        if (ALL)
            _mm512_storeu_ps(to, values);
        else
            _mm512_mask_storeu_ps(to, mask, values);
    }
};

template <bool ALL>
void moments(const Walk &walk, Source x, LaneMoments &sums) {
    const Channels<ALL> channels(walk.lanes);
    const __m512i sign = _mm512_set1_epi32(0x7fffffff), one = _mm512_set1_epi32(1);
    __m512 sum[TOGETHER] = {}, low = get(sums.low), high = get(sums.high);
    __m512i magnitude = _mm512_loadu_si512(sums.magnitude), zeros = _mm512_loadu_si512(sums.zeros);
    each(walk, [&](std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 value = channels.load(x.at(row, i));
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

template <bool ALL>
void squares_of(const Walk &walk, Source x, const Lane &mean, Lane &squares, Lane &rest) {
    const Channels<ALL> channels(walk.lanes);
    const __m512 m = get(mean);
    __m512 square[TOGETHER] = {}, left[TOGETHER] = {};
    each(walk, [&](std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 d = _mm512_sub_ps(channels.load(x.at(row, i)), m);
        square[k] = _mm512_fmadd_ps(d, d, square[k]);
        left[k] = _mm512_add_ps(left[k], d);
    });
    add(squares, square);
    add(rest, left);
}

template <bool ALL, bool SOME>
void newton_root(const Walk &walk, Source x, const LaneRoot &at, Lane &weight, Lane &residual) {
    const Channels<ALL> channels(walk.lanes);
    const __m512 center = get(at.center), target = get(at.target), least = get(at.least), without = get(at.without);
    __m512 w_sum[TOGETHER] = {}, g_sum[TOGETHER] = {};
    each(walk, [&](std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 value = channels.load(x.at(row, i));
        const __m512 d = _mm512_sub_ps(target, _mm512_sub_ps(value, center));
        __m512 w = twice_inverse_root(d, least);
        if (SOME) w = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(value, without, _CMP_NEQ_UQ), w);
        w_sum[k] = _mm512_add_ps(w_sum[k], w);
        g_sum[k] = _mm512_fmadd_ps(w, d, g_sum[k]);
    });
    add(weight, w_sum);
    add(residual, g_sum);
}

template <bool ALL>
void newton_table(const Walk &walk, Source x, const LanePoint &at, const PowerTable &table, Lane &weight,
                  Lane &residual) {
    const Channels<ALL> channels(walk.lanes);
    const Powers powers = load_table(table);
    const __m512 center = get(at.center), inverse = get(at.inverse), y = get(at.y), without = get(at.without);
    __m512 w_sum[TOGETHER] = {}, g_sum[TOGETHER] = {};
    each(walk, [&](std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 value = channels.load(x.at(row, i));
        const __m512 d = _mm512_fnmadd_ps(_mm512_sub_ps(value, center), inverse, y);
        const __mmask16 counts = _mm512_cmp_ps_mask(value, without, _CMP_NEQ_UQ);
        const __m512 w = _mm512_maskz_mov_ps(counts, power_of(_mm512_abs_ps(d), powers));
        w_sum[k] = _mm512_add_ps(w_sum[k], w);
        g_sum[k] = _mm512_fmadd_ps(w, d, g_sum[k]);
    });
    add(weight, w_sum);
    add(residual, g_sum);
}

template <bool ALL, bool ADD, bool RELU>
void affine(const Walk &walk, Source x, Source residual, Plane<float> y, const LaneMap &map) {
    const Channels<ALL> channels(walk.lanes);
    const __m512 center = get(map.center), scale = get(map.scale), shift = get(map.shift);
    each(walk, [&](std::size_t row, std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        const __m512 value = channels.load(x.at(row, i));
        __m512 result = _mm512_fmadd_ps(_mm512_sub_ps(value, center), scale, shift);
        if (ADD) result = _mm512_add_ps(result, channels.load(residual.at(row, i)));
        if (RELU) result = _mm512_max_ps(_mm512_setzero_ps(), result);  // the second where one is NaN
        channels.store(y.at(row, i), result);
    });
}

// dy at a position, or 0 where the ReLU after the norm was closed.
template <bool ALL, bool GATED>
AUGSERVE_INLINE __m512 gated(const Channels<ALL> &channels, const float *dy, __m512 t, __m512 weight, __m512 bias) {
    if (!GATED) return channels.load(dy);
    const __mmask16 open = _mm512_cmp_ps_mask(_mm512_fmadd_ps(t, weight, bias), _mm512_setzero_ps(), _CMP_NLE_UQ);
    return _mm512_maskz_loadu_ps(ALL ? open : open & channels.mask, dy);
}

template <bool ALL, bool GATED>
void gradient_sums_of(const Walk &walk, Source x, Source dy, const LaneGradient &g, LaneGradientSums &sums) {
    const Channels<ALL> channels(walk.lanes);
    const __m512 center = get(g.center), inverse = get(g.inverse), least = get(g.least), one = _mm512_set1_ps(1.0f);
    const __m512 gamma = get(g.weight), beta = get(g.bias);
    __m512 sum[TOGETHER] = {}, product[TOGETHER] = {}, weight[TOGETHER] = {}, low[TOGETHER] = {}, high[TOGETHER] = {};
    const auto common = [&](__m512 value, std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
        const __m512 t = _mm512_mul_ps(_mm512_sub_ps(value, center), inverse);
        const __m512 up = gated<ALL, GATED>(channels, dy.at(row, i), t, gamma, beta);
        sum[k] = _mm512_add_ps(sum[k], up);
        product[k] = _mm512_fmadd_ps(up, t, product[k]);
        return t;
    };
    if (g.root) {
        each(walk, [&](std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
            const __m512 t = common(channels.load(x.at(row, i)), row, i, k);
            weight[k] = _mm512_add_ps(weight[k], twice_inverse_root(t, least));
        });
        for (__m512 &part : weight) part = _mm512_mul_ps(part, _mm512_set1_ps(0.5f));
    } else if (g.ends) {
        const __m512 at_low = get(g.low), at_high = get(g.high);
        each(walk, [&](std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
            const __m512 value = channels.load(x.at(row, i));
            common(value, row, i, k);
            low[k] = _mm512_mask_add_ps(low[k], _mm512_cmp_ps_mask(value, at_low, _CMP_EQ_OQ), low[k], one);
            high[k] = _mm512_mask_add_ps(high[k], _mm512_cmp_ps_mask(value, at_high, _CMP_EQ_OQ), high[k], one);
        });
        add(sums.at_low, low);
        add(sums.at_high, high);
    } else {
        each(walk, [&](std::size_t row, std::size_t i, std::size_t k) AUGSERVE_LAMBDA {
            common(channels.load(x.at(row, i)), row, i, k);
        });
    }
    add(sums.dy, sum);
    add(sums.dy_t, product);
    add(sums.weight, weight);
}

template <bool ALL, bool ROOT, bool ENDS, bool GATED>
void gradient(const Walk &walk, Source x, Source dy, Plane<float> dx, const LaneGradient &g,
              const LaneGradientTerms &by) {
    const Channels<ALL> channels(walk.lanes);
    const __m512 center = get(g.center), inverse = get(g.inverse), least = get(g.least);
    const __m512 by_dy = get(by.by_dy), by_t = get(by.by_t), constant = get(by.constant);
    const __m512 half_weight = _mm512_mul_ps(get(by.by_weight), _mm512_set1_ps(0.5f));
    const __m512 gamma = get(g.weight), beta = get(g.bias);
    const __m512 low = get(g.low), high = get(g.high), at_low = get(by.at_low), at_high = get(by.at_high);
    each(walk, [&](std::size_t row, std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        const __m512 value = channels.load(x.at(row, i));
        const __m512 t = _mm512_mul_ps(_mm512_sub_ps(value, center), inverse);
        const __m512 up = gated<ALL, GATED>(channels, dy.at(row, i), t, gamma, beta);
        __m512 d = _mm512_fmadd_ps(by_dy, up, _mm512_fmadd_ps(by_t, t, constant));
        if (ROOT) d = _mm512_fmadd_ps(half_weight, twice_inverse_root(t, least), d);
        if (ENDS) {
            d = _mm512_mask_add_ps(d, _mm512_cmp_ps_mask(value, low, _CMP_EQ_OQ), d, at_low);
            d = _mm512_mask_add_ps(d, _mm512_cmp_ps_mask(value, high, _CMP_EQ_OQ), d, at_high);
        }
        channels.store(dx.at(row, i), d);
    });
}

}  // namespace

void lane_moments(const Walk &walk, Source x, LaneMoments &sums) {
    (walk.lanes == WIDTH ? moments<true> : moments<false>)(walk, x, sums);
}

void lane_squares(const Walk &walk, Source x, const Lane &mean, Lane &squares, Lane &rest) {
    (walk.lanes == WIDTH ? squares_of<true> : squares_of<false>)(walk, x, mean, squares, rest);
}

void lane_newton_root(const Walk &walk, Source x, const LaneRoot &at, Lane &weight, Lane &residual) {
    const auto all = at.some ? newton_root<true, true> : newton_root<true, false>;
    (walk.lanes == WIDTH ? all : newton_root<false, true>)(walk, x, at, weight, residual);
}

void lane_newton(const Walk &walk, Source x, const LanePoint &at, const PowerTable &table, Lane &weight, Lane &residual) {
    (walk.lanes == WIDTH ? newton_table<true> : newton_table<false>)(walk, x, at, table, weight, residual);
}

namespace {

template <bool ALL>
void affine(const Walk &walk, Source x, Source residual, Plane<float> y, const LaneMap &map, bool relu) {
    const auto plain = relu ? affine<ALL, false, true> : affine<ALL, false, false>;
    const auto added = relu ? affine<ALL, true, true> : affine<ALL, true, false>;
    (residual.first ? added : plain)(walk, x, residual, y, map);
}

}  // namespace

void lane_affine(const Walk &walk, Source x, Source residual, Plane<float> y, const LaneMap &map, bool relu) {
    (walk.lanes == WIDTH ? affine<true> : affine<false>)(walk, x, residual, y, map, relu);
}

void lane_gradient_sums(const Walk &walk, Source x, Source dy, const LaneGradient &g, LaneGradientSums &sums) {
    const auto all = g.gated ? gradient_sums_of<true, true> : gradient_sums_of<true, false>;
    const auto some = g.gated ? gradient_sums_of<false, true> : gradient_sums_of<false, false>;
    (walk.lanes == WIDTH ? all : some)(walk, x, dy, g, sums);
}

namespace {

template <bool ALL, bool GATED>
void gradient(const Walk &walk, Source x, Source dy, Plane<float> dx, const LaneGradient &g,
              const LaneGradientTerms &by) {
    const auto one = g.root   ? gradient<ALL, true, false, GATED>
                     : g.ends ? gradient<ALL, false, true, GATED>
                              : gradient<ALL, false, false, GATED>;
    one(walk, x, dy, dx, g, by);
}

}  // namespace

void lane_gradient(const Walk &walk, Source x, Source dy, Plane<float> dx, const LaneGradient &g,
                   const LaneGradientTerms &by) {
    const auto all = g.gated ? gradient<true, true> : gradient<true, false>;
    const auto some = g.gated ? gradient<false, true> : gradient<false, false>;
    (walk.lanes == WIDTH ? all : some)(walk, x, dy, dx, g, by);
}

}  // namespace augserve

#pragma GCC pop_options
#endif
