// The forward pass: for each channel of each group its statistics, blended with the running ones, then the affine map.

#include <algorithm>
#include <cmath>
#include <optional>
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

// The statistics of one channel in one group, found step by step. Its values may come out multiplied with a power of
// two, `scale()`, where their squares would not be floats.
class Channel {
public:
    Channel(const augserve_forward &a, const Group &group, const Values &values)
        : a_(a), group_(group), values_(values) {}

    const Values &values() const { return values_; }

    // `sample` is memory for `sampled_start`.
    void begin(float *sample) {
        found_ = moments(values_);
        if (!found_.finite) return;
        const float scale = safe_scale(found_.low, found_.high);
        if (scale != 1.0f) {
            values_.multiply(scale);
            found_ = moments(values_);
        }
        unit_ = 1.0 / double(scale);
        const double phi = a_.exponents ? double(a_.exponents[values_.channel]) : a_.exponent;
        if (a_.kind != AUGSERVE_AUG || !(phi >= 1)) return;
        const Solver solver{phi, a_.rtol, int(a_.max_steps)};
        double start = a_.start ? double(a_.start[values_.channel]) / unit_ : std::nan("");
        const bool far = values_.plan->count() > MOST_COPIED;
        if (far && !a_.start && phi != 2 && phi != 1) start = sampled_start(values_, solver, sample);
        search_.emplace(values_, found_, solver, start);
    }

    bool running() const { return search_ && search_->running(); }
    void pass() { search_->pass(); }

    Statistics statistics() const {
        const bool some = values_.plan->count() > 0;
        const Statistics own = search_                                              ? around_median(search_->result())
                               : some && found_.finite && a_.kind != AUGSERVE_AUG ? with_range()
                                                                                  : nothing();
        if (some) {
            move(a_.moving_center, own.center);
            move(a_.moving_spread, a_.kind == AUGSERVE_AUG ? own.spread * a_.unbiased : own.spread);
        }
        return own;
    }

private:
    Statistics around_median(const Median &mu) const {
        const double offset = found_.mean - mu.value, var = (found_.var + offset * offset) * unit_ * unit_;
        const double reach = std::max(double(found_.high) - mu.value, mu.value - double(found_.low));
        note(mu.value * unit_, var, offset * unit_, reach * unit_, mu.steps);
        return {mu.value * unit_, var};
    }

    Statistics with_range() const {
        const double range = (double(found_.high) - double(found_.low)) * unit_;
        note(found_.mean * unit_, range, found_.low * unit_, found_.high * unit_, 0);
        return {found_.mean * unit_, a_.kind == AUGSERVE_ROBUST ? power_of_range(range, a_.exponent) : range};
    }

    // Of values, or an exponent, that are not all finite.
    Statistics nothing() const {
        const double nan = std::nan("");
        note(nan, nan, nan, nan, 0);
        return {nan, nan};
    }

    void move(float *moving, double toward) const {
        if (!moving) return;
        float &value = moving[values_.channel];
        value = float(double(value) + a_.momentum * (toward - double(value)));
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
    Values values_;
    Moments found_{};
    double unit_ = 1;
    std::optional<Search> search_;
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
        const bool copied = plan.count() <= MOST_COPIED && !in_place(group);
        float *memory = scratch(2 * BLOCK + (copied ? channels * leading : SAMPLE_SIZE));
        float *values = memory + 2 * BLOCK;
        if (copied) x_.load_tile(plan, channel, channels, values, leading);
        std::vector<Channel> all;
        all.reserve(channels);  // a search looks at the values of its channel where they are
        for (std::size_t k = 0; k < channels; k++) {
            float *own = copied ? values + k * leading : nullptr;
            all.emplace_back(a_, group, Values{&plan, own, &x_, channel + k, memory, 1.0f});
            if (group.lambda != 1) all.back().begin(values);
        }
        search(all);
        for (const Channel &one : all) write(one, group, memory + BLOCK);
        if (copied && !rows_of_floats()) y_.store_tile(plan, channel, channels, values, leading);
    }

    // The channels take turns.
    static void search(std::vector<Channel> &all) {
        for (bool more = true; more;) {
            more = false;
            for (Channel &one : all)
                if (one.running()) {
                    one.pass();
                    more = true;
                }
        }
    }

    void write(const Channel &one, const Group &group, float *buffer) const {
        Values values = one.values();
        // A running center may be too large for the unit of values so small.
        if (group.lambda != 0 && values.scale > 1) values.multiply(1 / values.scale);
        Statistics used{0, 0};
        if (group.lambda != 1) used = one.statistics();
        if (group.lambda != 0) used = blended(a_, group, values.channel, used);
        const Affine map = affine_of(a_, values.channel, used, double(values.scale));
        if (!values.copied)
            by_blocks(values, map, buffer);
        else if (rows_of_floats())
            by_rows(values, map);
        else
            affine_block(values.copied, values.copied, values.plan->count(), map);
    }

    // Whether values are read from where they lie: rows long enough to make blocks of their own, or read only once.
    bool in_place(const Group &group) const {
        const bool floats = a_.dtype == AUGSERVE_FLOAT32 && x_.layout.position == 1;
        return floats && (std::size_t(a_.positions) >= BLOCK || (group.lambda == 1 && rows_of_floats()));
    }

    // Whether y is written row by row, without a copy.
    bool rows_of_floats() const {
        return a_.dtype == AUGSERVE_FLOAT32 && y_.layout.position == 1 && std::size_t(a_.positions) >= LONG_ROW;
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
