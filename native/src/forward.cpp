// The forward pass: for each channel of each group its statistics, blended with the running ones, then the affine map.

#include <algorithm>
#include <vector>

#include "channel.hpp"
#include "lanes.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

constexpr std::size_t LONG_ROW = 64;  // shorter ones cost more calls than copies

class Forward {
public:
    Forward(const augserve_forward &a, const std::vector<Group> &groups, const Tiling &tiling)
        : a_(a),
          groups_(groups),
          tiling_(tiling),
          x_{const_cast<void *>(a.x), a.dtype, a.x_layout},
          y_{a.y, a.dtype, a.y_layout},
          residual_{const_cast<void *>(a.residual), a.dtype, a.y_layout} {}

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
        const bool stored = copied && !rows_of_floats();  // the tile is turned into y's values, then stored
        const std::size_t size = copied ? channels * leading : SAMPLE_SIZE;
        float *memory = scratch(3 * BLOCK + (stored && a_.residual ? 2 : 1) * size);
        float *values = memory + 3 * BLOCK, *residual = stored && a_.residual ? values + size : nullptr;
        if (copied) x_.load_tile(plan, channel, channels, values, leading);
        if (residual) residual_.load_tile(plan, channel, channels, residual, leading);
        std::vector<Channel> all;
        all.reserve(channels);  // a search looks at the values of its channel where they are
        for (std::size_t k = 0; k < channels; k++) {
            float *own = copied ? values + k * leading : nullptr;
            all.emplace_back(a_, group, Values{&plan, own, &x_, channel + k, memory, 1.0f});
            if (group.lambda != 1) all.back().begin(values);
        }
        search(all);
        for (std::size_t k = 0; k < channels; k++)
            write(all[k], group, residual ? residual + k * leading : nullptr, memory + BLOCK);
        if (stored) y_.store_tile(plan, channel, channels, values, leading);
    }

    // The channels take turns.
    static void search(std::vector<Channel> &all) {
        for (bool more = true; more;) {
            more = false;
            for (Channel &one : all)
                if (one.running()) {
                    one.search().pass();
                    more = true;
                }
        }
    }

    // `residual`: of this channel, where it was copied.
    void write(const Channel &one, const Group &group, const float *residual, float *buffer) const {
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
            affine_block(values.copied, residual, values.copied, values.plan->count(), map, relu());
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
        const std::int64_t channel = std::int64_t(view.channel) * y_.layout.channel;
        const float *residual = static_cast<const float *>(a_.residual);
        for (std::size_t i = 0; i < plan.rows; i++) {
            const std::int64_t at = channel + std::int64_t(plan.row(i)) * y_.layout.row;
            affine_block(view.copied + i * plan.positions, residual ? residual + at : nullptr,
                         static_cast<float *>(a_.y) + at, plan.positions, map, relu());
        }
    }

    void by_blocks(const Values &view, Affine map, float *buffer) const {
        for (std::size_t b = 0; b < view.blocks(); b++) {
            float *direct = y_.direct(*view.plan, view.channel, b);
            float *y = direct ? direct : buffer;
            const float *residual =
                a_.residual ? residual_.load(*view.plan, view.channel, b, buffer + BLOCK) : nullptr;
            affine_block(view.block(b), residual, y, view.size(b), map, relu());
            if (!direct) y_.store(*view.plan, view.channel, b, y);
        }
    }

    bool relu() const { return a_.relu != 0; }

    const augserve_forward &a_;
    const std::vector<Group> &groups_;
    const Tiling &tiling_;
    View x_, y_, residual_;
};

}  // namespace

void forward(const augserve_forward &a, const augserve_executor *executor) {
    std::vector<Group> groups;  // each goes the way that its own values make it go
    std::size_t largest = 0;
    for (const Group &group : groups_of(a)) {
        if (!a.residual && !a.relu && forward_in_lanes(a, group, executor)) continue;
        groups.push_back(group);
        largest = std::max(largest, group.plan.rows);
    }
    if (groups.empty()) return;
    const std::size_t channels = std::size_t(a.channels), positions = std::size_t(a.positions);
    const bool contiguous = a.x_layout.position == 1 && a.y_layout.position == 1;
    const Tiling tiling(channels, largest * positions, contiguous, 1, a.threads,
                        std::size_t(a.rows) * channels * positions);
    Forward body(a, groups, tiling);
    parallel(executor, tiling.threads, tiling.threads, body);
}

}  // namespace augserve
