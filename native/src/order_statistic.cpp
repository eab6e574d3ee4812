// The middle values of a channel, exactly, by bisecting the line of floats: one count a pass.

#include "order_statistic.hpp"

#include <cstdint>
#include <cstring>

#include "passes.hpp"

namespace augserve {
namespace {

// Integers in the order of the floats, with -0 just before 0.
std::int32_t float_key(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

float key_float(std::int32_t key) {
    const std::int32_t bits = key < 0 ? key ^ 0x7fffffff : key;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The value that exactly `rank` of the sorted values come before.
float order_statistic(const Values &values, float low, float high, std::size_t rank) {
    // Comparisons take -0 and 0 for the same, so that either may have been found as an end.
    std::int64_t from = float_key(low == 0.0f ? -0.0f : low), to = float_key(high == 0.0f ? 0.0f : high);
    while (from < to) {
        const std::int64_t middle = from + (to - from) / 2;
        std::size_t at_most = 0;
        for (std::size_t b = 0; b < values.blocks(); b++)
            at_most += count_at_most(values.block(b), values.size(b), std::int32_t(middle));
        if (at_most > rank)
            to = middle;
        else
            from = middle + 1;
    }
    return key_float(std::int32_t(to));
}

}  // namespace

double middle_value(const Values &values, float low, float high) {
    const std::size_t count = values.plan->count();
    const double lower = order_statistic(values, low, high, (count - 1) / 2);
    if (count % 2) return lower;
    return lower / 2 + double(order_statistic(values, low, high, count / 2)) / 2;
}

}  // namespace augserve
