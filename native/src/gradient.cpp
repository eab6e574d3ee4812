// See gradient.hpp.

#include "gradient.hpp"

#include <algorithm>
#include <cmath>

namespace augserve {
namespace {

// A value this near the median, in standard deviations, has the weight of one at this distance.
constexpr double LEAST = 1e-14;

Weights kind_of_weights(const augserve_backward &a, double phi, std::size_t count, bool wants_phi) {
    if (a.kind != AUGSERVE_AUG || count <= 2 || (phi == 2 && !wants_phi)) return Weights::EVEN;
    return phi == 1.5 && !wants_phi ? Weights::ROOT : Weights::POWER;
}

// dmu / dphi, in units of the data.
double slope(const augserve_backward &a, const GradientChannel &channel, const GradientTotals &total,
             std::size_t values) {
    if (!a.exponents || values <= 2 || !(total.weight > 0)) return 0;
    const double ln2 = 0.6931471805599453;
    return ln2 * total.weight_log / ((channel.phi - 1) * total.weight) / channel.r;
}

}  // namespace

GradientChannel describe_channel(const augserve_backward &a, std::size_t c, std::size_t count) {
    GradientChannel channel{};
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
    channel.gate = {a.center[c], float(channel.gamma * channel.r), a.relu && a.bias ? a.bias[c] : 0.0f};
    channel.weights = kind_of_weights(a, channel.phi, count, a.exponents != nullptr && a.dexponent != nullptr);
    channel.power = {float(channel.phi - 2), float(std::max(LEAST * std, 1e-30)), 0.0f};
    // Powers are taken of differences over the largest one, and so are logarithms.
    const double reach = double(a.second[c]) * channel.r;
    if (channel.weights == Weights::POWER && reach > 0) channel.power.log2_reach = float(std::log2(reach));
    return channel;
}

GradientMap finish_channel(const augserve_backward &a, const GradientChannel &channel, const GradientTotals &total,
                           std::size_t values) {
    const std::size_t c = channel.index;
    const double count = double(values), scale = channel.gamma * channel.r;
    const double offset = a.kind == AUGSERVE_AUG ? double(a.first[c]) * channel.r : 0.0;
    const double d_center = -scale * (total.dy - offset * total.dy_t);
    GradientTerms by{float(scale), 0, 0, 0};
    float at_low = 0, at_high = 0;
    if (a.kind == AUGSERVE_AUG) {
        by.by_t = float(-scale * total.dy_t / count);
        if (channel.weights == Weights::EVEN)
            by.constant = float(d_center / count);
        else if (total.weight > 0)
            by.by_weight = float(d_center / total.weight);
        else
            by.constant = float(d_center / count);
    } else {
        by.constant = float(d_center / count);
        const double range = a.spread[c];
        if (range > 0) {
            const double d_range = -scale * total.dy_t * a.exponent * std::pow(range, a.exponent - 1);
            at_high = float(d_range / double(std::max<std::size_t>(total.at_high, 1)));
            at_low = float(-d_range / double(std::max<std::size_t>(total.at_low, 1)));
        }
    }
    if (a.dweight) a.dweight[c] = float(total.dy_t);
    if (a.dbias) a.dbias[c] = float(total.dy);
    if (a.dexponent) a.dexponent[c] = float(slope(a, channel, total, values) * d_center);
    return {by, at_low, at_high};
}

}  // namespace augserve
