// The values of a set, or of a part of it, as a team goes through them: staged in the block's memory, or read where they
// lie.
//
// visit(team, body) calls body(slot, value) for each value of this thread; slots, 0 to 3, let sums go side by side. Who
// gets which value depends on the shape alone. BATCH: how many loads are on their way together.
#pragma once

#include "layout.cuh"

namespace augserve::cuda {

// use(i, load(i)) for each fourth number i below `size` of this thread. BATCH loads are on their way together.
template <unsigned BATCH, class Team, class Load, class Use>
__device__ void each_fourth(const Team &team, std::uint32_t size, Load load, Use use) {
    constexpr std::uint32_t step = 4 * Team::SIZE;
    for (std::uint32_t begin = 4 * team.rank(); begin < size; begin += BATCH * step) {
        decltype(load(begin)) loaded[BATCH];
        AUGSERVE_UNROLL
        for (unsigned k = 0; k < BATCH; k++)
            if (begin + k * step < size) loaded[k] = load(begin + k * step);
        AUGSERVE_UNROLL
        for (unsigned k = 0; k < BATCH; k++)
            if (begin + k * step < size) use(begin + k * step, loaded[k]);
    }
}

// The floats that a launch gave each block. A function, not a pointer, so that the compiler knows where they are.
__device__ inline float *block_memory() {
    AUGSERVE_DYNAMIC_SHARED(memory);
    return memory;
}

struct Staged {
    std::uint32_t begin, size;  // in the block's memory; begin is a multiple of 4

    __device__ std::uint32_t count() const { return size; }

    template <unsigned BATCH = 1, class Team, class Body>
    __device__ void visit(const Team &team, Body body) const {
        const float *memory = block_memory() + begin;
        std::uint32_t i = team.rank();
        for (; i + 3 * Team::SIZE < size; i += 4 * Team::SIZE) {
            AUGSERVE_UNROLL
            for (int slot = 0; slot < 4; slot++) body(slot, memory[i + slot * Team::SIZE]);
        }
        AUGSERVE_UNROLL
        for (int slot = 0; slot < 3; slot++)
            if (i + slot * Team::SIZE < size) body(slot, memory[i + slot * Team::SIZE]);
    }
};

template <class T>
struct Streamed {
    const T *x;
    Span span;
    Access access;

    __device__ std::uint32_t count() const { return span.size; }

    template <unsigned BATCH = 4, class Team, class Body>
    __device__ void visit(const Team &team, Body body) const {
        if (access.quads)
            by_fours<BATCH>(team, body);
        else
            one_by_one(team, body);
    }

private:
    template <unsigned BATCH, class Team, class Body>
    __device__ void by_fours(const Team &team, Body body) const {
        each_fourth<BATCH>(
            team, span.size, [&](std::uint32_t i) { return load_four(x + span.offset(i), access.aligned); },
            [&](std::uint32_t, const Four &four) {
                AUGSERVE_UNROLL
                for (int slot = 0; slot < 4; slot++) body(slot, four.value[slot]);
            });
    }

    template <class Team, class Body>
    __device__ void one_by_one(const Team &team, Body body) const {
        for (std::uint32_t begin = 0; begin < span.size; begin += 4 * Team::SIZE) {
            AUGSERVE_UNROLL
            for (int slot = 0; slot < 4; slot++) {
                const std::uint32_t i = begin + slot * Team::SIZE + team.rank();
                if (i < span.size) body(slot, to_float(x[span.offset(i)]));
            }
        }
    }
};

// Copies the values into the block's memory and waits for the others.
template <class T, class Team>
__device__ Staged stage(const Team &team, const T *x, const Span &span, Access access, std::uint32_t begin) {
    float *memory = block_memory() + begin;
    if (access.quads) {
        each_fourth<4>(
            team, span.size, [&](std::uint32_t i) { return load_four(x + span.offset(i), access.aligned); },
            [&](std::uint32_t i, const Four &four) { store_four(memory + i, four, true); });
    } else {
        AUGSERVE_UNROLL_4
        for (std::uint32_t i = team.rank(); i < span.size; i += Team::SIZE) memory[i] = to_float(x[span.offset(i)]);
    }
    team.barrier();
    return {begin, span.size};
}

}  // namespace augserve::cuda
