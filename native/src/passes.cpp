// The sums of passes.hpp. Compiled with relaxed floating point, which lets compilers use the processor's approximate
// reciprocal roots (with a step of refinement) and vectorise; nothing in here depends on NaN or inf.

#include "passes.hpp"

#include <cmath>

#include "passes_avx512.hpp"
#include "power.hpp"
#include "simd.hpp"

namespace augserve {
namespace {

constexpr float LEAST = 1e-30f;  // of |d|: a value at y has a finite weight, and no part in the residual

// Calls step(i, lane) for every value, LANES at a time.
template <class Step>
AUGSERVE_INLINE void each(std::size_t n, Step step) {
    std::size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (std::size_t lane = 0; lane < LANES; lane++) step(i + lane, lane);
    }
#pragma omp simd
    for (std::size_t lane = 0; lane < n - i; lane++) step(i + lane, lane);
}

AUGSERVE_INLINE float total(const float *lanes) {
    float half[LANES / 4];
#pragma omp simd
    for (std::size_t k = 0; k < LANES / 4; k++)
        half[k] = (lanes[k] + lanes[k + LANES / 4]) + (lanes[k + LANES / 2] + lanes[k + 3 * LANES / 4]);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::size_t k = 0; k < LANES / 4; k++) sum += half[k];
    return sum;
}

AUGSERVE_INLINE float magnitude(float d) {
    const float a = std::fabs(d);
    return a < LEAST ? LEAST : a;
}

}  // namespace

AUGSERVE_SIMD static BlockMoments block_moments_any(const float *values, std::size_t n) {
    float sum[LANES] = {}, low[LANES], high[LANES], squares[LANES] = {};
    std::int32_t bits[LANES] = {}, zeros[LANES] = {};
    for (std::size_t k = 0; k < LANES; k++) low[k] = high[k] = values[0];
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const float v = values[i];
        const std::int32_t b = float_to_bits(v) & 0x7fffffff;
        sum[lane] += v;
        low[lane] = v < low[lane] ? v : low[lane];
        high[lane] = v > high[lane] ? v : high[lane];
        bits[lane] = b > bits[lane] ? b : bits[lane];
        zeros[lane] += b == 0 ? 1 : 0;
    });
    BlockMoments result{total(sum), 0.0f, low[0], high[0], 0u, 0u};
    std::int32_t largest = 0;
    for (std::size_t k = 0; k < LANES; k++) {
        result.low = low[k] < result.low ? low[k] : result.low;
        result.high = high[k] > result.high ? high[k] : result.high;
        largest = bits[k] > largest ? bits[k] : largest;
        result.zeros += std::size_t(zeros[k]);
    }
    result.magnitude = std::uint32_t(largest);
    const float mean = result.sum / float(n);
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const float d = values[i] - mean;
        squares[lane] += d * d;
    });
    result.squares = total(squares);
    return result;
}

BlockMoments block_moments(const float *values, std::size_t n) {
#ifdef AUGSERVE_AVX512
    if (has_avx512()) return block_moments_avx512(values, n);
#endif
    return block_moments_any(values, n);
}

AUGSERVE_SIMD static NewtonSums newton_sums_root_any(const float *values, std::size_t n, Standard z, float y, float without) {
    float weight[LANES] = {}, residual[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const float d = y - (values[i] - z.center) * z.inverse;
        const float w = unless(values[i] == without, 1.0f / std::sqrt(magnitude(d)));
        weight[lane] += w;
        residual[lane] += w * d;
    });
    return {total(weight), total(residual)};
}

bool packs_values() {
#ifdef AUGSERVE_AVX512
    return has_avx512();
#else
    return false;
#endif
}

std::size_t pack_values(const float *values, std::size_t n, float without, float *to) {
#ifdef AUGSERVE_AVX512
    if (has_avx512()) return pack_values_avx512(values, n, without, to);
#endif
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; i++)
        if (values[i] != without) to[count++] = values[i];
    return count;
}

NewtonSums newton_sums_root(const float *values, std::size_t n, Standard z, float y, float without) {
#ifdef AUGSERVE_AVX512
    if (has_avx512()) return newton_sums_root_avx512(values, n, z, y, without);
#endif
    return newton_sums_root_any(values, n, z, y, without);
}

AUGSERVE_SIMD static NewtonSums newton_sums_any(const float *values, std::size_t n, Standard z, float y,
                                                float without, float power) {
    float weight[LANES] = {}, residual[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const float d = y - (values[i] - z.center) * z.inverse;
        const float w = unless(values[i] == without, fast_exp2(power * fast_log2(magnitude(d))));
        weight[lane] += w;
        residual[lane] += w * d;
    });
    return {total(weight), total(residual)};
}

NewtonSums newton_sums(const float *values, std::size_t n, Standard z, float y, float without, float power,
                       const PowerTable *table) {
#ifdef AUGSERVE_AVX512
    if (table) return newton_sums_avx512(values, n, z, y, without, *table);
#else
    (void)table;
#endif
    return newton_sums_any(values, n, z, y, without, power);
}

AUGSERVE_SIMD static SideSums side_sums_any(const float *values, std::size_t n, Standard z, float y,
                                            float inverse_reach, float p) {
    float left[LANES] = {}, right[LANES] = {}, left_weight[LANES] = {}, right_weight[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const float d = y - (values[i] - z.center) * z.inverse;
        const float a = magnitude(d * inverse_reach);
        const float w = vanishing_exp2((p - 1.0f) * fast_log2(a));
        const float is_right = float(std::uint32_t(float_to_bits(d)) >> 31), is_left = 1.0f - is_right;
        left_weight[lane] += is_left * w;
        right_weight[lane] += is_right * w;
        left[lane] += is_left * (w * a);
        right[lane] += is_right * (w * a);
    });
    return {total(left), total(right), total(left_weight), total(right_weight)};
}

