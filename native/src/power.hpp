// a^q in float for a >= 0 of normal size, in a form that compilers vectorise: 2^(q log2 a) by polynomials.
//
// log2(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1] and 2^f on [-1/2, 1/2] are least-maximum fits of degree 8 and 5;
// their largest errors are 7e-9 (absolute, times f) and 8e-8 (relative).
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.hpp"

namespace augserve {

AUGSERVE_INLINE float bits_to_float(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

AUGSERVE_INLINE std::int32_t float_to_bits(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

AUGSERVE_INLINE float fast_log2(float a) {
    constexpr std::int32_t root_half = 0x3f3504f3;
    const std::int32_t bits = float_to_bits(a);
    const std::int32_t exponent = (bits - root_half) >> 23;
    const float f = bits_to_float(bits - exponent * (1 << 23)) - 1.0f;
    float p = 0.12541235983371735f;
    p = p * f - 0.21030330657958984f;
    p = p * f + 0.2173794060945511f;
    p = p * f - 0.23851944506168365f;
    p = p * f + 0.28765666484832764f;
    p = p * f - 0.3607212007045746f;
    p = p * f + 0.48092252016067505f;
    p = p * f - 0.7213471531867981f;
    p = p * f + 1.442694902420044f;
    return p * f + float(exponent);
}

AUGSERVE_INLINE float fast_exp2(float v) {
    v = v < -126.0f ? -126.0f : v;
    v = v > 126.0f ? 126.0f : v;
    const std::int32_t whole = std::int32_t(v < 0.0f ? v - 0.5f : v + 0.5f);
    const float f = v - float(whole);
    float p = 0.001327647129073739f;
    p = p * f + 0.009675540961325169f;
    p = p * f + 0.05550713092088699f;
    p = p * f + 0.24022120237350464f;
    p = p * f + 0.6931469440460205f;
    p = p * f + 1.0000001192092896f;
    return p * bits_to_float((whole + 127) << 23);
}

// 0 where the condition holds. Written without a choice: compilers make a branch of one, and do not vectorise it.
AUGSERVE_INLINE float unless(bool condition, float value) {
    return bits_to_float(float_to_bits(value) & (std::int32_t(condition) - 1));
}

// fast_exp2 where v may be so small that the power is 0.
AUGSERVE_INLINE float vanishing_exp2(float v) { return unless(v < -126.0f, fast_exp2(v)); }

}  // namespace augserve
