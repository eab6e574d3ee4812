// How blocks and tiles are read and written; see view.hpp.

#include "view.hpp"

#include <algorithm>
#include <cstring>

#include "elementwise.hpp"

namespace augserve {
namespace {

using half = std::uint16_t;

void read(const void *data, std::int64_t dtype, std::int64_t at, std::int64_t step, float *to, std::size_t n) {
    if (dtype == AUGSERVE_FLOAT32) {
        const float *from = static_cast<const float *>(data) + at;
        if (step == 1)
            std::memcpy(to, from, n * sizeof(float));
        else
            for (std::size_t i = 0; i < n; i++) to[i] = from[std::int64_t(i) * step];
        return;
    }
    const half *from = static_cast<const half *>(data) + at;
    half packed[BLOCK];
    for (std::size_t done = 0; done < n; done += BLOCK) {
        const std::size_t k = std::min(BLOCK, n - done);
        const half *source = from + std::int64_t(done) * step;
        if (step != 1) {
            for (std::size_t i = 0; i < k; i++) packed[i] = source[std::int64_t(i) * step];
            source = packed;
        }
        (dtype == AUGSERVE_FLOAT16 ? from_float16 : from_bfloat16)(source, to + done, k);
    }
}

void write(void *data, std::int64_t dtype, std::int64_t at, std::int64_t step, const float *from, std::size_t n) {
    if (dtype == AUGSERVE_FLOAT32) {
        float *to = static_cast<float *>(data) + at;
        if (step == 1)
            std::memcpy(to, from, n * sizeof(float));
        else
            for (std::size_t i = 0; i < n; i++) to[std::int64_t(i) * step] = from[i];
        return;
    }
    half *to = static_cast<half *>(data) + at;
    half packed[BLOCK];
    for (std::size_t done = 0; done < n; done += BLOCK) {
        const std::size_t k = std::min(BLOCK, n - done);
        half *target = step == 1 ? to + done : packed;
        (dtype == AUGSERVE_FLOAT16 ? to_float16 : to_bfloat16)(from + done, target, k);
        if (step != 1)
            for (std::size_t i = 0; i < k; i++) to[std::int64_t(done + i) * step] = packed[i];
    }
}

}  // namespace

Plan::Plan(std::size_t rows, std::size_t positions, const std::int64_t *order, std::size_t shortest)
    : rows(rows), positions(positions), order(order), rows_per_block(0), blocks_per_row(0), blocks(0) {
    if (rows == 0 || positions == 0) return;
    if (positions < shortest) {
        rows_per_block = BLOCK / positions;
        blocks = (rows + rows_per_block - 1) / rows_per_block;
    } else {
        blocks_per_row = (positions + BLOCK - 1) / BLOCK;
        blocks = rows * blocks_per_row;
    }
}

std::size_t Plan::offset(std::size_t block) const {
    if (rows_per_block) return block * rows_per_block * positions;
    return (block / blocks_per_row) * positions + (block % blocks_per_row) * BLOCK;
}

std::size_t Plan::size(std::size_t block) const {
    if (rows_per_block) return std::min(rows_per_block, rows - block * rows_per_block) * positions;
    return std::min(BLOCK, positions - (block % blocks_per_row) * BLOCK);
}

const float *View::load(const Plan &plan, std::size_t channel, std::size_t block, float *buffer) const {
    if (const float *there = direct(plan, channel, block)) return there;
    const std::int64_t base = std::int64_t(channel) * layout.channel;
    if (plan.rows_per_block == 0) {
        const std::size_t offset = plan.offset(block), index = offset / plan.positions;
        const std::int64_t at = std::int64_t(plan.row(index)) * layout.row +
                                std::int64_t(offset - index * plan.positions) * layout.position;
        read(data, dtype, base + at, layout.position, buffer, plan.size(block));
        return buffer;
    }
    const std::size_t first = block * plan.rows_per_block, rows = plan.size(block) / plan.positions;
    for (std::size_t i = 0; i < rows; i++)
        read(data, dtype, base + std::int64_t(plan.row(first + i)) * layout.row, layout.position,
             buffer + i * plan.positions, plan.positions);
    return buffer;
}

float *View::direct(const Plan &plan, std::size_t channel, std::size_t block) const {
    if (dtype != AUGSERVE_FLOAT32 || plan.rows_per_block != 0 || layout.position != 1) return nullptr;
    const std::size_t offset = plan.offset(block), index = offset / plan.positions;
    return static_cast<float *>(data) + std::int64_t(plan.row(index)) * layout.row +
           std::int64_t(channel) * layout.channel + std::int64_t(offset - index * plan.positions);
}

void View::store(const Plan &plan, std::size_t channel, std::size_t block, const float *values) const {
    const std::int64_t base = std::int64_t(channel) * layout.channel;
    if (plan.rows_per_block == 0) {
        const std::size_t offset = plan.offset(block), index = offset / plan.positions;
        const std::int64_t at = std::int64_t(plan.row(index)) * layout.row +
                                std::int64_t(offset - index * plan.positions) * layout.position;
        write(data, dtype, base + at, layout.position, values, plan.size(block));
        return;
    }
    const std::size_t first = block * plan.rows_per_block, rows = plan.size(block) / plan.positions;
    for (std::size_t i = 0; i < rows; i++)
        write(data, dtype, base + std::int64_t(plan.row(first + i)) * layout.row, layout.position,
              values + i * plan.positions, plan.positions);
}

// The one stride of all values of a channel where the channels lie side by side, else 0.
std::size_t View::interleaved(const Plan &plan) const {
    if (dtype != AUGSERVE_FLOAT32 || layout.channel != 1 || plan.order) return 0;
    if (plan.positions == 1) return layout.row > 0 ? std::size_t(layout.row) : 0;
    return layout.position > 0 && layout.row == layout.position * std::int64_t(plan.positions)
               ? std::size_t(layout.position)
               : 0;
}

void View::load_tile(const Plan &plan, std::size_t channel, std::size_t channels, float *tile,
                     std::size_t leading) const {
    const std::size_t positions = plan.positions;
    if (const std::size_t step = interleaved(plan)) {
        separate(static_cast<const float *>(data) + channel, step, tile, leading, plan.count(), channels);
        return;
    }
    for (std::size_t i = 0; i < plan.rows; i++) {
        const std::int64_t at = std::int64_t(plan.row(i)) * layout.row + std::int64_t(channel) * layout.channel;
        float *to = tile + i * positions;
        const float *from = static_cast<const float *>(data) + at;
        if (dtype == AUGSERVE_FLOAT32 && layout.position == 1)
            copy_segments(from, layout.channel, to, std::ptrdiff_t(leading), channels, positions);
        else if (dtype == AUGSERVE_FLOAT32 && layout.channel == 1 && layout.position >= 0)
            separate(from, std::size_t(layout.position), to, leading, positions, channels);
        else
            for (std::size_t k = 0; k < channels; k++)
                read(data, dtype, at + std::int64_t(k) * layout.channel, layout.position, to + k * leading,
                     positions);
    }
}

void View::store_tile(const Plan &plan, std::size_t channel, std::size_t channels, const float *tile,
                      std::size_t leading) const {
    const std::size_t positions = plan.positions;
    if (const std::size_t step = interleaved(plan)) {
        interleave(tile, leading, static_cast<float *>(data) + channel, step, plan.count(), channels);
        return;
    }
    for (std::size_t i = 0; i < plan.rows; i++) {
        const std::int64_t at = std::int64_t(plan.row(i)) * layout.row + std::int64_t(channel) * layout.channel;
        const float *from = tile + i * positions;
        float *to = static_cast<float *>(data) + at;
        if (dtype == AUGSERVE_FLOAT32 && layout.position == 1) {
            for (std::size_t k = 0; i + 1 < plan.rows && k < channels; k++)
                ask_for<true>(to + std::int64_t(k) * layout.channel + plan.step(i) * layout.row, positions);
            copy_segments(from, std::ptrdiff_t(leading), to, layout.channel, channels, positions);
        } else if (dtype == AUGSERVE_FLOAT32 && layout.channel == 1 && layout.position >= 0)
            interleave(from, leading, to, std::size_t(layout.position), positions, channels);
        else
            for (std::size_t k = 0; k < channels; k++)
                write(data, dtype, at + std::int64_t(k) * layout.channel, layout.position, from + k * leading,
                      positions);
    }
}

}  // namespace augserve
