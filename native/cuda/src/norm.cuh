// What a run of a norm is to the kernels, and the statistics of a set: center and spread, blended with running ones,
// and the affine map that they make.
#pragma once

#include "../../include/augserve.h"
#include "layout.cuh"
#include "median.cuh"

namespace augserve::cuda {

// One norm with what follows it: y = max(0, norm(x) + residual).
struct Norm {
    const float *weight, *bias, *running_center, *running_spread;  // (C)
    const float *exponents;                                       // (C), or nullptr: `exponent`
    double exponent, eps, rtol;
    std::int32_t max_steps, kind, relu;  // kind: augserve_kind
    std::uint32_t channels;
    Divisor positions;
    Access access;

    AUGSERVE_ANYWHERE std::int64_t stride() const { return std::int64_t(channels) * positions.by; }
};

template <class T>
struct Tensors {
    const T *x;
    T *y;
    const T *residual;  // or nullptr
};

// The rows of a group; of a large one how its sets are cut, see plan.hpp.
struct Group {
    std::int32_t begin, rows;  // in `Table::order`
    float lambda;
    std::uint32_t parts, part;  // of each set: how many, and of how many values each
    std::uint32_t set;          // the number of its first set
    std::int64_t first;         // the number of the first part of its first set
};

// The groups that a kernel works on, and the rows of all groups.
struct Table {
    const Group *groups;        // or nullptr: there is one, `single`
    const std::int32_t *order;  // or nullptr: rows follow one another
    Group single;

    __device__ Group group(std::uint32_t g) const { return groups ? groups[g] : single; }
    __device__ Rows rows(const Norm &norm, const Group &group, std::uint32_t channel) const {
        return {order ? order + group.begin : nullptr, group.begin, norm.stride(),
                std::int64_t(channel) * norm.positions.by, norm.positions};
    }
};

AUGSERVE_ANYWHERE inline std::uint64_t count_of(const Norm &norm, const Group &group) {
    return std::uint64_t(group.rows) * norm.positions.by;
}

// y = (x * scale - center) * gain + shift
struct alignas(16) Affine {
    float scale, center, gain, shift;
};

AUGSERVE_ANYWHERE inline Solver solver_of(const Norm &norm, std::uint32_t channel) {
    return {norm.exponents ? double(norm.exponents[channel]) : norm.exponent, norm.rtol, norm.max_steps};
}

// Begins the search, or finds that there is nothing to search for.
AUGSERVE_ANYWHERE inline void begin(Median &median, const Moments &found, const Norm &norm, std::uint32_t channel,
                                    std::uint64_t count) {
    const Solver solver = solver_of(norm, channel);
    median.method = NOTHING;
    median.exact = found.mean;
    if (norm.kind == AUGSERVE_AUG && found.finite() && solver.phi >= 1) median.begin(found, count, solver);
}

AUGSERVE_ANYWHERE inline double power_of_range(double range, double p) { return range > 0 ? pow(range, p) : 0.0; }

// After it.
AUGSERVE_ALONE AUGSERVE_ANYWHERE inline Affine affine_of(const Median &median, const Moments &found, const Norm &norm,
                                                        std::uint32_t channel, double lambda, std::uint64_t count) {
    const double range = double(found.high) - double(found.low), offset = found.mean - median.exact;
    const bool robust = norm.kind != AUGSERVE_AUG;
    double center = median.exact;
    double spread = norm.kind == AUGSERVE_AUG      ? found.squares / double(count) + offset * offset
                    : norm.kind == AUGSERVE_ROBUST ? power_of_range(range, norm.exponent)
                                                   : range;
    if (!found.finite() || (!robust && !(solver_of(norm, channel).phi >= 1))) center = spread = double(NAN);
    float scale = found.finite() ? safe_scale(found.low, found.high) : 1.0f;
    if (lambda != 0) {
        if (scale > 1) scale = 1;  // a running center may be too large for the unit of values so small
        center = lambda * double(norm.running_center[channel]) + (1 - lambda) * center;
        spread = lambda * double(norm.running_spread[channel]) + (1 - lambda) * spread;
    }
    const double divisor = norm.kind == AUGSERVE_AUG      ? sqrt(spread + norm.eps)
                           : norm.kind == AUGSERVE_ROBUST ? spread + norm.eps
                                                          : power_of_range(spread, norm.exponent) + norm.eps;
    const double gain = double(norm.weight[channel]) / divisor;
    const float middle = float(center * double(scale));
    const double rest = double(middle) / double(scale) - center;
    const double most = double(LARGEST);  // inf would make NaN of a constant's deviations, 0
    const double scaled = gain / double(scale);
    return {scale, middle, float(scaled > most ? most : scaled < -most ? -most : scaled),
            float(double(norm.bias[channel]) + rest * gain)};
}

AUGSERVE_ALONE AUGSERVE_ANYWHERE inline float power_in_float(float range, float p) {
    return range > 0 ? powf(range, p) : 0.0f;
}

// Of the running statistics alone, in float: every thread of a kernel does it.
AUGSERVE_ANYWHERE inline Affine tracked_affine(const Norm &norm, std::uint32_t channel) {
    const float spread = norm.running_spread[channel], eps = float(norm.eps);
    const float divisor = norm.kind == AUGSERVE_AUG      ? sqrtf(spread + eps)
                          : norm.kind == AUGSERVE_ROBUST ? spread + eps
                                                         : power_in_float(spread, float(norm.exponent)) + eps;
    const float gain = norm.weight[channel] / divisor;
    return {1, norm.running_center[channel], gain > LARGEST ? LARGEST : gain < -LARGEST ? -LARGEST : gain,
            norm.bias[channel]};
}

// NaN stays what it is.
AUGSERVE_ANYWHERE inline float mapped(float x, float residual, const Affine &map, bool relu) {
    const float y = fmaf(fmaf(x, map.scale, -map.center), map.gain, map.shift) + residual;
    return relu && y < 0 ? 0.0f : y;
}

}  // namespace augserve::cuda
