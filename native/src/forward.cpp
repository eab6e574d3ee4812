// The forward pass: for each channel of each group its statistics, blended with the running ones, then the affine map.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "elementwise.hpp"
#include "median.hpp"
#include "norm.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

constexpr std::size_t LONG_ROW = 64;  // shorter ones cost more calls than copies

struct Group {
    Plan plan;
    double lambda;
    std::size_t index;
};

// In units of the data.
struct Statistics {
    double center, spread;  // as the running statistics hold it: variance, denominator or range
};

double power_of_range(double range, double p) { return range > 0 ? std::pow(range, p) : 0.0; }

double divisor(const augserve_forward &a, double spread) {
    switch (a.kind) {
        case AUGSERVE_AUG: return std::sqrt(spread + a.eps);
        case AUGSERVE_ROBUST: return spread + a.eps;
        default: return power_of_range(spread, a.exponent) + a.eps;
    }
}

// The statistics of the group's own values; `values` may come out multiplied with a power of two.
class Channel {
public:
    Channel(const augserve_forward &a, const Group &group, Values &values, float *sample)
        : a_(a), group_(group), values_(values), sample_(sample) {}

    Statistics own() const {
        Moments found = moments(values_);
        if (!found.finite) return nothing();
        const float scale = safe_scale(found.low, found.high);
        if (scale != 1.0f) {
            values_.multiply(scale);
            found = moments(values_);
        }
        const double unit = 1.0 / double(scale);
        return a_.kind == AUGSERVE_AUG ? around_median(found, unit) : with_range(found, unit);
    }

private:
    Statistics around_median(const Moments &found, double unit) const {
        const double phi = a_.exponents ? double(a_.exponents[values_.channel]) : a_.exponent;
        if (!(phi >= 1)) return nothing();
        const Solver solver{phi, a_.rtol, int(a_.max_steps)};
        double start = a_.start ? double(a_.start[values_.channel]) / unit : std::nan("");
        if (!a_.start && !values_.copied && phi != 2 && phi != 1) start = sampled_start(values_, solver, sample_);
        const Median mu = median(values_, found, solver, start);
        const double offset = found.mean - mu.value, var = (found.var + offset * offset) * unit * unit;
        const double reach = std::max(double(found.high) - mu.value, mu.value - double(found.low));
        note(mu.value * unit, var, offset * unit, reach * unit, mu.steps);
        return {mu.value * unit, var};
    }

    Statistics with_range(const Moments &found, double unit) const {
        const double range = (double(found.high) - double(found.low)) * unit;
        note(found.mean * unit, range, found.low * unit, found.high * unit, 0);
        return {found.mean * unit, a_.kind == AUGSERVE_ROBUST ? power_of_range(range, a_.exponent) : range};
    }

    // Of values, or an exponent, that are not all finite.
    Statistics nothing() const {
        const double nan = std::nan("");
        note(nan, nan, nan, nan, 0);
        return {nan, nan};
    }

    void note(double center, double spread, double first, double second, std::int64_t steps) const {
        const std::size_t at = group_.index * std::size_t(a_.channels) + values_.channel;
        if (a_.center) a_.center[at] = float(center);
        if (a_.spread) a_.spread[at] = float(spread);
        if (a_.first) a_.first[at] = float(first);
        if (a_.second) a_.second[at] = float(second);
        if (a_.steps) a_.steps[at] = steps;
    }

    const augserve_forward &a_;
    const Group &group_;
    Values &values_;
    float *sample_;
};

// The map of values that were multiplied with `values_scale`.
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

class Forward {
public:
    Forward(const augserve_forward &a, const std::vector<Group> &groups, const Tiling &tiling)
        : a_(a),
          groups_(groups),
          tiling_(tiling),
          x_{const_cast<void *>(a.x), a.dtype, a.x_layout},
          y_{a.y, a.dtype, a.y_layout} {}

