// Kernels for sets that one team masters: a warp for the smallest, neighbouring channels to a block, so that what one
// reads of a cache line the others find there; a block for the others. The values stay in the block's memory: one
// launch reads x once and writes y.

#include "sets.hpp"

#include "one_team.cuh"

namespace augserve::cuda {
namespace {

constexpr unsigned MOST_WARPS = 8, FEW_WARPS = 2;
constexpr std::uint32_t MANY = 1024;  // sets, from which on a block has the more warps; no sum depends on it

// `warps`: of a block; `room`: floats of memory for each set.
template <class T>
__global__ void __launch_bounds__(MOST_WARPS *LANES)
    by_warps(Norm norm, Tensors<T> t, Table table, std::uint32_t warps, std::uint32_t room) {
    const std::uint32_t tiles = (norm.channels + warps - 1) / warps, warp = threadIdx.x / LANES;
    const std::uint32_t channel = blockIdx.x % tiles * warps + warp;
    if (channel >= norm.channels) return;
    const Group group = table.group(blockIdx.x / tiles);
    const Span all = span(table.rows(norm, group, channel), 0, std::uint32_t(count_of(norm, group)));
    const Warp team;
    const Staged values = stage(team, t.x, all, norm.access, warp * room);
    const Affine map = solve(team, values, norm, channel, group.lambda);
    write(team, t, all, norm.access, values, map, norm.relu);
}

template <class T, unsigned THREADS>
__global__ void __launch_bounds__(THREADS, 1024 / THREADS) by_blocks(Norm norm, Tensors<T> t, Table table) {
    const std::uint32_t channel = blockIdx.x % norm.channels;
    const Group group = table.group(blockIdx.x / norm.channels);
    const Span all = span(table.rows(norm, group, channel), 0, std::uint32_t(count_of(norm, group)));
    const Block<THREADS> team;
    const Staged values = stage(team, t.x, all, norm.access, 0);
    const Affine map = solve(team, values, norm, channel, group.lambda);
    write(team, t, all, norm.access, values, map, norm.relu);
}

std::uint32_t rounded(std::uint32_t values) { return (values + 3) / 4 * 4; }

}  // namespace

template <class T>
void run_sets(Size size, const Norm &norm, const Tensors<T> &t, const Table &table, std::uint32_t groups,
              std::uint32_t largest, Stream stream) {
    if (size == Size::WARP) {
        const std::uint32_t room = rounded(largest);
        const std::uint32_t warps = norm.channels * groups < MANY ? FEW_WARPS : MOST_WARPS;
        const std::uint32_t tiles = (norm.channels + warps - 1) / warps;
        launch(by_warps<T>, dim3(tiles * groups), warps * LANES, warps * room * sizeof(float), stream, norm, t, table,
               warps, room);
        return;
    }
    const dim3 grid(norm.channels * groups);
    const std::size_t shared = rounded(largest) * sizeof(float);
    if (size == Size::SMALL_BLOCK)
        launch(by_blocks<T, 128>, grid, 128, shared, stream, norm, t, table);
    else
        launch(by_blocks<T, 512>, grid, 512, shared, stream, norm, t, table);
}

template void run_sets(Size, const Norm &, const Tensors<float> &, const Table &, std::uint32_t, std::uint32_t, Stream);
template void run_sets(Size, const Norm &, const Tensors<Half> &, const Table &, std::uint32_t, std::uint32_t, Stream);

}  // namespace augserve::cuda
