// Small tables on their way to the device, as arguments of a kernel: a launch keeps a copy of its arguments, so that
// the host's memory may go at once, and unlike a copy from pageable memory it never waits for the stream.

#include "upload.hpp"

#include <algorithm>
#include <cstring>

namespace augserve::cuda {
namespace {

constexpr unsigned THREADS = 256, WORDS = 1000;  // with the other arguments below the 4 KB of every device

struct Piece {
    std::uint32_t words[WORDS];
};

__global__ void __launch_bounds__(THREADS) put(std::uint32_t *to, Piece piece, std::uint32_t size) {
    for (std::uint32_t i = threadIdx.x; i < size; i += THREADS) to[i] = piece.words[i];
}

}  // namespace

void upload(void *to, const void *from, std::size_t size, Stream stream) {
    const std::size_t words = size / 4;
    for (std::size_t begin = 0; begin < words; begin += WORDS) {
        const std::size_t some = std::min<std::size_t>(WORDS, words - begin);
        Piece piece;
        std::memcpy(piece.words, static_cast<const char *>(from) + 4 * begin, 4 * some);
        launch(put, dim3(1), THREADS, 0, stream, static_cast<std::uint32_t *>(to) + begin, piece, std::uint32_t(some));
    }
}

}  // namespace augserve::cuda