    void operator()(std::size_t task) {
        const std::size_t from = tiling_.tiles * task / tiling_.threads;
        const std::size_t to = tiling_.tiles * (task + 1) / tiling_.threads;
        for (std::size_t tile = from; tile < to; tile++)
            for (const Group &group : groups_) run(tiling_.begin(tile), tiling_.size(tile), group);
    }

private:
    void run(std::size_t channel, std::size_t channels, const Group &group) {
        const Plan &plan = group.plan;
        const std::size_t leading = leading_dimension(plan.count());
        const bool copied = plan.count() <= MOST_COPIED && (group.lambda != 1 || !rows_of_floats());
        float *memory = scratch(2 * BLOCK + (copied ? channels * leading : SAMPLE_SIZE));
        float *values = memory + 2 * BLOCK;
        if (copied) x_.load_tile(plan, channel, channels, values, leading);
        for (std::size_t k = 0; k < channels; k++) {
            float *own = values + k * leading;
            Values view{&plan, copied ? own : nullptr, &x_, channel + k, memory, 1.0f};
            const Statistics used = statistics(group, view, values);
            const Affine map = affine_of(a_, channel + k, used, double(view.scale));
            if (!copied)
                by_blocks(view, map, memory + BLOCK);
            else if (rows_of_floats())
                by_rows(view, map);
            else
                affine_block(own, own, plan.count(), map);
        }
        if (copied && !rows_of_floats()) y_.store_tile(plan, channel, channels, values, leading);
    }

    // Whether y is written row by row, without a copy.
    bool rows_of_floats() const {
        return a_.dtype == AUGSERVE_FLOAT32 && y_.layout.position == 1 && std::size_t(a_.positions) >= LONG_ROW;
    }

    Statistics statistics(const Group &group, Values &view, float *sample) const {
        Statistics own{0, 0};
        if (group.lambda != 1) own = Channel(a_, group, view, sample).own();
        return group.lambda == 0 ? own : blended(a_, group, view.channel, own);
    }

    void by_rows(const Values &view, Affine map) const {
        const Plan &plan = *view.plan;
        float *y = static_cast<float *>(a_.y) + std::int64_t(view.channel) * y_.layout.channel;
        for (std::size_t i = 0; i < plan.rows; i++)
            affine_block(view.copied + i * plan.positions, y + std::int64_t(plan.row(i)) * y_.layout.row,
                         plan.positions, map);
    }

    void by_blocks(const Values &view, Affine map, float *buffer) const {
        for (std::size_t b = 0; b < view.blocks(); b++) {
            float *direct = y_.direct(*view.plan, view.channel, b);
            float *y = direct ? direct : buffer;
            affine_block(view.block(b), y, view.size(b), map);
            if (!direct) y_.store(*view.plan, view.channel, b, y);
        }
    }

    const augserve_forward &a_;
    const std::vector<Group> &groups_;
    const Tiling &tiling_;
    View x_, y_;
};

}  // namespace

void forward(const augserve_forward &a, const augserve_executor *executor) {
    std::vector<Group> groups;
    std::size_t largest = 0;
    const std::size_t count = a.order ? std::size_t(a.groups) : 1;
    for (std::size_t g = 0; g < count; g++) {
        const std::size_t begin = a.order ? std::size_t(a.offsets[g]) : 0;
        const std::size_t rows = a.order ? std::size_t(a.offsets[g + 1]) - begin : std::size_t(a.rows);
        const double lambda = a.tracked_weight ? double(a.tracked_weight[g]) : 0.0;
        groups.push_back({Plan(rows, std::size_t(a.positions), a.order ? a.order + begin : nullptr), lambda, g});
        largest = std::max(largest, rows);
    }
    const std::size_t channels = std::size_t(a.channels), positions = std::size_t(a.positions);
    const bool contiguous = a.x_layout.position == 1 && a.y_layout.position == 1;
    const Tiling tiling(channels, largest * positions, contiguous, 1, a.threads,
                        std::size_t(a.rows) * channels * positions);
    Forward body(a, groups, tiling);
    parallel(executor, tiling.threads, tiling.threads, body);
}

}  // namespace augserve
