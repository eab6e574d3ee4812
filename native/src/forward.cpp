// The forward pass: for each channel of each group its statistics, blended with the running ones, then the affine map.

#include <algorithm>
#include <vector>

#include "channel.hpp"
#include "lanes.hpp"
#include "parallel.hpp"
#include "tracked.hpp"

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
        const bool copied = plan.count() <= MOST_COPIED && !in_place();
        const bool stored = copied && !rows_of_floats();  // the tile is turned into y's values, then stored
        const bool packed = plan.count() <= MOST_COPIED && a_.kind == AUGSERVE_AUG && group.lambda != 1;
        const std::size_t size = copied ? channels * leading : SAMPLE_SIZE;
        float *memory = scratch(3 * BLOCK + (stored && a_.residual ? 2 : 1) * size + (packed ? channels * leading : 0));
        float *values = memory + 3 * BLOCK, *residual = stored && a_.residual ? values + size : nullptr;
        float *spare = packed ? values + (residual ? 2 : 1) * size : nullptr;
        if (copied) x_.load_tile(plan, channel, channels, values, leading);
        if (residual) residual_.load_tile(plan, channel, channels, residual, leading);
        Brackets brackets(a_.rtol, a_.max_steps);
        std::vector<Channel> all;
        all.reserve(channels);  // a search looks at the values of its channel where they are
        for (std::size_t k = 0; k < channels; k++) {
            float *own = copied ? values + k * leading : nullptr;
            all.emplace_back(a_, group, Values{&plan, own, &x_, channel + k, memory, 1.0f}, brackets, k);
            if (group.lambda != 1) all.back().begin(values, spare ? spare + k * leading : nullptr);
        }
        search(all, brackets);
        if (copied && !stored) return by_rows(all, group);
        for (std::size_t k = 0; k < channels; k++)
            write(all[k], group, residual ? residual + k * leading : nullptr, memory + BLOCK);
        if (stored) y_.store_tile(plan, channel, channels, values, leading);
    }

    static void search(const std::vector<Channel> &all, Brackets &brackets) {
        while (brackets.running()) {
            for (std::size_t k = 0; k < all.size(); k++)
                if (brackets.running(k)) brackets.found(k, all[k].search().evaluate(brackets.y(k)));
            brackets.step();
        }
    }

    Affine map_of(Channel &one, const Group &group) const {
        Values &values = one.values();
        // A running center may be too large for the unit of values so small.
        if (group.lambda != 0 && values.scale > 1) values.multiply(1 / values.scale);
        Statistics used{0, 0};
        if (group.lambda != 1) used = one.statistics();
        if (group.lambda != 0) used = blended(a_, group, values.channel, used);
        return affine_of(a_, values.channel, used, double(values.scale));
    }

    // `residual`: of this channel, where it was copied.
    void write(Channel &one, const Group &group, const float *residual, float *buffer) const {
        const Affine map = map_of(one, group);
        const Values &values = one.values();
        if (values.copied)
            affine_block(values.copied, residual, values.copied, values.plan->count(), map, relu());
        else
            by_blocks(values, map, buffer);
    }

    // Whether values are read from where they lie: rows long enough to make blocks of their own.
    bool in_place() const {
        return a_.dtype == AUGSERVE_FLOAT32 && x_.layout.position == 1 && std::size_t(a_.positions) >= BLOCK;
    }

    // Whether y is written row by row, without a copy.
    bool rows_of_floats() const {
        return a_.dtype == AUGSERVE_FLOAT32 && y_.layout.position == 1 && std::size_t(a_.positions) >= LONG_ROW;
    }

    // Row by row of the tile, since the rows lie far apart.
    void by_rows(std::vector<Channel> &all, const Group &group) const {
        const Plan &plan = group.plan;
        std::vector<Affine> maps;
        maps.reserve(all.size());
        for (Channel &one : all) maps.push_back(map_of(one, group));
        const float *residual = static_cast<const float *>(a_.residual);
        float *y = static_cast<float *>(a_.y);
        for (std::size_t i = 0; i < plan.rows; i++)
            for (std::size_t k = 0; k < all.size(); k++) {
                const Values &values = all[k].values();
                const std::int64_t at = std::int64_t(values.channel) * y_.layout.channel +
                                        std::int64_t(plan.row(i)) * y_.layout.row;
                if (i + 1 < plan.rows) ask_for<true>(y + at + plan.step(i) * y_.layout.row, plan.positions);
                affine_block(values.copied + i * plan.positions, residual ? residual + at : nullptr, y + at,
                             plan.positions, maps[k], relu());
            }
    }

    void by_blocks(const Values &view, Affine map, float *buffer) const {
        for (std::size_t b = 0; b < view.blocks(); b++) {
            float *direct = y_.direct(*view.plan, view.channel, b);
            if (direct && b + 1 < view.blocks()) y_.ask_for_block<true>(*view.plan, view.channel, b + 1);
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
    std::vector<std::size_t> tracked;  // rows
    std::size_t largest = 0;
    for (const Group &group : groups_of(a)) {
        if (forward_in_lanes(a, group, executor)) continue;
        if (group.lambda == 1 && row_by_row(a)) {
            for (std::size_t i = 0; i < group.plan.rows; i++) tracked.push_back(group.plan.row(i));
            continue;
        }
        groups.push_back(group);
        largest = std::max(largest, group.plan.rows);
    }
    if (!tracked.empty()) forward_tracked(a, tracked, executor);
    if (groups.empty()) return;
    const std::size_t channels = std::size_t(a.channels), positions = std::size_t(a.positions);
    const bool contiguous = a.x_layout.position == 1 && a.y_layout.position == 1;
    const Tiling tiling(channels, largest * positions, contiguous, 1, false, a.threads,
                        std::size_t(a.rows) * channels * positions);
    Forward body(a, groups, tiling);
    parallel(executor, tiling.threads, tiling.threads, body);
}

}  // namespace augserve
