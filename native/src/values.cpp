// See values.hpp.

#include "values.hpp"

#include <cmath>
#include <limits>

#include "elementwise.hpp"
#include "passes.hpp"

namespace augserve {
const float *Values::load(std::size_t index) const {
    const float *values = view->load(*plan, channel, index, buffer);
    if (scale == 1.0f) return values;
    if (values != buffer) std::copy_n(values, plan->size(index), buffer);
    scale_block(buffer, plan->size(index), scale);
    return buffer;
}

void Values::multiply(float by) {
    scale *= by;
    if (copied) scale_block(copied, plan->count(), by);
}

Moments moments(const Values &values) {
    double count = 0, mean = 0, squares = 0;
    float low = std::numeric_limits<float>::infinity(), high = -low;
    std::size_t zeros = 0;
    bool finite = true;
    for (std::size_t b = 0; b < values.blocks(); b++) {
        const double n = double(values.size(b));
        const float *here = values.block(b);
        if (!values.copied && b + 1 < values.blocks()) values.view->ask_for_block(*values.plan, values.channel, b + 1);
        const BlockMoments block = block_moments(here, values.size(b));
        finite = finite && block.magnitude < 0x7f800000u;
        zeros += block.zeros;
        low = std::min(low, block.low);
        high = std::max(high, block.high);
        // Chan, Golub & LeVeque 1979: means and squared deviations of two sets together.
        const double block_mean = double(block.sum) / n, delta = block_mean - mean, total = count + n;
        mean += delta * (n / total);
        squares += double(block.squares) + delta * delta * (count * n / total);
        count = total;
    }
    if (low == high) mean = low, squares = 0;  // exactly
    return {mean, squares / count, low, high, zeros, finite};
}

float safe_scale(float low, float high) {
    const float largest = std::max(std::fabs(low), std::fabs(high));
    if (largest == 0.0f || (largest < 1e15f && largest > 1e-15f)) return 1.0f;
    int exponent;
    std::frexp(largest, &exponent);
    return float(std::ldexp(1.0, std::clamp(-exponent, -120, 120)));
}

}  // namespace augserve
