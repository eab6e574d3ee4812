// Sums and maps over positions of at most 16 channels that lie side by side: one channel to a lane. Sums are added to
// what is there, so that a chunk may be made of several tiles.
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

// Which positions: row i of the walk is row order[i] from `first` on, without `order` row i. Rows of one position are
// summed as if they were positions of one row.
struct Walk {
    std::size_t rows, positions;
    const std::int64_t *order;
    std::size_t lanes;
};

// Where the walk's tensor begins, and the floats from one of its rows, and from one position, to the next.
template <class Float>
struct Plane {
    Float *first;
    std::size_t row, position;

    Float *at(std::size_t i, std::size_t p) const { return first + i * row + p * position; }
};
using Source = Plane<const float>;

struct LaneMoments {
    Lane sum, low, high;
    std::int32_t magnitude[LANE_WIDTH], zeros[LANE_WIDTH];
};
void lane_moments(const Walk &walk, Source x, LaneMoments &sums);
// sum of (value - mean)^2, and of value - mean, what rounding of the mean left out.
void lane_squares(const Walk &walk, Source x, const Lane &mean, Lane &squares, Lane &rest);

// sum of w = max(|d|, least)^(-1/2) and of w d, twice both, d = target - (value - center), over the values that are not
// `without`, where `some` lane leaves one out.
struct LaneRoot {
    Lane center, target, least, without;
    bool some;
};
void lane_newton_root(const Walk &walk, Source x, const LaneRoot &at, Lane &weight, Lane &residual);

// sum of w = |d|^power and of w d, d = y - (value - center) inverse, over the values that are not `without`.
struct LanePoint {
    Lane center, inverse, y, without;
};
void lane_newton(const Walk &walk, Source x, const LanePoint &at, const PowerTable &table, Lane &weight, Lane &residual);

struct LaneMap {
    Lane center, scale, shift;
};
// y = map(x) + residual, where `residual.first` is there, and max(0, .) of it if `relu`, which keeps NaN.
void lane_affine(const Walk &walk, Source x, Source residual, Plane<float> y, const LaneMap &map, bool relu);

struct LaneGradient {
    Lane center, inverse, least, low, high, weight, bias;
    bool root, ends;  // weights for phi = 1.5; ties of the extremes
    bool gated;       // dy counts where weight t + bias is positive or NaN
};
struct LaneGradientSums {
    Lane dy, dy_t, weight, at_low, at_high;
};
void lane_gradient_sums(const Walk &walk, Source x, Source dy, const LaneGradient &g, LaneGradientSums &sums);

struct LaneGradientTerms {
    Lane by_dy, by_t, by_weight, constant, at_low, at_high;
};
void lane_gradient(const Walk &walk, Source x, Source dy, Plane<float> dx, const LaneGradient &g,
                   const LaneGradientTerms &by);

}  // namespace augserve

#endif
