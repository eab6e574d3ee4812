// What forward and backward in lanes share: tensors whose channels lie side by side, and their rows in chunks.
#pragma once

#include "lanes_avx512.hpp"

#ifdef AUGSERVE_AVX512

#include <algorithm>

#include "view.hpp"

namespace augserve {

constexpr std::size_t LEAST_CHANNELS = 8;   // fewer leave lanes empty
constexpr std::size_t MOST_CHUNKS = 256;    // their sums are a bounded part of the memory
constexpr std::size_t DECISION = 32, WORTH_THREADS = 512;  // of a block, in times of adding one chunk to its sums
constexpr std::size_t LEAST_COUNT = 9, MOST_COUNT = std::size_t(1) << 22;  // of values a channel, as Search has it

inline bool side_by_side(const augserve_layout &layout, std::int64_t positions) {
    return layout.channel == 1 && layout.row >= 0 && (layout.position > 0 || positions == 1);
}

// n positions from a row of the tensor on, or the rows `order[0]`, .. `order[n - 1]` of it.
struct Run {
    std::size_t row, n;
    const std::int64_t *order;
};

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

    // Calls run for the positions of each row of the tensor, or where rows have one position for all rows at once: the
    // same whether the rows follow one another or not, so that a group's sums are those of the group alone.
    template <class Do>
    void runs(std::size_t chunk, Do run) const {
        const std::size_t first = begin(chunk), last = end(chunk);
        if (plan.positions == 1)
            return plan.order ? run(Run{0, last - first, plan.order + first}) : run(Run{first, last - first, nullptr});
        for (std::size_t i = first; i < last; i++) run(Run{plan.row(i), plan.positions, nullptr});
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
    Rows rows(const Run &run, std::size_t block) const {
        return {at(run.row, block), stride(), run.n, lanes(block), run.order};
    }
};

inline Lane filled(float value) {
    Lane lane;
    std::fill_n(lane.v, LANE_WIDTH, value);
    return lane;
}

}  // namespace augserve

#endif
