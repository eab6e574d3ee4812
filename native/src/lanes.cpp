// See lanes.hpp. Chunks of rows are spread over threads; what is decided of a channel is decided by one thread, from
// the sums of its chunks in their order.

#include "lanes.hpp"

#include "lanes_avx512.hpp"

#ifdef AUGSERVE_AVX512

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <memory>
#include <vector>

#include "channel.hpp"
#include "gradient.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

constexpr std::size_t LEAST_CHANNELS = 8;   // fewer leave lanes empty
constexpr std::size_t MOST_CHUNKS = 256;    // their sums are a bounded part of the memory
constexpr std::size_t DECISION = 32, WORTH_THREADS = 512;  // of a block, in times of adding one chunk to its sums
constexpr std::size_t LEAST_COUNT = 9, MOST_COUNT = std::size_t(1) << 22;  // of values a channel, as Search has it

bool side_by_side(const augserve_layout &layout, std::int64_t positions) {
    return layout.channel == 1 && layout.row >= 0 && (layout.position > 0 || positions == 1);
}

// The rows of a group in chunks, each of whole rows of the tensor.
struct Chunks {
    const Plan &plan;
    std::size_t rows_per_chunk, count;

    explicit Chunks(const Plan &plan) : plan(plan) {
        const std::size_t enough = (BLOCK + plan.positions - 1) / plan.positions;
        rows_per_chunk = std::max(enough, (plan.rows + MOST_CHUNKS - 1) / MOST_CHUNKS);
        count = (plan.rows + rows_per_chunk - 1) / rows_per_chunk;
    }

    double values(std::size_t chunk) const { return double((end(chunk) - begin(chunk)) * plan.positions); }
    std::size_t begin(std::size_t chunk) const { return chunk * rows_per_chunk; }
    std::size_t end(std::size_t chunk) const { return std::min(plan.rows, begin(chunk) + rows_per_chunk); }

    // Calls run(row, n) for runs of n positions that have one stride in `layouts`, beginning at a row of the tensor.
    template <class Run>
    void runs(std::size_t chunk, std::initializer_list<augserve_layout> layouts, Run run) const {
        bool one = !plan.order;
        for (const augserve_layout &layout : layouts)
            one = one && (plan.positions == 1 || layout.row == layout.position * std::int64_t(plan.positions));
        if (one) return run(begin(chunk), (end(chunk) - begin(chunk)) * plan.positions);
        for (std::size_t i = begin(chunk); i < end(chunk); i++) run(plan.row(i), plan.positions);
    }
};

// A tensor of floats with channels side by side.
struct Side {
    const float *data;
    augserve_layout layout;
    std::size_t channels, positions;

    std::size_t stride() const { return std::size_t(positions == 1 ? layout.row : layout.position); }
    std::size_t lanes(std::size_t block) const { return std::min(LANE_WIDTH, channels - block * LANE_WIDTH); }
    const float *at(std::size_t row, std::size_t block) const {
        return data + std::int64_t(row) * layout.row + std::int64_t(block * LANE_WIDTH);
    }
    Rows rows(std::size_t row, std::size_t n, std::size_t block) const {
        return {at(row, block), stride(), n, lanes(block)};
    }
};

Lane filled(float value) {
    Lane lane;
    std::fill_n(lane.v, LANE_WIDTH, value);
    return lane;
}

class ForwardLanes {
public:
    ForwardLanes(const augserve_forward &a, const Group &group, const augserve_executor *executor)
        : a_(a),
          group_(group),
          executor_(executor),
          chunks_(group.plan),
          blocks_((std::size_t(a.channels) + LANE_WIDTH - 1) / LANE_WIDTH),
          threads_(useful_threads(a.threads, group.plan.count() * std::size_t(a.channels))),
          x_{static_cast<const float *>(a.x), a.x_layout, std::size_t(a.channels), std::size_t(a.positions)},
          y_{static_cast<const float *>(a.y), a.y_layout, std::size_t(a.channels), std::size_t(a.positions)} {}

    // Returns false, having written nothing, where values need a scale.
    bool measure() {
        parts_.resize(chunks_.count * blocks_);
        spread(parts_.size(), [&](std::size_t task) { moments_of(task / blocks_, task % blocks_, parts_[task]); });
        const std::size_t channels = std::size_t(a_.channels);
        found_.resize(channels);
        decide(blocks_, chunks_.count, [&](std::size_t block) {
            for (std::size_t k = 0; k < x_.lanes(block); k++) 
                found_[block * LANE_WIDTH + k] = combined(block, k);
        });
        return std::all_of(found_.begin(), found_.end(), [](const Moments &found) {
            return !found.finite || safe_scale(found.low, found.high) == 1.0f;
        });
    }

