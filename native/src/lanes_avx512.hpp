// Sums and maps over n rows of at most 16 channels that lie side by side, `stride` floats from row to row: one channel
// to a lane. Sums are added to what is there, so that a chunk may be made of several runs of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "passes_avx512.hpp"

#ifdef AUGSERVE_AVX512

namespace augserve {

constexpr std::size_t LANE_WIDTH = 16;

struct alignas(64) Lane {
    float v[LANE_WIDTH];
};

struct Rows {
    const float *first;
    std::size_t stride, n, lanes;
    const std::int64_t *order;  // where each row is, in strides, or nullptr for 0, 1, ..

    std::size_t at(std::size_t i) const { return order ? std::size_t(order[i]) : i; }
};

struct LaneMoments {
    Lane sum, low, high;
    std::int32_t magnitude[LANE_WIDTH], zeros[LANE_WIDTH];
};
void lane_moments(Rows x, LaneMoments &sums);
// sum of (value - mean)^2, and of value - mean, what rounding of the mean left out.
void lane_squares(Rows x, const Lane &mean, Lane &squares, Lane &rest);

struct LanePoint {
    Lane center, inverse, y, without;
};
void lane_newton(Rows x, const LanePoint &at, const PowerTable *table, Lane &weight, Lane &residual);

struct LaneMap {
    Lane center, scale, shift;
};
void lane_affine(Rows x, float *y, std::size_t y_stride, const LaneMap &map);

struct LaneGradient {
    Lane center, inverse, least, low, high;
    bool root, ends;  // weights for phi = 1.5; ties of the extremes
};
struct LaneGradientSums {
    Lane dy, dy_t, weight, at_low, at_high;
};
void lane_gradient_sums(Rows x, const float *dy, std::size_t dy_stride, const LaneGradient &g, LaneGradientSums &sums);

struct LaneGradientTerms {
    Lane by_dy, by_t, by_weight, constant, at_low, at_high;
};
void lane_gradient(Rows x, const float *dy, std::size_t dy_stride, float *dx, std::size_t dx_stride,
                   const LaneGradient &g, const LaneGradientTerms &by);

}  // namespace augserve

#endif
