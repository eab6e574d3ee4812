// A tensor (N, C, L) seen channel by channel: the values of one channel, over the rows of one group, as blocks of at
// most BLOCK floats, whatever the strides and the format of storage.
//
// How the values are cut into blocks depends on the layout and on the numbers of rows and positions alone, so that sums
// over blocks do not depend on what else is normalized.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../include/augserve.h"
#include "simd.hpp"

namespace augserve {

// The rows of one group and how their values make blocks.
struct Plan {
    std::size_t rows, positions;
    const std::int64_t *order;   // the rows' indices, or nullptr for 0, 1, ..
    std::size_t rows_per_block;  // 0: a row makes one block or several
    std::size_t blocks_per_row;
    std::size_t blocks;

    // Rows shorter than `shortest` are put together into blocks.
    Plan(std::size_t rows, std::size_t positions, const std::int64_t *order, std::size_t shortest = BLOCK);

    std::size_t count() const { return rows * positions; }
    std::size_t offset(std::size_t block) const;  // of its first value among count()
    std::size_t size(std::size_t block) const;
    std::size_t row(std::size_t index) const { return order ? std::size_t(order[index]) : index; }
    std::int64_t step(std::size_t index) const { return order ? order[index + 1] - order[index] : 1; }  // to the next row
};

struct View {
    void *data;
    std::int64_t dtype;
    augserve_layout layout;

    // The values of a block: where they lie, or copied to `buffer`.
    const float *load(const Plan &plan, std::size_t channel, std::size_t block, float *buffer) const;
    // Where the values of a block may be written to, or nullptr: then `store` takes them.
    float *direct(const Plan &plan, std::size_t channel, std::size_t block) const;
    // Asks for the beginning of a block that is about to be read or written where it lies; processors guess the rest.
    template <bool WRITTEN = false>
    void ask_for_block(const Plan &plan, std::size_t channel, std::size_t block) const {
        constexpr std::size_t beginning = 256;
        if (const float *there = direct(plan, channel, block))
            ask_for<WRITTEN>(there, std::min(beginning, plan.size(block)));
    }
    void store(const Plan &plan, std::size_t channel, std::size_t block, const float *values) const;

    // Several channels at a time, each to `leading` floats of its own.
    void load_tile(const Plan &plan, std::size_t channel, std::size_t channels, float *tile,
                   std::size_t leading) const;
    void store_tile(const Plan &plan, std::size_t channel, std::size_t channels, const float *tile,
                    std::size_t leading) const;

private:
    std::size_t interleaved(const Plan &plan) const;
};

}  // namespace augserve