SideSums side_sums(const float *values, std::size_t n, Standard z, float y, float inverse_reach, float p,
                   const PowerTable *table) {
#ifdef AUGSERVE_AVX512
    if (table) return side_sums_avx512(values, n, z, y, inverse_reach, *table);
#else
    (void)table;
#endif
    return side_sums_any(values, n, z, y, inverse_reach, p);
}

bool wants_table(double power) {
#ifdef AUGSERVE_AVX512
    return has_avx512() && power >= LEAST_POWER && power <= MOST_POWER;
#else
    (void)power;
    return false;
#endif
}

AUGSERVE_SIMD std::size_t count_at_most(const float *values, std::size_t n, std::int32_t key) {
    std::int32_t count[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const std::int32_t bits = float_to_bits(values[i]);
        const std::int32_t own = bits < 0 ? bits ^ 0x7fffffff : bits;
        count[lane] += own <= key ? 1 : 0;
    });
    std::size_t sum = 0;
    for (std::size_t k = 0; k < LANES; k++) sum += std::size_t(count[k]);
    return sum;
}

AUGSERVE_SIMD std::size_t count_equal(const float *values, std::size_t n, float value) {
    std::int32_t count[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA { count[lane] += values[i] == value ? 1 : 0; });
    std::size_t sum = 0;
    for (std::size_t k = 0; k < LANES; k++) sum += std::size_t(count[k]);
    return sum;
}

AUGSERVE_SIMD GradientSums gradient_sums(const float *values, const float *dy, std::size_t n, Standard t) {
    float sum[LANES] = {}, product[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        sum[lane] += dy[i];
        product[lane] += dy[i] * ((values[i] - t.center) * t.inverse);
    });
    return {total(sum), total(product), 0.0f, 0.0f};
}

AUGSERVE_SIMD static GradientSums gradient_sums_root_any(const float *values, const float *dy, std::size_t n,
                                                         Standard t, float least) {
    float sum[LANES] = {}, product[LANES] = {}, weight[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const float s = (values[i] - t.center) * t.inverse;
        const float a = std::fabs(s) < least ? least : std::fabs(s);
        sum[lane] += dy[i];
        product[lane] += dy[i] * s;
        weight[lane] += 1.0f / std::sqrt(a);
    });
    return {total(sum), total(product), total(weight), 0.0f};
}

GradientSums gradient_sums_root(const float *values, const float *dy, std::size_t n, Standard t, float least) {
#ifdef AUGSERVE_AVX512
    if (has_avx512()) return gradient_sums_root_avx512(values, dy, n, t, least);
#endif
    return gradient_sums_root_any(values, dy, n, t, least);
}

AUGSERVE_SIMD GradientSums gradient_sums_power(const float *values, const float *dy, std::size_t n, Standard t,
                                               Power power) {
    float sum[LANES] = {}, product[LANES] = {}, weight[LANES] = {}, logs[LANES] = {};
    each(n, [&](std::size_t i, std::size_t lane) AUGSERVE_LAMBDA {
        const float s = (values[i] - t.center) * t.inverse;
        const float a = std::fabs(s) < power.least ? power.least : std::fabs(s);
        const float log = fast_log2(a) - power.log2_reach, w = vanishing_exp2(power.power * log);
        sum[lane] += dy[i];
        product[lane] += dy[i] * s;
        weight[lane] += w;
        logs[lane] += w * log * s;
    });
    return {total(sum), total(product), total(weight), total(logs)};
}

AUGSERVE_SIMD void gradient_block(const float *values, const float *dy, float *out, std::size_t n, Standard t,
                                  GradientTerms by) {
    each(n, [&](std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        out[i] = by.by_dy * dy[i] + (by.by_t * ((values[i] - t.center) * t.inverse) + by.constant);
    });
}

AUGSERVE_SIMD static void gradient_block_root_any(const float *values, const float *dy, float *out, std::size_t n,
                                                  Standard t, float least, GradientTerms by) {
    each(n, [&](std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        const float s = (values[i] - t.center) * t.inverse;
        const float a = std::fabs(s) < least ? least : std::fabs(s);
        out[i] = by.by_dy * dy[i] + (by.by_t * s + by.by_weight * (1.0f / std::sqrt(a)) + by.constant);
    });
}

void gradient_block_root(const float *values, const float *dy, float *out, std::size_t n, Standard t, float least,
                         GradientTerms by) {
#ifdef AUGSERVE_AVX512
    if (has_avx512()) return gradient_block_root_avx512(values, dy, out, n, t, least, by);
#endif
    gradient_block_root_any(values, dy, out, n, t, least, by);
}

AUGSERVE_SIMD void gradient_block_power(const float *values, const float *dy, float *out, std::size_t n, Standard t,
                                        Power power, GradientTerms by) {
    each(n, [&](std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        const float s = (values[i] - t.center) * t.inverse;
        const float a = std::fabs(s) < power.least ? power.least : std::fabs(s);
        const float w = vanishing_exp2(power.power * (fast_log2(a) - power.log2_reach));
        out[i] = by.by_dy * dy[i] + (by.by_t * s + by.by_weight * w + by.constant);
    });
}

AUGSERVE_SIMD void add_at_ends(const float *values, float *out, std::size_t n, float low, float at_low, float high,
                               float at_high) {
    each(n, [&](std::size_t i, std::size_t) AUGSERVE_LAMBDA {
        out[i] += (values[i] == low ? at_low : 0.0f) + (values[i] == high ? at_high : 0.0f);
    });
}

}  // namespace augserve
