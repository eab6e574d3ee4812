// Which kernels a run takes: groups sorted by the size of their sets, and how large sets are cut. A rule of the group's
// own size, the positions and the channels alone, since it sets the order of sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "norm.cuh"

namespace augserve::cuda {

// What takes the sets of a group. TRACKED: the running statistics alone, nothing to find.
enum class Size { TRACKED, WARP, SMALL_BLOCK, BLOCK, LARGE };
constexpr int SIZES = 5;

// Values of a set at most; a block keeps them in its memory.
struct Limits {
    std::uint64_t warp = 1024, small_block = 4096, block = 32768;
};

// Of a device whose blocks can have so many bytes of memory.
Limits limits_of(std::size_t block_memory);

// The groups of one size.
struct Class {
    std::uint32_t begin, groups;  // in Plan::groups
    std::uint32_t rows;           // of the largest
    std::uint32_t parts;          // of LARGE: the most
};

struct Plan {
    std::vector<std::int32_t> order;  // rows, group after group; empty: as they come
    std::vector<Group> groups;        // by size
    Class classes[SIZES];
    std::size_t sets, parts;  // of the large groups
};

// `order` and `offsets`: the rows of each group, as group_rows() gives them; every lambda is in [0, 1].
// Throws std::length_error where indices would not do.
Plan plan(const std::vector<std::int64_t> &order, const std::vector<std::int64_t> &offsets,
          const std::vector<float> &tracked_weight, std::uint32_t channels, std::uint32_t positions,
          const Limits &limits = Limits());

}  // namespace augserve::cuda
