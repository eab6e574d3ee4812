// See plan.hpp.

#include "plan.hpp"

#include <algorithm>
#include <stdexcept>

namespace augserve::cuda {
namespace {

constexpr std::uint64_t SHARE = 8192;   // values of a part at least
constexpr std::uint64_t BLOCKS = 1024;  // parts of all channels of a group, about so many
constexpr std::uint64_t MOST_PARTS = 512, FEWEST_PARTS = 2;
constexpr std::uint64_t STEP = 1024;    // parts are multiples of it
constexpr std::uint64_t LARGEST_PART = std::uint64_t(1) << 30;

Size size_of(float lambda, std::uint64_t values, const Limits &limits) {
    if (lambda == 1) return Size::TRACKED;
    if (values <= limits.warp) return Size::WARP;
    if (values <= limits.small_block) return Size::SMALL_BLOCK;
    return values <= limits.block ? Size::BLOCK : Size::LARGE;
}

void cut(Group &group, std::uint64_t values, std::uint32_t channels) {
    const std::uint64_t most = std::clamp(BLOCKS / channels, FEWEST_PARTS, MOST_PARTS);
    const std::uint64_t wanted = std::clamp<std::uint64_t>((values + SHARE - 1) / SHARE, 1, most);
    const std::uint64_t part = ((values + wanted - 1) / wanted + STEP - 1) / STEP * STEP;
    if (part > LARGEST_PART) throw std::length_error("a statistics group has too many values of a channel");
    group.part = std::uint32_t(part);
    group.parts = std::uint32_t((values + part - 1) / part);
}

// Within these numbers no index of a kernel or a grid overflows.
void check(std::uint64_t rows, std::uint64_t channels, std::uint64_t positions) {
    constexpr std::uint64_t most = std::uint64_t(1) << 30;
    if (rows > most || channels > most || positions > most || channels * positions > most || rows * channels > most ||
        rows * channels > 256 * most / positions)
        throw std::length_error("x is too large: rows times channels and the values of a row go up to 2^30, all values "
                                "up to 2^38");
}

}  // namespace

Limits limits_of(std::size_t block_memory) {
    constexpr std::size_t ours = 4096;  // for what a block combines
    Limits limits;
    limits.block = std::clamp<std::uint64_t>((block_memory - ours) / sizeof(float), limits.small_block, limits.block);
    return limits;
}

Plan plan(const std::vector<std::int64_t> &order, const std::vector<std::int64_t> &offsets,
          const std::vector<float> &tracked_weight, std::uint32_t channels, std::uint32_t positions,
          const Limits &limits) {
    check(order.size(), channels, positions);
    Plan plan{};
    std::vector<std::size_t> sorted[SIZES];
    for (std::size_t g = 0; g < tracked_weight.size(); g++) {
        const std::uint64_t values = std::uint64_t(offsets[g + 1] - offsets[g]) * positions;
        sorted[int(size_of(tracked_weight[g], values, limits))].push_back(g);
    }
    plan.order.reserve(order.size());
    for (int size = 0; size < SIZES; size++) {
        Class &own = plan.classes[size];
        own.begin = std::uint32_t(plan.groups.size());
        for (const std::size_t g : sorted[size]) {
            Group group{};
            group.begin = std::int32_t(plan.order.size());
            group.rows = std::int32_t(offsets[g + 1] - offsets[g]);
            group.lambda = tracked_weight[g];
            plan.order.insert(plan.order.end(), order.begin() + offsets[g], order.begin() + offsets[g + 1]);
            if (Size(size) == Size::LARGE) {
                cut(group, std::uint64_t(group.rows) * positions, channels);
                group.set = std::uint32_t(plan.sets);
                group.first = std::int64_t(plan.parts);
                plan.sets += channels;
                plan.parts += std::size_t(channels) * group.parts;
            }
            if (Size(size) == Size::TRACKED && plan.groups.size() > own.begin)
                plan.groups.back().rows += group.rows;  // one group for all of them
            else
                plan.groups.push_back(group);
            own.rows = std::max(own.rows, std::uint32_t(plan.groups.back().rows));
            own.parts = std::max(own.parts, group.parts);
        }
        own.groups = std::uint32_t(plan.groups.size()) - own.begin;
    }
    if (std::is_sorted(plan.order.begin(), plan.order.end())) plan.order.clear();
    return plan;
}

}  // namespace augserve::cuda
