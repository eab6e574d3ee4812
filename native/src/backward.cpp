// The backward pass: one pass of sums over x and dL/dy, one that writes dL/dx.
//
// With r = 1 / divisor, t = (x - center) r, A = sum dL/dy, B = sum dL/dy t over the m values of a channel:
//
//   AUG     dL/dx_i = gamma r (dL/dy_i - t_i B / m) + D w_i / sum w,   w_i = |x_i - mu|^(phi - 2)
//           D = dL/dmu = -gamma r (A - (mean - mu) r B),   dL/dphi = D dmu/dphi
//           dmu/dphi = sum sgn(x - mu) |x - mu|^(phi - 1) ln|x - mu| / ((phi - 1) sum w)
//   ROBUST  dL/dx_i = gamma r (dL/dy_i - A / m) -+ gamma r B p range^(p - 1) / (number of ties), at max and min
//   both    dL/dgamma = B, dL/dbeta = A
//
// The weights and dmu/dphi do not change when all differences are divided by one number: for powers the largest
// difference is 1, so that none overflows.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "elementwise.hpp"
#include "norm.hpp"
#include "parallel.hpp"
#include "passes.hpp"

namespace augserve {
namespace {

// A value this near the median, in standard deviations, has the weight of one at this distance.
constexpr double LEAST = 1e-14;

constexpr std::size_t LONG_ROW = 256;  // shorter ones cost more calls than copies

enum class Weights { EVEN, ROOT, POWER };

struct Channel {
    std::size_t index;
    double phi, r, gamma;
    Standard t;  // r (x - center)
    Weights weights;
    Power power;
};

Weights kind_of_weights(const augserve_backward &a, double phi, std::size_t count, bool wants_phi) {
    if (a.kind != AUGSERVE_AUG || count <= 2 || (phi == 2 && !wants_phi)) return Weights::EVEN;
    return phi == 1.5 && !wants_phi ? Weights::ROOT : Weights::POWER;
}

Channel describe(const augserve_backward &a, std::size_t c, std::size_t count) {
    Channel channel{};
    channel.index = c;
    channel.phi = a.exponents ? double(a.exponents[c]) : a.exponent;
    const double spread = a.spread[c];
    const bool around_median = a.kind == AUGSERVE_AUG;
    const double divisor = around_median ? std::sqrt(spread + a.eps)
                                         : (spread > 0 ? std::pow(spread, a.exponent) : 0.0) + a.eps;
    channel.r = 1 / divisor;
    const double std = around_median && std::isfinite(spread) ? std::sqrt(spread) * channel.r : 0.0;  // of t
    channel.gamma = a.weight ? double(a.weight[c]) : 1.0;
    channel.t = {a.center[c], float(channel.r)};
    channel.weights = kind_of_weights(a, channel.phi, count, a.exponents != nullptr && a.dexponent != nullptr);
    channel.power = {float(channel.phi - 2), float(std::max(LEAST * std, 1e-30)), 0.0f};
    // Powers are taken of differences over the largest one, and so are logarithms.
    const double reach = double(a.second[c]) * channel.r;
    if (channel.weights == Weights::POWER && reach > 0) channel.power.log2_reach = float(std::log2(reach));
    return channel;
}

struct Sums {
    double dy, dy_t, weight, weight_log;
    std::size_t at_low, at_high;
};

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

    void run(std::size_t first, std::size_t channels) {
        const std::size_t leading = leading_dimension(plan_.count());
        float *memory = scratch(3 * BLOCK + (copied_ ? 2 * channels * leading : 0));
        float *x = memory + 3 * BLOCK, *dy = x + channels * leading;
        if (copied_) {
            x_.load_tile(plan_, first, channels, x, leading);
            dy_.load_tile(plan_, first, channels, dy, leading);
        }
        for (std::size_t k = 0; k < channels; k++) {
            const Source copied = copied_ ? Source{x + k * leading, dy + k * leading} : Source{};
            one(describe(a_, first + k, plan_.count()), copied, memory);
        }
        if (copied_) dx_.store_tile(plan_, first, channels, dy, leading);
    }

    Source block(const Channel &channel, Source copied, std::size_t b, float *memory) const {
        if (copied.x) return {copied.x + plan_.offset(b), copied.dy + plan_.offset(b)};
        return {x_.load(plan_, channel.index, b, memory), dy_.load(plan_, channel.index, b, memory + BLOCK)};
    }

