// See tracked.hpp.

#include "tracked.hpp"

#include "channel.hpp"
#include "parallel.hpp"

namespace augserve {
namespace {

constexpr std::int64_t LONG_ROW = 16;  // shorter ones cost more calls than copies

}  // namespace

bool row_by_row(const augserve_forward &a) {
    return a.dtype == AUGSERVE_FLOAT32 && a.x_layout.position == 1 && a.y_layout.position == 1 && a.positions >= LONG_ROW;
}

void forward_tracked(const augserve_forward &a, const std::vector<std::size_t> &rows, const augserve_executor *executor) {
    const std::size_t channels = std::size_t(a.channels), positions = std::size_t(a.positions);
    std::vector<Affine> maps;
    maps.reserve(channels);
    for (std::size_t c = 0; c < channels; c++)
        maps.push_back(affine_of(a, c, {a.running_center[c], a.running_spread[c]}, 1.0));

    const float *x = static_cast<const float *>(a.x), *residual = static_cast<const float *>(a.residual);
    float *y = static_cast<float *>(a.y);
    const std::size_t planes = rows.size() * channels;
    const std::size_t tasks = useful_threads(a.threads, planes * positions);
    auto body = [&](std::size_t task) {
        const std::size_t end = planes * (task + 1) / tasks;
        std::size_t plane = planes * task / tasks, index = plane / channels, c = plane % channels;
        for (; plane < end; plane++) {
            const std::int64_t row = std::int64_t(rows[index]), channel = std::int64_t(c);
            const std::int64_t at = row * a.y_layout.row + channel * a.y_layout.channel;
            affine_block(x + row * a.x_layout.row + channel * a.x_layout.channel, residual ? residual + at : nullptr,
                         y + at, positions, maps[c], a.relu != 0);
            if (++c == channels) c = 0, index++;
        }
    };
    parallel(executor, tasks, tasks, body);
}

}  // namespace augserve
