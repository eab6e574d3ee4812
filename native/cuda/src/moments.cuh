// Mean, squared deviations, extremes and the number of zeros of a set, and whether all of it is finite.
//
// A first pass takes the sum and the extremes, a second the deviations from the mean, whose own sum corrects what the
// mean lost in rounding. Where squares of the values would not be floats, they are multiplied with a power of two.
#pragma once

#include <cmath>

#include "team.cuh"

namespace augserve::cuda {

constexpr float LARGEST = 3.402823466e38f;
constexpr std::uint32_t INFINITE_BITS = 0x7f800000u;  // of |value|, from here on inf and NaN

struct Moments {
    double mean, squares;  // squares: sum of (value - mean)^2
    float low, high;
    std::uint32_t magnitude;  // bits of the largest |value|
    std::uint32_t zeros;

    AUGSERVE_ANYWHERE bool finite() const { return magnitude < INFINITE_BITS; }

    // Where all values are the same, so is the mean, exactly.
    AUGSERVE_ANYWHERE void settle() {
        if (low != high) return;
        mean = double(low);
        squares = 0;
    }
};

// 1, or the power of two that brings the largest value to [1/2, 1) where its square might be no float.
AUGSERVE_ANYWHERE inline float safe_scale(float low, float high) {
    const float largest = fmaxf(fabsf(low), fabsf(high));
    if (largest == 0.0f || (largest < 1e15f && largest > 1e-15f)) return 1.0f;
    int exponent = 0;
    frexpf(largest, &exponent);
    return ldexpf(1.0f, exponent > 120 ? -120 : exponent < -120 ? 120 : -exponent);
}

struct First {  // what the first pass finds
    double sum;
    float low, high;
    std::uint32_t magnitude, zeros;
};

struct MergeFirst {
    __device__ First operator()(const First &a, const First &b) const {
        return {a.sum + b.sum, fminf(a.low, b.low), fmaxf(a.high, b.high),
                a.magnitude > b.magnitude ? a.magnitude : b.magnitude, a.zeros + b.zeros};
    }
};

struct Scaling {
    float scale, mean;  // the mean of the values times the scale
};

template <class Team, class Values>
__device__ First first_pass(Team &team, const Values &values) {
    float sum[4] = {0, 0, 0, 0};
    First own{0, LARGEST, -LARGEST, 0, 0};
    values.visit(team, [&](int slot, float value) {
        const std::uint32_t magnitude = float_bits(value) & 0x7fffffffu;
        sum[slot] += value;
        own.low = fminf(own.low, value);
        own.high = fmaxf(own.high, value);
        own.magnitude = magnitude > own.magnitude ? magnitude : own.magnitude;
        own.zeros += magnitude == 0 ? 1 : 0;
    });
    own.sum = double((sum[0] + sum[1]) + (sum[2] + sum[3]));
    return team.combine(own, MergeFirst());
}

template <class Team, class Values>
__device__ double scaled_sum(Team &team, const Values &values, float scale) {
    FloatSums<4> sum{};
    values.visit(team, [&](int slot, float value) { sum.value[slot] += value * scale; });
    const Sums<4> total = add_up(team, sum);
    return (total.value[0] + total.value[1]) + (total.value[2] + total.value[3]);
}

// For those that lead; `squares`: whether they are wanted.
template <class Team, class Values>
__device__ Moments moments(Team &team, const Values &values, bool squares) {
    const First found = first_pass(team, values);
    Moments result{0, 0, found.low, found.high, found.magnitude, found.zeros};
    const double count = double(values.count());
    Scaling with{1, 0};
    if (team.leads()) {
        if (result.finite()) with.scale = safe_scale(found.low, found.high);
        with.mean = float(found.sum / count);
    }
    with = team.share(with);
    double sum = found.sum;
    if (with.scale != 1.0f) {  // for all threads or none
        sum = scaled_sum(team, values, with.scale);
        with.mean = float(sum / count);
        with = team.share(with);
    }
    double shift = 0, about = 0;
    if (squares) {
        FloatSums<4> own{};
        values.visit(team, [&](int slot, float value) {
            const float d = fmaf(value, with.scale, -with.mean);
            own.value[slot & 1] += d;
            own.value[2 + (slot & 1)] = fmaf(d, d, own.value[2 + (slot & 1)]);
        });
        const Sums<4> total = add_up(team, own);
        const double by = total.value[0] + total.value[1];
        shift = by / count;
        about = fmax(total.value[2] + total.value[3] - by * shift, 0.0);
    }
    const double unit = 1.0 / double(with.scale);
    result.mean = (squares ? double(with.mean) + shift : sum / count) * unit;
    result.squares = about * unit * unit;
    result.settle();
    return result;
}

// --- of parts --------------------------------------------------------------------------------------------------

struct MergeParts {
    __device__ Moments operator()(const Moments &a, const Moments &b) const {
        return {a.mean + b.mean, a.squares + b.squares, fminf(a.low, b.low), fmaxf(a.high, b.high),
                a.magnitude > b.magnitude ? a.magnitude : b.magnitude, a.zeros + b.zeros};
    }
};

// Of a set whose parts have `size` values each, the last one what is left of `count`. For those that lead.
template <class Team>
__device__ Moments merged(Team &team, const Moments *parts, std::uint32_t number, std::uint32_t size,
                          std::uint64_t count) {
    const auto share_of = [&](std::uint32_t k) {
        const std::uint64_t begin = std::uint64_t(k) * size;
        return double(count - begin < size ? count - begin : size);
    };
    Moments own{0, 0, LARGEST, -LARGEST, 0, 0};
    for (std::uint32_t k = team.rank(); k < number; k += Team::SIZE) {
        Moments part = parts[k];
        part.mean *= share_of(k) / double(count);
        own = MergeParts()(own, part);
    }
    Moments all = team.combine(own, MergeParts());
    all.mean = team.share(all.mean);
    Sums<1> between{};
    for (std::uint32_t k = team.rank(); k < number; k += Team::SIZE) {
        const double d = parts[k].mean - all.mean;
        between.value[0] += share_of(k) * d * d;
    }
    all.squares += team.combine(between, Add()).value[0];
    all.settle();
    return all;
}

}  // namespace augserve::cuda