    Sums sums(const Channel &channel, Source copied, float *memory) const {
        Sums total{};
        const float low = a_.first[channel.index], high = a_.second[channel.index];
        for (std::size_t b = 0; b < plan_.blocks; b++) {
            const Source at = block(channel, copied, b, memory);
            const std::size_t n = plan_.size(b);
            const GradientSums part =
                channel.weights == Weights::EVEN   ? gradient_sums(at.x, at.dy, n, channel.t)
                : channel.weights == Weights::ROOT ? gradient_sums_root(at.x, at.dy, n, channel.t, channel.power.least)
                                                   : gradient_sums_power(at.x, at.dy, n, channel.t, channel.power);
            total.dy += part.dy;
            total.dy_t += part.dy_t;
            total.weight += part.weight;
            total.weight_log += part.weight_log;
            if (a_.kind != AUGSERVE_AUG) {
                total.at_low += count_equal(at.x, n, low);
                total.at_high += count_equal(at.x, n, high);
            }
        }
        return total;
    }

    void one(const Channel &channel, Source copied, float *memory) const {
        const std::size_t c = channel.index;
        const Sums total = sums(channel, copied, memory);
        const double count = double(plan_.count()), scale = channel.gamma * channel.r;
        const double offset = a_.kind == AUGSERVE_AUG ? double(a_.first[c]) * channel.r : 0.0;
        const double d_center = -scale * (total.dy - offset * total.dy_t);
        GradientTerms by{float(scale), 0, 0, 0};
        float at_low = 0, at_high = 0;
        if (a_.kind == AUGSERVE_AUG) {
            by.by_t = float(-scale * total.dy_t / count);
            if (channel.weights == Weights::EVEN)
                by.constant = float(d_center / count);
            else if (total.weight > 0)
                by.by_weight = float(d_center / total.weight);
            else
                by.constant = float(d_center / count);
        } else {
            by.constant = float(d_center / count);
            const double range = a_.spread[c];
            if (range > 0) {
                const double d_range = -scale * total.dy_t * a_.exponent * std::pow(range, a_.exponent - 1);
                at_high = float(d_range / double(std::max<std::size_t>(total.at_high, 1)));
                at_low = float(-d_range / double(std::max<std::size_t>(total.at_low, 1)));
            }
        }
        if (a_.dweight) a_.dweight[c] = float(total.dy_t);
        if (a_.dbias) a_.dbias[c] = float(total.dy);
        if (a_.dexponent) a_.dexponent[c] = float(slope(channel, total) * d_center);
        for (std::size_t b = 0; b < plan_.blocks; b++) write(channel, copied, b, by, at_low, at_high, memory);
    }

    // dmu / dphi, in units of the data.
    double slope(const Channel &channel, const Sums &total) const {
        if (!a_.exponents || plan_.count() <= 2 || !(total.weight > 0)) return 0;
        const double ln2 = 0.6931471805599453;
        return ln2 * total.weight_log / ((channel.phi - 1) * total.weight) / channel.r;
    }

    void write(const Channel &channel, Source copied, std::size_t b, GradientTerms by, float at_low, float at_high,
               float *memory) const {
        const Source at = block(channel, copied, b, memory);
        const std::size_t n = plan_.size(b);
        float *direct = copied.x ? nullptr : dx_.direct(plan_, channel.index, b);
        float *out = copied.x ? const_cast<float *>(at.dy) : direct ? direct : memory + 2 * BLOCK;
        if (channel.weights == Weights::EVEN)
            gradient_block(at.x, at.dy, out, n, channel.t, by);
        else if (channel.weights == Weights::ROOT)
            gradient_block_root(at.x, at.dy, out, n, channel.t, channel.power.least, by);
        else
            gradient_block_power(at.x, at.dy, out, n, channel.t, channel.power, by);
        if (at_low != 0 || at_high != 0)
            add_at_ends(at.x, out, n, a_.first[channel.index], at_low, a_.second[channel.index], at_high);
        if (!copied.x && !direct) dx_.store(plan_, channel.index, b, out);
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
    const Plan plan(rows, positions, nullptr, LONG_ROW);
    const bool contiguous = a.x_layout.position == 1 && a.dy_layout.position == 1 && a.dx_layout.position == 1;
    const Tiling tiling(channels, rows * positions, contiguous, 2, a.threads, rows * channels * positions);
    // Long rows of floats are read twice where they lie, which costs less than a copy of both tensors.
    const bool in_place = contiguous && a.dtype == AUGSERVE_FLOAT32 && positions >= LONG_ROW;
    Backward body(a, plan, tiling, tiling.copied && !in_place);
    parallel(executor, tiling.threads, tiling.threads, body);
}

}  // namespace augserve