    void search() {
        const std::size_t channels = std::size_t(a_.channels);
        std::vector<double> starts(channels, std::nan(""));
        if (a_.start) std::copy_n(a_.start, channels, starts.begin());
        all_.reserve(channels);
        for (std::size_t c = 0; c < channels; c++)
            all_.emplace_back(a_, group_, Values{&group_.plan, nullptr, nullptr, c, nullptr, 1.0f});
        decide(blocks_, 1, [&](std::size_t block) {
            for (std::size_t c = block * LANE_WIDTH; c < block * LANE_WIDTH + x_.lanes(block); c++)
                all_[c].begin(found_[c], starts[c]);
        });
        std::vector<LanePoint> points(blocks_);
        std::vector<Newton> parts(chunks_.count * blocks_);
        for (std::vector<std::size_t> busy = running(); !busy.empty(); busy = running()) {
            for (const std::size_t block : busy) points[block] = point_of(block);
            spread(chunks_.count * busy.size(), [&](std::size_t task) {
                const std::size_t chunk = task / busy.size(), block = busy[task % busy.size()];
                newton_of(chunk, block, points[block], parts[chunk * blocks_ + block]);
            });
            decide(busy.size(), chunks_.count, [&](std::size_t task) { step(busy[task], parts); });
        }
    }

    void write() {
        std::vector<LaneMap> maps(blocks_);
        decide(blocks_, 1, [&](std::size_t block) {
            for (std::size_t k = 0; k < x_.lanes(block); k++) {
                const std::size_t c = block * LANE_WIDTH + k;
                Statistics used{0, 0};
                if (group_.lambda != 1) used = all_[c].statistics();
                if (group_.lambda != 0) used = blended(a_, group_, c, used);
                const Affine map = affine_of(a_, c, used, 1.0);
                maps[block].center.v[k] = map.center;
                maps[block].scale.v[k] = map.scale;
                maps[block].shift.v[k] = map.shift;
            }
        });
        spread(chunks_.count, [&](std::size_t chunk) {
            for (std::size_t block = 0; block < blocks_; block++)
                chunks_.runs(chunk, {x_.layout, y_.layout}, [&](std::size_t row, std::size_t n) {
                    lane_affine(x_.rows(row, n, block), const_cast<float *>(y_.at(row, block)), y_.stride(),
                                maps[block]);
                });
        });
    }

private:
    struct Part {
        LaneMoments moments;
        Lane squares, rest;
    };
    struct Newton {
        Lane weight, residual;
    };

    template <class Body>
    void spread(std::size_t tasks, Body body) const {
        parallel(executor_, threads_, tasks, body);
    }

    // What is decided block by block, from `parts` sums each: by this thread where that is done before others begin.
    template <class Body>
    void decide(std::size_t tasks, std::size_t parts, Body body) const {
        parallel(executor_, tasks * (parts + DECISION) < WORTH_THREADS ? 1 : threads_, tasks, body);
    }

    void moments_of(std::size_t chunk, std::size_t block, Part &part) const {
        const float inf = std::numeric_limits<float>::infinity();
        part = {{filled(0), filled(inf), filled(-inf), {}, {}}, filled(0), filled(0)};
        chunks_.runs(chunk, {x_.layout}, [&](std::size_t row, std::size_t n) {
            lane_moments(x_.rows(row, n, block), part.moments);
        });
        Lane mean = part.moments.sum;
        for (float &value : mean.v) value = float(double(value) / chunks_.values(chunk));
        chunks_.runs(chunk, {x_.layout}, [&](std::size_t row, std::size_t n) {
            lane_squares(x_.rows(row, n, block), mean, part.squares, part.rest);
        });
        part.moments.sum = mean;
    }

    Moments combined(std::size_t block, std::size_t k) const {
        const double count = double(group_.plan.count());
        double mean = 0, squares = 0;
        float low = std::numeric_limits<float>::infinity(), high = -low;
        std::size_t zeros = 0;
        std::int32_t magnitude = 0;
        for (std::size_t chunk = 0; chunk < chunks_.count; chunk++) {
            const Part &part = parts_[chunk * blocks_ + block];
            mean += double(part.moments.sum.v[k]) * chunks_.values(chunk) + double(part.rest.v[k]);
            low = std::min(low, part.moments.low.v[k]);
            high = std::max(high, part.moments.high.v[k]);
            magnitude = std::max(magnitude, part.moments.magnitude[k]);
            zeros += std::size_t(part.moments.zeros[k]);
        }
        mean /= count;
        for (std::size_t chunk = 0; chunk < chunks_.count; chunk++) {
            const Part &part = parts_[chunk * blocks_ + block];
            const double values = chunks_.values(chunk), rest = double(part.rest.v[k]);
            const double away = double(part.moments.sum.v[k]) + rest / values - mean;
            squares += double(part.squares.v[k]) - rest * rest / values + values * away * away;
        }
        if (low == high) mean = low, squares = 0;  // exactly
        return {mean, std::max(squares, 0.0) / count, low, high, zeros, magnitude < 0x7f800000};
    }

