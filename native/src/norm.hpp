// What forward and backward share: how channels are handed to threads, and what of them is kept near.
#pragma once

#include <cstddef>

#include "../include/augserve.h"
#include "view.hpp"

namespace augserve {

// Floats of copied values that a thread keeps at most (8 MiB): more are loaded again for every pass, so that the
// memory a norm takes does not grow with the activations.
constexpr std::size_t MOST_COPIED = std::size_t(1) << 21;

// The channels of a tensor cut into tiles, and the tiles into tasks.
struct Tiling {
    std::size_t channels, per_tile, tiles, threads;
    bool copied;  // the values of a tile are copied together; else each pass loads them from where they lie

    // `count`: values of a channel in the largest group; `tensors`: how many tensors are read, copied unless `in_place`;
    // `values`: of all.
    Tiling(std::size_t channels, std::size_t count, bool rows_contiguous, std::size_t tensors, bool in_place,
           std::int64_t threads, std::size_t values);

    std::size_t begin(std::size_t tile) const { return tile * per_tile; }
    std::size_t size(std::size_t tile) const;
};

// The distance between the channels of a tile: not a power of two, so that they do not meet in the cache's sets.
std::size_t leading_dimension(std::size_t count);

void forward(const augserve_forward &a, const augserve_executor *executor);
void backward(const augserve_backward &a, const augserve_executor *executor);
void medians(const augserve_median &a, const augserve_executor *executor);

}  // namespace augserve
