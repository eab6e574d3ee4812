// Forward in lanes, see lanes.hpp. Chunks of rows are spread over threads; what is decided of a channel is decided by one
// thread, from the sums of its chunks in their order.

#include "lanes.hpp"

#include "lane_chunks.hpp"

#ifdef AUGSERVE_AVX512

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "channel.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

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
                chunks_.runs(chunk, [&](const Run &run) {
                    lane_affine(x_.rows(run, block), const_cast<float *>(y_.at(run.row, block)), y_.stride(),
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
        chunks_.runs(chunk, [&](const Run &run) {
            lane_moments(x_.rows(run, block), part.moments);
        });
        Lane mean = part.moments.sum;
        for (float &value : mean.v) value = float(double(value) / chunks_.values(chunk));
        chunks_.runs(chunk, [&](const Run &run) {
            lane_squares(x_.rows(run, block), mean, part.squares, part.rest);
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
        chunks_.runs(chunk, [&](const Run &run) {
            lane_newton(x_.rows(run, block), point, table_, part.weight, part.residual);
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

}  // namespace

bool forward_in_lanes(const augserve_forward &a, const Group &group, const augserve_executor *executor) {
    if (!has_avx512() || a.dtype != AUGSERVE_FLOAT32 || std::size_t(a.channels) < LEAST_CHANNELS) return false;
    if (!side_by_side(a.x_layout, a.positions) || !side_by_side(a.y_layout, a.positions)) return false;
    if (a.kind == AUGSERVE_AUG && (a.exponents || !(a.exponent > 1 && a.exponent <= 2))) return false;
    const std::size_t count = group.plan.count();
    if (count < LEAST_COUNT || count > MOST_COUNT) return false;
    ForwardLanes lanes(a, group, executor);
    if (group.lambda != 1) {
        if (!lanes.measure()) return false;
        lanes.search();
    }
    lanes.write();
    return true;
}

}  // namespace augserve

#else

namespace augserve {

bool forward_in_lanes(const augserve_forward &, const Group &, const augserve_executor *) { return false; }

}  // namespace augserve

#endif
