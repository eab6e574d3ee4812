// Forward in lanes, see lanes.hpp. Chunks of rows are spread over threads; what is decided of a channel is decided by one
// thread, from the sums of its chunks in their order.

#include "lanes.hpp"

#include "lane_chunks.hpp"

#ifdef AUGSERVE_AVX512

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bracket.hpp"
#include "channel.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

constexpr float LEAST_ROOT = 1e-36f;  // whose inverse root is far from the end of floats

class ForwardLanes {
public:
    ForwardLanes(const augserve_forward &a, const Group &group, const augserve_executor *executor)
        : a_(a),
          group_(group),
          executor_(executor),
          chunks_(group.plan),
          blocks_((std::size_t(a.channels) + LANE_WIDTH - 1) / LANE_WIDTH),
          threads_(useful_threads(a.threads, group.plan.count() * std::size_t(a.channels))),
          x_{static_cast<const float *>(a.x), a.x_layout, std::size_t(a.channels)},
          y_{static_cast<const float *>(a.y), a.y_layout, std::size_t(a.channels)},
          residual_{static_cast<const float *>(a.residual), a.y_layout, std::size_t(a.channels)} {}

    // Returns false, having written nothing, where values need a scale.
    bool measure() {
        parts_.resize(chunks_.count * blocks_);
        sweep(blocks_, [&](std::size_t chunk, std::size_t from, std::size_t to) { moments_of(chunk, from, to); });
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
        brackets_.assign(blocks_, Brackets(a_.rtol, a_.max_steps));
        all_.reserve(channels);
        for (std::size_t c = 0; c < channels; c++)
            all_.emplace_back(a_, group_, Values{&group_.plan, nullptr, nullptr, c, nullptr, 1.0f},
                              brackets_[c / LANE_WIDTH], c % LANE_WIDTH);
        decide(blocks_, 1, [&](std::size_t block) {
            for (std::size_t c = block * LANE_WIDTH; c < block * LANE_WIDTH + x_.lanes(block); c++)
                all_[c].begin(found_[c], starts[c]);
        });
        std::vector<Point> points(blocks_);
        std::vector<Newton> parts(chunks_.count * blocks_);
        for (std::vector<std::size_t> busy = running(); !busy.empty(); busy = running()) {
            for (const std::size_t block : busy) points[block] = point_of(block);
            sweep(busy.size(), [&](std::size_t chunk, std::size_t from, std::size_t to) {
                for (std::size_t i = from; i < to; i++) parts[chunk * blocks_ + busy[i]] = {filled(0), filled(0)};
                chunks_.tiles(chunk, x_.channels, [&](const Tile &tile) {
                    for (std::size_t i = from; i < to; i++)
                        newton(x_.walk(tile, busy[i]), x_.source(tile, busy[i]), points[busy[i]],
                               parts[chunk * blocks_ + busy[i]]);
                });
            });
            decide(busy.size(), chunks_.count, [&](std::size_t task) { step(busy[task], points[busy[task]], parts); });
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
        sweep(blocks_, [&](std::size_t chunk, std::size_t from, std::size_t to) {
            chunks_.tiles(chunk, x_.channels, [&](const Tile &tile) {
                for (std::size_t block = from; block < to; block++)
                    lane_affine(x_.walk(tile, block), x_.source(tile, block),
                                residual_.data ? residual_.source(tile, block) : Source{}, y_.target(tile, block),
                                maps[block], a_.relu != 0);
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
    // Where a pass looks: by roots, in units of the data, as far as y times std is a float; or by a table, in standard
    // deviations.
    struct Point {
        LaneRoot root;
        LanePoint power;
        const PowerTable *table = nullptr;
    };

    template <class Body>
    void sweep(std::size_t blocks, Body body) const {
        augserve::sweep(chunks_, blocks, executor_, threads_, body);
    }

    // What is decided block by block, from `parts` sums each: by this thread where that is done before others begin.
    template <class Body>
    void decide(std::size_t tasks, std::size_t parts, Body body) const {
        parallel(executor_, tasks * (parts + DECISION) < WORTH_THREADS ? 1 : threads_, tasks, body);
    }

    void moments_of(std::size_t chunk, std::size_t from, std::size_t to) {
        const float inf = std::numeric_limits<float>::infinity();
        Part *parts = &parts_[chunk * blocks_];
        for (std::size_t block = from; block < to; block++)
            parts[block] = {{filled(0), filled(inf), filled(-inf), {}, {}}, filled(0), filled(0)};
        chunks_.tiles(chunk, x_.channels, [&](const Tile &tile) {
            for (std::size_t block = from; block < to; block++)
                lane_moments(x_.walk(tile, block), x_.source(tile, block), parts[block].moments);
        });
        for (std::size_t block = from; block < to; block++)
            for (float &value : parts[block].moments.sum.v) value = float(double(value) / chunks_.values(chunk));
        chunks_.tiles(chunk, x_.channels, [&](const Tile &tile) {
            for (std::size_t block = from; block < to; block++)
                lane_squares(x_.walk(tile, block), x_.source(tile, block), parts[block].moments.sum,
                             parts[block].squares, parts[block].rest);
        });
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
            if (brackets_[block].running()) blocks.push_back(block);
        return blocks;
    }

    Point point_of(std::size_t block) {
        Point point{{filled(0), filled(0), filled(1), filled(NO_VALUE), false},
                    {filled(0), filled(1), filled(0), filled(NO_VALUE)}};
        for (std::size_t k = 0; k < x_.lanes(block); k++) {
            if (!brackets_[block].running(k)) continue;
            const Search &search = all_[block * LANE_WIDTH + k].search();
            const Standard z = search.standard();
            const double unit = 1 / double(z.inverse), y = brackets_[block].y(k);
            point.root.center.v[k] = point.power.center.v[k] = z.center;
            point.root.without.v[k] = point.power.without.v[k] = search.without();
            point.root.some = point.root.some || search.without() != NO_VALUE;
            point.root.target.v[k] = float(y * unit);
            point.root.least.v[k] = std::max(float(1e-30 * unit), LEAST_ROOT);
            point.power.inverse.v[k] = z.inverse;
            point.power.y.v[k] = float(y);
            point.table = search.table();
        }
        return point;
    }

    static void newton(const Walk &walk, Source x, const Point &point, Newton &part) {
        if (point.table)
            lane_newton(walk, x, point.power, *point.table, part.weight, part.residual);
        else
            lane_newton_root(walk, x, point.root, part.weight, part.residual);
    }

    void step(std::size_t block, const Point &point, const std::vector<Newton> &parts) {
        double weight[LANE_WIDTH] = {}, residual[LANE_WIDTH] = {};
        for (std::size_t at = block; at < parts.size(); at += blocks_)
            for (std::size_t k = 0; k < LANE_WIDTH; k++) {
                weight[k] += double(parts[at].weight.v[k]);
                residual[k] += double(parts[at].residual.v[k]);
            }
        Brackets &brackets = brackets_[block];
        for (std::size_t k = 0; k < x_.lanes(block); k++) {
            if (!brackets.running(k)) continue;
            const Search &search = all_[block * LANE_WIDTH + k].search();
            // Of roots, from twice the sums in units of the data to standard deviations.
            const double root = point.table ? 1 : 1 / std::sqrt(double(search.standard().inverse));
            const double half = point.table ? 1 : 0.5;
            brackets.found(k, search.evaluate_sums(brackets.y(k), half * root * weight[k], half / root * residual[k]));
        }
        brackets.step();
    }

    const augserve_forward &a_;
    const Group &group_;
    const augserve_executor *executor_;
    Chunks chunks_;
    std::size_t blocks_, threads_;
    Side x_, y_, residual_;
    std::vector<Part> parts_;
    std::vector<Moments> found_;
    std::vector<Brackets> brackets_;  // of each block
    std::vector<Channel> all_;
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
