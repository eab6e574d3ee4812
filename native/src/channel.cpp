// See channel.hpp.

#include "channel.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace augserve {
namespace {

double power_of_range(double range, double p) { return range > 0 ? std::pow(range, p) : 0.0; }

double divisor(const augserve_forward &a, double spread) {
    switch (a.kind) {
        case AUGSERVE_AUG: return std::sqrt(spread + a.eps);
        case AUGSERVE_ROBUST: return spread + a.eps;
        default: return power_of_range(spread, a.exponent) + a.eps;
    }
}

}  // namespace

void Channel::begin(float *sample, float *spare) {
    Moments found = moments(values_);
    const float scale = found.finite ? safe_scale(found.low, found.high) : 1.0f;
    if (scale != 1.0f) {
        values_.multiply(scale);
        found = moments(values_);
    }
    unit_ = 1.0 / double(scale);
    double start = a_.start ? double(a_.start[values_.channel]) / unit_ : std::nan("");
    const bool far = values_.plan->count() > MOST_COPIED && a_.kind == AUGSERVE_AUG;
    if (far && found.finite && !a_.start && phi() != 2 && phi() != 1)
        start = sampled_start(values_, {phi(), a_.rtol, a_.max_steps}, sample);
    begin(found, start, spare);
}

void Channel::begin(const Moments &found, double start, float *spare) {
    found_ = found;
    if (!found_.finite || a_.kind != AUGSERVE_AUG || !(phi() >= 1)) return;
    search_.emplace(values_, found_, phi(), start, brackets_, lane_, spare);
}

Statistics Channel::statistics() const {
    const bool some = values_.plan->count() > 0;
    const Statistics own = search_                                              ? around_median(search_->result(brackets_.bracket(lane_), a_.rtol))
                           : some && found_.finite && a_.kind != AUGSERVE_AUG ? with_range()
                                                                              : nothing();
    if (some) {
        move(a_.moving_center, own.center);
        move(a_.moving_spread, a_.kind == AUGSERVE_AUG ? own.spread * a_.unbiased : own.spread);
    }
    return own;
}

Statistics Channel::around_median(const Median &mu) const {
    const double offset = found_.mean - mu.value, var = (found_.var + offset * offset) * unit_ * unit_;
    const double reach = std::max(double(found_.high) - mu.value, mu.value - double(found_.low));
    note(mu.value * unit_, var, offset * unit_, reach * unit_, mu.steps);
    return {mu.value * unit_, var};
}

Statistics Channel::with_range() const {
    const double range = (double(found_.high) - double(found_.low)) * unit_;
    note(found_.mean * unit_, range, found_.low * unit_, found_.high * unit_, 0);
    return {found_.mean * unit_, a_.kind == AUGSERVE_ROBUST ? power_of_range(range, a_.exponent) : range};
}

// Of values, or an exponent, that are not all finite.
Statistics Channel::nothing() const {
    const double nan = std::nan("");
    note(nan, nan, nan, nan, 0);
    return {nan, nan};
}

void Channel::move(float *moving, double toward) const {
    if (!moving) return;
    float &value = moving[values_.channel];
    value = float(double(value) + a_.momentum * (toward - double(value)));
}

void Channel::note(double center, double spread, double first, double second, std::int64_t steps) const {
    const std::size_t at = group_.index * std::size_t(a_.channels) + values_.channel;
    if (a_.center) a_.center[at] = float(center);
    if (a_.spread) a_.spread[at] = float(spread);
    if (a_.first) a_.first[at] = float(first);
    if (a_.second) a_.second[at] = float(second);
    if (a_.steps) a_.steps[at] = steps;
}

Affine affine_of(const augserve_forward &a, std::size_t channel, Statistics s, double values_scale) {
    const double scale = (a.weight ? double(a.weight[channel]) : 1.0) / divisor(a, s.spread);
    const float center = float(s.center * values_scale);
    const double rest = double(center) / values_scale - s.center;
    const double shift = (a.bias ? double(a.bias[channel]) : 0.0) + rest * scale;
    constexpr double most = std::numeric_limits<float>::max();  // inf would make NaN of a constant's deviations, 0
    return {center, float(std::clamp(scale / values_scale, -most, most)), float(shift)};
}

Statistics blended(const augserve_forward &a, const Group &group, std::size_t channel, Statistics own) {
    const double running_center = a.running_center[channel], running_spread = a.running_spread[channel];
    if (group.lambda == 1) return {running_center, running_spread};
    return {group.lambda * running_center + (1 - group.lambda) * own.center,
            group.lambda * running_spread + (1 - group.lambda) * own.spread};
}

std::vector<Group> groups_of(const augserve_forward &a) {
    std::vector<Group> groups;
    const std::size_t count = a.order ? std::size_t(a.groups) : 1;
    for (std::size_t g = 0; g < count; g++) {
        const std::size_t begin = a.order ? std::size_t(a.offsets[g]) : 0;
        const std::size_t rows = a.order ? std::size_t(a.offsets[g + 1]) - begin : std::size_t(a.rows);
        const double lambda = a.tracked_weight ? double(a.tracked_weight[g]) : 0.0;
        groups.push_back({Plan(rows, std::size_t(a.positions), a.order ? a.order + begin : nullptr), lambda, g});
    }
    return groups;
}

}  // namespace augserve