    std::vector<std::size_t> running() const {
        std::vector<std::size_t> blocks;
        for (std::size_t block = 0; block < blocks_; block++)
            for (std::size_t k = 0; k < x_.lanes(block); k++)
                if (all_[block * LANE_WIDTH + k].running()) {
                    blocks.push_back(block);
                    break;
                }
        return blocks;
    }

    LanePoint point_of(std::size_t block) {
        LanePoint point{filled(0), filled(1), filled(0), filled(NO_VALUE)};
        for (std::size_t k = 0; k < x_.lanes(block); k++) {
            Channel &channel = all_[block * LANE_WIDTH + k];
            if (!channel.running()) continue;
            const Search::Point own = channel.search().point();
            point.center.v[k] = own.z.center;
            point.inverse.v[k] = own.z.inverse;
            point.y.v[k] = own.y;
            point.without.v[k] = own.without;
            table_ = channel.search().table();  // one for all: they share phi
        }
        return point;
    }

    void newton_of(std::size_t chunk, std::size_t block, const LanePoint &point, Newton &part) const {
        part = {filled(0), filled(0)};
        chunks_.runs(chunk, {x_.layout}, [&](std::size_t row, std::size_t n) {
            lane_newton(x_.rows(row, n, block), point, table_, part.weight, part.residual);
        });
    }

    void step(std::size_t block, const std::vector<Newton> &parts) {
        double weight[LANE_WIDTH] = {}, residual[LANE_WIDTH] = {};
        for (std::size_t at = block; at < parts.size(); at += blocks_)
            for (std::size_t k = 0; k < LANE_WIDTH; k++) {
                weight[k] += double(parts[at].weight.v[k]);
                residual[k] += double(parts[at].residual.v[k]);
            }
        for (std::size_t k = 0; k < x_.lanes(block); k++) {
            Channel &channel = all_[block * LANE_WIDTH + k];
            if (channel.running()) channel.search().step(weight[k], residual[k]);
        }
    }

    const augserve_forward &a_;
    const Group &group_;
    const augserve_executor *executor_;
    Chunks chunks_;
    std::size_t blocks_, threads_;
    Side x_, y_;
    std::vector<Part> parts_;
    std::vector<Moments> found_;
    std::vector<Channel> all_;
    const PowerTable *table_ = nullptr;
};

class BackwardLanes {
public:
    BackwardLanes(const augserve_backward &a, const Plan &plan, const augserve_executor *executor)
        : a_(a),
          executor_(executor),
          chunks_(plan),
          blocks_((std::size_t(a.channels) + LANE_WIDTH - 1) / LANE_WIDTH),
          threads_(useful_threads(a.threads, plan.count() * std::size_t(a.channels))),
          x_{static_cast<const float *>(a.x), a.x_layout, std::size_t(a.channels), std::size_t(a.positions)},
          dy_{static_cast<const float *>(a.dy), a.dy_layout, std::size_t(a.channels), std::size_t(a.positions)},
          dx_{static_cast<const float *>(a.dx), a.dx_layout, std::size_t(a.channels), std::size_t(a.positions)} {}

    void run() {
        std::vector<LaneGradient> given(blocks_);
        std::vector<LaneGradientTerms> terms(blocks_);
        std::vector<LaneGradientSums> parts(chunks_.count * blocks_);
        for (std::size_t block = 0; block < blocks_; block++) given[block] = describe(block);
        parallel_for(parts.size(), [&](std::size_t task) {
            const std::size_t chunk = task / blocks_, block = task % blocks_;
            parts[task] = {filled(0), filled(0), filled(0), filled(0), filled(0)};
            chunks_.runs(chunk, {x_.layout, dy_.layout}, [&](std::size_t row, std::size_t n) {
                lane_gradient_sums(x_.rows(row, n, block), dy_.at(row, block), dy_.stride(), given[block], parts[task]);
            });
        });
        const bool few = blocks_ * (chunks_.count + DECISION) < WORTH_THREADS;
        auto finish = [&](std::size_t block) { terms[block] = terms_of(block, parts); };
        parallel(executor_, few ? 1 : threads_, blocks_, finish);
        parallel_for(chunks_.count, [&](std::size_t chunk) {
            for (std::size_t block = 0; block < blocks_; block++)
                chunks_.runs(chunk, {x_.layout, dy_.layout, dx_.layout}, [&](std::size_t row, std::size_t n) {
                    lane_gradient(x_.rows(row, n, block), dy_.at(row, block), dy_.stride(),
                                  const_cast<float *>(dx_.at(row, block)), dx_.stride(), given[block], terms[block]);
                });
        });
    }

private:
    template <class Body>
    void parallel_for(std::size_t tasks, Body body) const {
        parallel(executor_, threads_, tasks, body);
    }

