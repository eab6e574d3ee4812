// One pass of a team over values: the sums that the median's next step needs. For those that lead.
#pragma once

#include "median.cuh"
#include "values.cuh"

namespace augserve::cuda {

constexpr float LEAST = 1e-30f;  // of |d|: a value at y has a finite weight, and no part in the residual

struct MergeCounts {
    __device__ Partial operator()(const Partial &a, const Partial &b) const {
        Partial both = a;
        AUGSERVE_UNROLL
        for (int k = 0; k < PIVOTS; k++) both.at_most[k] += b.at_most[k];
        both.above = a.above < b.above ? a.above : b.above;
        return both;
    }
};

__device__ inline float difference(float value, const Point &at) {
    return fmaf(-fmaf(value, at.scale, -at.center), at.inverse, at.y);
}

template <class Team, class Values, class Weight>
__device__ Partial newton_sums(Team &team, const Values &values, const Point &at, Weight weight) {
    FloatSums<4> weights{}, residuals{};
    values.visit(team, [&](int slot, float value) {
        const float d = difference(value, at);
        const float w = at.without_zeros && value == 0.0f ? 0.0f : weight(fmaxf(fabsf(d), LEAST));
        weights.value[slot] += w;
        residuals.value[slot] = fmaf(w, d, residuals.value[slot]);
    });
    const float *w = weights.value, *r = residuals.value;
    const FloatSums<2> own{{(w[0] + w[1]) + (w[2] + w[3]), (r[0] + r[1]) + (r[2] + r[3])}};
    const Sums<2> all = add_up(team, own);
    Partial result{};
    result.sums[0] = all.value[0];
    result.sums[1] = all.value[1];
    return result;
}

// Errors of a few floats do not cancel, and near phi = 1 the root moves by 1 / (phi - 1) times as much.
template <class Team, class Values>
AUGSERVE_ALONE __device__ Partial newton_sums_in_double(Team &team, const Values &values, const Point &at) {
    Sums<2> own{};
    values.template visit<1>(team, [&](int, float value) {
        const double z = (double(value) * double(at.scale) - double(at.center)) / at.std;
        const double d = double(at.y) - z, w = pow(fmax(fabs(d), double(LEAST)), double(at.power));
        own.value[0] += w;
        own.value[1] += w * d;
    });
    const Sums<2> all = team.combine(own, Add());
    Partial result{};
    result.sums[0] = all.value[0];
    result.sums[1] = all.value[1];
    return result;
}

template <class Team, class Values>
__device__ Partial side_sums(Team &team, const Values &values, const Point &at) {
    FloatSums<4> even{}, odd{};
    values.visit(team, [&](int slot, float value) {
        const float d = difference(value, at), a = fmaxf(fabsf(d) * at.inverse_reach, LEAST);
        const float w = exp2f(at.power * log2f(a)), powered = w * a;
        float *sums = (slot & 1 ? odd : even).value;
        const bool left = d > 0;
        sums[0] += left ? powered : 0.0f;
        sums[1] += left ? 0.0f : powered;
        sums[2] += left ? w : 0.0f;
        sums[3] += left ? 0.0f : w;
    });
    const Sums<4> all = add_up(team, Add()(even, odd));
    Partial result{};
    for (int k = 0; k < 4; k++) result.sums[k] = all.value[k];
    return result;
}

template <class Team, class Values>
AUGSERVE_ALONE __device__ Partial counts(Team &team, const Values &values, const Point &at) {
    Partial own{};
    own.above = 0xffffffffu;
    std::uint32_t pivots[PIVOTS];
    AUGSERVE_UNROLL
    for (int k = 0; k < PIVOTS; k++) pivots[k] = Selection::pivot(at.from, at.to, at.stride, k);
    values.template visit<1>(team, [&](int, float value) {
        const std::uint32_t key = key_of_bits(float_bits(value));
        AUGSERVE_UNROLL
        for (int k = 0; k < PIVOTS; k++) own.at_most[k] += key <= pivots[k] ? 1 : 0;
        if (key > at.to && key < own.above) own.above = key;
    });
    return team.combine(own, MergeCounts());
}

template <class Team, class Values>
__device__ Partial pass(Team &team, const Values &values, const Point &at) {
    switch (at.method) {
        case ROOT: return newton_sums(team, values, at, [](float a) { return reciprocal_root(a); });
        case POWER:
            return newton_sums(team, values, at, [power = at.power](float a) { return exp2f(power * log2f(a)); });
        case IN_DOUBLE: return newton_sums_in_double(team, values, at);
        case SIDES: return side_sums(team, values, at);
        default: return counts(team, values, at);
    }
}

// --- of parts --------------------------------------------------------------------------------------------------

struct MergeManyCounts {
    __device__ Counts operator()(const Counts &a, const Counts &b) const {
        Counts both = a;
        AUGSERVE_UNROLL
        for (int k = 0; k < PIVOTS; k++) both.at_most[k] += b.at_most[k];
        both.above = a.above < b.above ? a.above : b.above;
        return both;
    }
};

// The totals of `number` parts, in an order that depends on the number alone. For those that lead.
template <class Team>
AUGSERVE_ALONE __device__ Totals added(Team &team, const Partial *parts, std::uint32_t number, std::int32_t method) {
    Totals own = Totals::none();
    if (method != COUNTS) {
        Sums<4> sums{};
        for (std::uint32_t k = team.rank(); k < number; k += Team::SIZE)
            for (int i = 0; i < 4; i++) sums.value[i] += parts[k].sums[i];
        sums = team.combine(sums, Add());
        for (int i = 0; i < 4; i++) own.sums[i] = sums.value[i];
        return own;
    }
    for (std::uint32_t k = team.rank(); k < number; k += Team::SIZE) own.add(parts[k]);
    own.counts = team.combine(own.counts, MergeManyCounts());
    return own;
}

}  // namespace augserve::cuda
