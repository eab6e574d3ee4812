// Backward in lanes, see lanes.hpp and gradient.hpp: one pass of sums over the chunks, one that writes them.

#include "lanes.hpp"

#include "lane_chunks.hpp"

#ifdef AUGSERVE_AVX512

#include <algorithm>
#include <vector>

#include "gradient.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

class BackwardLanes {
public:
    BackwardLanes(const augserve_backward &a, const Plan &plan, const augserve_executor *executor)
        : a_(a),
          executor_(executor),
          chunks_(plan),
          blocks_((std::size_t(a.channels) + LANE_WIDTH - 1) / LANE_WIDTH),
          threads_(useful_threads(a.threads, plan.count() * std::size_t(a.channels))),
          x_{static_cast<const float *>(a.x), a.x_layout, std::size_t(a.channels)},
          dy_{static_cast<const float *>(a.dy), a.dy_layout, std::size_t(a.channels)},
          dx_{static_cast<const float *>(a.dx), a.dx_layout, std::size_t(a.channels)} {}

    void run() {
        std::vector<LaneGradient> given(blocks_);
        std::vector<LaneGradientTerms> terms(blocks_);
        std::vector<LaneGradientSums> parts(chunks_.count * blocks_);
        for (std::size_t block = 0; block < blocks_; block++) given[block] = describe(block);
        sweep(blocks_, [&](std::size_t chunk, std::size_t from, std::size_t to) {
            LaneGradientSums *part = &parts[chunk * blocks_];
            for (std::size_t block = from; block < to; block++)
                part[block] = {filled(0), filled(0), filled(0), filled(0), filled(0)};
            chunks_.tiles(chunk, x_.channels, [&](const Tile &tile) {
                for (std::size_t block = from; block < to; block++)
                    lane_gradient_sums(x_.walk(tile, block), x_.source(tile, block), dy_.source(tile, block),
                                       given[block], part[block]);
            });
        });
        const bool few = blocks_ * (chunks_.count + DECISION) < WORTH_THREADS;
        auto finish = [&](std::size_t block) { terms[block] = terms_of(block, parts); };
        parallel(executor_, few ? 1 : threads_, blocks_, finish);
        sweep(blocks_, [&](std::size_t chunk, std::size_t from, std::size_t to) {
            chunks_.tiles(chunk, x_.channels, [&](const Tile &tile) {
                for (std::size_t block = from; block < to; block++)
                    lane_gradient(x_.walk(tile, block), x_.source(tile, block), dy_.source(tile, block),
                                  dx_.target(tile, block), given[block], terms[block]);
            });
        });
    }

private:
    template <class Body>
    void sweep(std::size_t blocks, Body body) const {
        augserve::sweep(chunks_, blocks, executor_, threads_, body);
    }

    LaneGradient describe(std::size_t block) const {
        const bool around_median = a_.kind == AUGSERVE_AUG;
        LaneGradient lanes{filled(0), filled(0), filled(1), filled(0), filled(0), filled(0), filled(0),
                           around_median && a_.exponent == 1.5 && chunks_.plan.count() > 2, !around_median,
                           a_.relu != 0};
        for (std::size_t k = 0; k < x_.lanes(block); k++) {
            const GradientChannel channel = describe_channel(a_, block * LANE_WIDTH + k, chunks_.plan.count());
            lanes.center.v[k] = channel.t.center;
            lanes.inverse.v[k] = channel.t.inverse;
            lanes.least.v[k] = channel.power.least;
            lanes.low.v[k] = a_.first[channel.index];
            lanes.high.v[k] = a_.second[channel.index];
            lanes.weight.v[k] = float(channel.gamma);
            lanes.bias.v[k] = channel.gate.shift;
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

bool backward_in_lanes(const augserve_backward &, const augserve_executor *) { return false; }

}  // namespace augserve

#endif
