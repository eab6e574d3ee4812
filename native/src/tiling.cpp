// See norm.hpp.

#include <algorithm>

#include "bracket.hpp"
#include "norm.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

constexpr std::size_t CHANNELS_PER_TILE = Brackets::LANES;  // and a cache line where channels lie side by side
constexpr std::size_t NEAR = std::size_t(1) << 18;  // floats that stay in the second cache, with what is read and written

}  // namespace

Tiling::Tiling(std::size_t channels, std::size_t count, bool rows_contiguous, std::size_t tensors,
               bool in_place, std::int64_t threads_asked, std::size_t values)
    : channels(channels), per_tile(1), threads(useful_threads(threads_asked, values)) {
    const std::size_t size = tensors * leading_dimension(count);
    copied = size <= MOST_COPIED;
    if (copied) {
        const std::size_t share = (channels + threads - 1) / threads;
        const std::size_t room = rows_contiguous ? NEAR / (in_place ? size : 2 * size) : MOST_COPIED / size;
        per_tile = std::clamp<std::size_t>(std::min({CHANNELS_PER_TILE, share, room}), 1, CHANNELS_PER_TILE);
    }
    tiles = (channels + per_tile - 1) / per_tile;
}

std::size_t Tiling::size(std::size_t tile) const { return std::min(per_tile, channels - begin(tile)); }

std::size_t leading_dimension(std::size_t count) { return (count + 15) / 16 * 16 + 16; }

}  // namespace augserve