    LaneGradient describe(std::size_t block) const {
        const bool around_median = a_.kind == AUGSERVE_AUG;
        LaneGradient lanes{filled(0), filled(0), filled(1), filled(0), filled(0),
                           around_median && a_.exponent == 1.5 && chunks_.plan.count() > 2, !around_median};
        for (std::size_t k = 0; k < x_.lanes(block); k++) {
            const GradientChannel channel = describe_channel(a_, block * LANE_WIDTH + k, chunks_.plan.count());
            lanes.center.v[k] = channel.t.center;
            lanes.inverse.v[k] = channel.t.inverse;
            lanes.least.v[k] = channel.power.least;
            lanes.low.v[k] = a_.first[channel.index];
            lanes.high.v[k] = a_.second[channel.index];
        }
        return lanes;
    }

    LaneGradientTerms terms_of(std::size_t block, const std::vector<LaneGradientSums> &parts) const {
        LaneGradientTerms lanes{filled(0), filled(0), filled(0), filled(0), filled(0), filled(0)};
        for (std::size_t k = 0; k < x_.lanes(block); k++) {
            GradientTotals total{};
            for (std::size_t chunk = 0; chunk < chunks_.count; chunk++) {
                const LaneGradientSums &part = parts[chunk * blocks_ + block];
                total.dy += double(part.dy.v[k]);
                total.dy_t += double(part.dy_t.v[k]);
                total.weight += double(part.weight.v[k]);
                total.at_low += std::size_t(part.at_low.v[k]);
                total.at_high += std::size_t(part.at_high.v[k]);
            }
            const GradientChannel channel = describe_channel(a_, block * LANE_WIDTH + k, chunks_.plan.count());
            const GradientMap map = finish_channel(a_, channel, total, chunks_.plan.count());
            lanes.by_dy.v[k] = map.by.by_dy;
            lanes.by_t.v[k] = map.by.by_t;
            lanes.by_weight.v[k] = map.by.by_weight;
            lanes.constant.v[k] = map.by.constant;
            lanes.at_low.v[k] = map.at_low;
            lanes.at_high.v[k] = map.at_high;
        }
        return lanes;
    }

    const augserve_backward &a_;
    const augserve_executor *executor_;
    Chunks chunks_;
    std::size_t blocks_, threads_;
    Side x_, dy_, dx_;
};

}  // namespace

bool forward_in_lanes(const augserve_forward &a, const augserve_executor *executor) {
    if (!has_avx512() || a.dtype != AUGSERVE_FLOAT32 || std::size_t(a.channels) < LEAST_CHANNELS) return false;
    if (!side_by_side(a.x_layout, a.positions) || !side_by_side(a.y_layout, a.positions)) return false;
    if (a.kind == AUGSERVE_AUG && (a.exponents || !(a.exponent > 1 && a.exponent <= 2))) return false;
    const std::vector<Group> groups = groups_of(a);
    std::vector<std::unique_ptr<ForwardLanes>> all;
    for (const Group &group : groups) {
        const std::size_t count = group.plan.count();
        if (count != 0 && (count < LEAST_COUNT || count > MOST_COUNT)) return false;
        if (count == 0 && group.lambda != 1) return false;  // its statistics are to be noted all the same
    }
    for (const Group &group : groups) {
        all.push_back(std::make_unique<ForwardLanes>(a, group, executor));
        if (group.lambda != 1 && !all.back()->measure()) return false;
    }
    for (std::size_t g = 0; g < groups.size(); g++) {
        if (groups[g].plan.count() == 0) continue;
        if (groups[g].lambda != 1) all[g]->search();
        all[g]->write();
        all[g].reset();
    }
    return true;
}

bool backward_in_lanes(const augserve_backward &a, const augserve_executor *executor) {
    if (!has_avx512() || a.dtype != AUGSERVE_FLOAT32 || std::size_t(a.channels) < LEAST_CHANNELS) return false;
    for (const augserve_layout &layout : {a.x_layout, a.dy_layout, a.dx_layout})
        if (!side_by_side(layout, a.positions)) return false;
    if (a.kind == AUGSERVE_AUG && (a.exponents || (a.exponent != 1.5 && a.exponent != 2))) return false;
    const Plan plan(std::size_t(a.rows), std::size_t(a.positions), nullptr);
    if (plan.count() == 0 || plan.count() > MOST_COUNT) return false;
    BackwardLanes(a, plan, executor).run();
    return true;
}

}  // namespace augserve

#else

namespace augserve {

bool forward_in_lanes(const augserve_forward &, const augserve_executor *) { return false; }
bool backward_in_lanes(const augserve_backward &, const augserve_executor *) { return false; }

}  // namespace augserve

#endif
