// What forward and backward in lanes share: tensors whose channels lie side by side, and their rows in chunks.
#pragma once

#include "lanes_avx512.hpp"

#ifdef AUGSERVE_AVX512

#include <algorithm>

#include "parallel.hpp"
#include "view.hpp"

namespace augserve {

constexpr std::size_t LEAST_CHANNELS = 8;   // fewer leave lanes empty
constexpr std::size_t MOST_CHUNKS = 256;    // their sums are a bounded part of the memory
constexpr std::size_t TILE = 32768, LEAST_TILE = 128;  // floats that stay in the second cache; positions worth a call
constexpr std::size_t DECISION = 32, WORTH_THREADS = 512;  // of a block, in times of adding one chunk to its sums
constexpr std::size_t LEAST_COUNT = 9, MOST_COUNT = std::size_t(1) << 22;  // of values a channel, as Search has it

inline bool side_by_side(const augserve_layout &layout, std::int64_t positions) {
    return layout.channel == 1 && layout.row >= 0 && (layout.position > 0 || positions == 1);
}

// Positions of rows, from a row of the tensor and a position on, or of the rows `order[0]`, .. of it.
struct Tile {
    std::size_t row, position, rows, positions;
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

    // Calls run for one tile of the chunk after the other: cut by the numbers of rows, positions and channels, and the
    // same whether the rows follow one another or not, so that a group's sums are those of the group alone.
    template <class Do>
    void tiles(std::size_t chunk, std::size_t channels, Do run) const {
        const std::size_t most = std::clamp(TILE / channels, LEAST_TILE, BLOCK) / 4 * 4;  // positions
        const std::size_t rows = std::max<std::size_t>(1, most / plan.positions);
        for (std::size_t i = begin(chunk); i < end(chunk); i += rows)
            for (std::size_t p = 0; p < plan.positions; p += most)
                run(Tile{plan.order ? 0 : i, p, std::min(rows, end(chunk) - i), std::min(most, plan.positions - p),
                         plan.order ? plan.order + i : nullptr});
    }
};

// Calls body(chunk, from, to) on several threads until each chunk has met the `blocks` blocks of channels.
template <class Body>
void sweep(const Chunks &chunks, std::size_t blocks, const augserve_executor *executor, std::size_t threads,
           Body body) {
    const std::size_t parts = std::min(blocks, (2 * threads + chunks.count - 1) / chunks.count);
    auto one = [&](std::size_t task) {
        const std::size_t part = task % parts;
        body(task / parts, blocks * part / parts, blocks * (part + 1) / parts);
    };
    parallel(executor, threads, parts * chunks.count, one);
}

// A tensor of floats with channels side by side.
struct Side {
    const float *data;
    augserve_layout layout;
    std::size_t channels;

    std::size_t lanes(std::size_t block) const { return std::min(LANE_WIDTH, channels - block * LANE_WIDTH); }
    Walk walk(const Tile &tile, std::size_t block) const { return {tile.rows, tile.positions, tile.order, lanes(block)}; }
    const float *at(std::size_t row, std::size_t position, std::size_t block) const {
        return data + std::int64_t(row) * layout.row + std::int64_t(position) * layout.position +
               std::int64_t(block * LANE_WIDTH);
    }
    Source source(const Tile &tile, std::size_t block) const {
        return {at(tile.row, tile.position, block), std::size_t(layout.row), std::size_t(layout.position)};
    }
    Plane<float> target(const Tile &tile, std::size_t block) const {
        const Source plane = source(tile, block);
        return {const_cast<float *>(plane.first), plane.row, plane.position};
    }
};

inline Lane filled(float value) {
    Lane lane;
    std::fill_n(lane.v, LANE_WIDTH, value);
    return lane;
}

}  // namespace augserve

#endif
