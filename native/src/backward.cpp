// The backward pass: one pass of sums over x and dL/dy, one that writes dL/dx; see gradient.hpp.

#include <vector>

#include "gradient.hpp"
#include "lanes.hpp"
#include "norm.hpp"
#include "parallel.hpp"
#include "passes.hpp"
#include "view.hpp"

namespace augserve {
namespace {

constexpr std::size_t LONG_ROW = 256;  // shorter ones cost more calls than copies

class Backward {
public:
    Backward(const augserve_backward &a, const Plan &plan, const Tiling &tiling, bool copied)
        : a_(a),
          plan_(plan),
          tiling_(tiling),
          copied_(copied),
          x_{const_cast<void *>(a.x), a.dtype, a.x_layout},
          dy_{const_cast<void *>(a.dy), a.dtype, a.dy_layout},
          dx_{a.dx, a.dtype, a.dx_layout} {}

    void operator()(std::size_t task) {
        const std::size_t from = tiling_.tiles * task / tiling_.threads;
        const std::size_t to = tiling_.tiles * (task + 1) / tiling_.threads;
        for (std::size_t tile = from; tile < to; tile++) run(tiling_.begin(tile), tiling_.size(tile));
    }

private:
    // Blocks of x and dy: copied, or loaded again.
    struct Source {
        const float *x, *dy;
    };

    struct One {
        GradientChannel channel;
        Source copied;
        GradientTotals total;
        GradientMap map;
    };

    void run(std::size_t first, std::size_t channels) {
        const std::size_t leading = leading_dimension(plan_.count());
        float *memory = scratch(3 * BLOCK + (copied_ ? 2 * channels * leading : 0));
        float *x = memory + 3 * BLOCK, *dy = x + channels * leading;
        if (copied_) {
            x_.load_tile(plan_, first, channels, x, leading);
            dy_.load_tile(plan_, first, channels, dy, leading);
        }
        std::vector<One> all;
        all.reserve(channels);
        for (std::size_t k = 0; k < channels; k++)
            all.push_back({describe_channel(a_, first + k, plan_.count()),
                           copied_ ? Source{x + k * leading, dy + k * leading} : Source{}, {}, {}});
        if (copied_ && a_.relu)
            for (One &one : all)
                gate_block(one.copied.x, one.copied.dy, dy + (&one - all.data()) * std::ptrdiff_t(leading), plan_.count(),
                           one.channel.gate);
        // Copies are near one by one; rows in place lie far apart, with the channels of the tile side by side.
        const std::size_t together = copied_ ? 1 : channels;
        for (auto one = all.begin(); one != all.end(); one += std::ptrdiff_t(together))
            differentiate(&*one, &*one + together, memory);
        if (copied_) dx_.store_tile(plan_, first, channels, dy, leading);
    }

    void differentiate(One *from, One *to, float *memory) const {
        for (std::size_t b = 0; b < plan_.blocks; b++)
            for (One *one = from; one < to; one++) add_sums(*one, b, memory);
        for (One *one = from; one < to; one++)
            one->map = finish_channel(a_, one->channel, one->total, plan_.count());
        for (std::size_t b = 0; b < plan_.blocks; b++)
            for (One *one = from; one < to; one++) write(*one, b, memory);
    }

    Source block(const One &one, std::size_t b, float *memory) const {
        if (copied_) return {one.copied.x + plan_.offset(b), one.copied.dy + plan_.offset(b)};
        const Source at{x_.load(plan_, one.channel.index, b, memory), dy_.load(plan_, one.channel.index, b, memory + BLOCK)};
        if (!a_.relu) return at;
        gate_block(at.x, at.dy, memory + BLOCK, plan_.size(b), one.channel.gate);
        return {at.x, memory + BLOCK};
    }

    void add_sums(One &one, std::size_t b, float *memory) const {
        const GradientChannel &channel = one.channel;
        const Source at = block(one, b, memory);
        const std::size_t n = plan_.size(b);
        if (!copied_ && b + 1 < plan_.blocks) {
            x_.ask_for_block(plan_, channel.index, b + 1);
            dy_.ask_for_block(plan_, channel.index, b + 1);
        }
        const GradientSums part =
            channel.weights == Weights::EVEN   ? gradient_sums(at.x, at.dy, n, channel.t)
            : channel.weights == Weights::ROOT ? gradient_sums_root(at.x, at.dy, n, channel.t, channel.power.least)
                                               : gradient_sums_power(at.x, at.dy, n, channel.t, channel.power);
        one.total.dy += part.dy;
        one.total.dy_t += part.dy_t;
        one.total.weight += part.weight;
        one.total.weight_log += part.weight_log;
        if (a_.kind != AUGSERVE_AUG) {
            one.total.at_low += count_equal(at.x, n, a_.first[channel.index]);
            one.total.at_high += count_equal(at.x, n, a_.second[channel.index]);
        }
    }

    void write(const One &one, std::size_t b, float *memory) const {
        const GradientChannel &channel = one.channel;
        const Source at = block(one, b, memory);
        const std::size_t n = plan_.size(b);
        float *direct = copied_ ? nullptr : dx_.direct(plan_, channel.index, b);
        float *out = copied_ ? const_cast<float *>(at.dy) : direct ? direct : memory + 2 * BLOCK;
        if (direct && b + 1 < plan_.blocks) dx_.ask_for_block<true>(plan_, channel.index, b + 1);
        if (channel.weights == Weights::EVEN)
            gradient_block(at.x, at.dy, out, n, channel.t, one.map.by);
        else if (channel.weights == Weights::ROOT)
            gradient_block_root(at.x, at.dy, out, n, channel.t, channel.power.least, one.map.by);
        else
            gradient_block_power(at.x, at.dy, out, n, channel.t, channel.power, one.map.by);
        if (one.map.at_low != 0 || one.map.at_high != 0)
            add_at_ends(at.x, out, n, a_.first[channel.index], one.map.at_low, a_.second[channel.index],
                        one.map.at_high);
        if (!copied_ && !direct) dx_.store(plan_, channel.index, b, out);
    }

    const augserve_backward &a_;
    const Plan &plan_;
    const Tiling &tiling_;
    bool copied_;
    View x_, dy_, dx_;
};

}  // namespace

void backward(const augserve_backward &a, const augserve_executor *executor) {
    const std::size_t rows = std::size_t(a.rows), channels = std::size_t(a.channels);
    const std::size_t positions = std::size_t(a.positions);
    if (backward_in_lanes(a, executor)) return;
    const Plan plan(rows, positions, nullptr, LONG_ROW);
    const bool contiguous = a.x_layout.position == 1 && a.dy_layout.position == 1 && a.dx_layout.position == 1;
    // Long rows of floats are read twice where they lie, which costs less than a copy of both tensors.
    const bool in_place = contiguous && a.dtype == AUGSERVE_FLOAT32 && positions >= LONG_ROW;
    const Tiling tiling(channels, rows * positions, contiguous, 2, in_place, a.threads, rows * channels * positions);
    Backward body(a, plan, tiling, tiling.copied && !in_place);
    parallel(executor, tiling.threads, tiling.threads, body);
}

}  // namespace augserve
