// Where the values of a set lie: one channel in the rows of one group, row after row. x, y and the residual are laid
// out alike, (N, C, L) without gaps.
#pragma once

#include "portable.cuh"

namespace augserve::cuda {

// Division by a number that is known beforehand, as a product (Granlund & Montgomery 1994).
struct Divisor {
    std::uint32_t by, multiplier, shift;

    // Of n below 2^31.
    AUGSERVE_ANYWHERE std::uint32_t divide(std::uint32_t n) const {
        return by == 1 ? n : std::uint32_t(std::uint64_t(n) * multiplier >> 32) >> shift;
    }
};

// `by` from 1 to 2^30.
inline Divisor divisor(std::uint32_t by) {
    std::uint32_t bits = 0;
    while ((std::uint32_t(1) << bits) < by) bits++;
    if (by == 1) return {by, 0, 0};
    const std::uint64_t power = std::uint64_t(1) << (31 + bits);
    return {by, std::uint32_t((power + by - 1) / by), bits - 1};
}

struct Rows {
    const std::int32_t *order;  // the rows of the group, or nullptr: they follow `first`
    std::int32_t first;
    std::int64_t stride, channel;  // from row to row; from a row to the channel in it
    Divisor positions;

    __device__ std::int64_t offset(std::uint32_t row, std::uint32_t position) const {
        const std::int64_t at = order ? order[row] : std::int64_t(first) + row;
        return at * stride + channel + position;
    }
};

// `size` values of a set, from the one at `position` of `row` on; size and positions are below 2^30.
struct Span {
    Rows rows;
    std::uint32_t row, position, size;

    __device__ std::int64_t offset(std::uint32_t i) const {
        const std::uint32_t along = position + i, more = rows.positions.divide(along);
        return rows.offset(row + more, along - more * rows.positions.by);
    }
};

// The values of a set from number `begin` on.
__device__ inline Span span(const Rows &rows, std::uint64_t begin, std::uint32_t size) {
    const std::uint64_t row = begin / rows.positions.by;
    return {rows, std::uint32_t(row), std::uint32_t(begin - row * rows.positions.by), size};
}

struct Four {
    float value[4];
};

// How values are read: four neighbours at once where rows of a channel are multiples of four, in one access where they
// are aligned. Which thread takes which value depends on `quads`, which is the shape's, and not on `aligned`.
struct Access {
    bool quads, aligned;
};

template <class T>
struct alignas(4 * sizeof(T)) Pack {
    T value[4];
};

template <class T>
__device__ Four load_four(const T *from, bool aligned) {
    Pack<T> pack;
    if (aligned) {
        pack = *reinterpret_cast<const Pack<T> *>(from);
    } else {
        AUGSERVE_UNROLL
        for (int k = 0; k < 4; k++) pack.value[k] = from[k];
    }
    Four four;
    AUGSERVE_UNROLL
    for (int k = 0; k < 4; k++) four.value[k] = to_float(pack.value[k]);
    return four;
}

template <class T>
__device__ void store_four(T *to, const Four &four, bool aligned) {
    Pack<T> pack;
    AUGSERVE_UNROLL
    for (int k = 0; k < 4; k++) round_to(four.value[k], pack.value[k]);
    if (aligned) {
        *reinterpret_cast<Pack<T> *>(to) = pack;
    } else {
        AUGSERVE_UNROLL
        for (int k = 0; k < 4; k++) to[k] = pack.value[k];
    }
}

}  // namespace augserve::cuda
