// Sums over a block of at most BLOCK values. This file's functions may assume that every value is finite: what they
// give for others is thrown away by the caller, who looks at `Moments::magnitude`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "power_table.hpp"

namespace augserve {

// Whether a pass over values whose size is below 2^(lowest + 32) is faster with a table for its power.
bool wants_table(double power);

struct BlockMoments {
    float sum;
    float squares;           // sum of (value - sum / n)^2
    float low, high;
    std::uint32_t magnitude; // the bits of the largest |value|; from 0x7f800000 on one is NaN or inf
    std::size_t zeros;       // how many values are 0
};

BlockMoments block_moments(const float *values, std::size_t n);

constexpr float NO_VALUE = 3.402823466e38f;  // the largest float, for `without` where no value is left out

// z = (value - center) * inverse, d = y - z.
struct Standard {
    float center, inverse;
};

// sum of w and of w d with w = |d|^power over the values that are not `without`; `root` for power = -1/2.
// `table`: one for that power, or nullptr.
struct NewtonSums {
    float weight, residual;
};
NewtonSums newton_sums_root(const float *values, std::size_t n, Standard z, float y, float without);
NewtonSums newton_sums(const float *values, std::size_t n, Standard z, float y, float without, float power,
                       const PowerTable *table);

// Copies the values that are not `without` to one place and returns how many they are; up to 15 floats more are
// written there. Only where `packs_values`.
bool packs_values();
std::size_t pack_values(const float *values, std::size_t n, float without, float *to);

// With a = |d| / reach: the sums of a^p and of a^(p - 1), left (d > 0) and right (d < 0).
// `table`: one for the power p - 1, or nullptr.
struct SideSums {
    float left, right, left_weight, right_weight;
};
SideSums side_sums(const float *values, std::size_t n, Standard z, float y, float inverse_reach, float p,
                   const PowerTable *table);

// How many values have a key of at most `key` (see float_key in median.cpp).
std::size_t count_at_most(const float *values, std::size_t n, std::int32_t key);

// The reductions of backward, t = (value - center) * inverse.
struct GradientSums {
    float dy, dy_t;             // sum of dy, of dy t
    float weight, weight_log;   // sum of w = a^power; of w t log2(a)
};
// a = max(|t|, least) / reach
struct Power {
    float power, least, log2_reach;
};
GradientSums gradient_sums(const float *values, const float *dy, std::size_t n, Standard t);
GradientSums gradient_sums_root(const float *values, const float *dy, std::size_t n, Standard t, float least);
GradientSums gradient_sums_power(const float *values, const float *dy, std::size_t n, Standard t, Power w);
std::size_t count_equal(const float *values, std::size_t n, float value);

// out = by_dy dy + by_t t + by_weight w + constant, which may be dy itself.
struct GradientTerms {
    float by_dy, by_t, by_weight, constant;
};
void gradient_block(const float *values, const float *dy, float *out, std::size_t n, Standard t, GradientTerms by);
void gradient_block_root(const float *values, const float *dy, float *out, std::size_t n, Standard t, float least,
                         GradientTerms by);
void gradient_block_power(const float *values, const float *dy, float *out, std::size_t n, Standard t, Power w,
                          GradientTerms by);

// out += at_low where the value is `low`, and at_high where it is `high`.
void add_at_ends(const float *values, float *out, std::size_t n, float low, float at_low, float high, float at_high);

}  // namespace augserve
