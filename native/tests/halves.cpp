// float16 and bfloat16 against their definition: every pattern widened; every pattern, every tie between two of them
// and the floats next to these narrowed; any number of values, from any place.

#include <cstring>

#include "check.hpp"
#include "draw.hpp"
#include "elementwise.hpp"

namespace {

using check::expect;
using half = std::uint16_t;

struct Format {
    const char *name;
    std::int64_t dtype;
    void (*from)(const half *, float *, std::size_t);
    void (*to)(const float *, half *, std::size_t);
};

const Format FORMATS[] = {
    {"float16", AUGSERVE_FLOAT16, augserve::from_float16, augserve::to_float16},
    {"bfloat16", AUGSERVE_BFLOAT16, augserve::from_bfloat16, augserve::to_bfloat16},
};

float of_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

std::vector<half> all_patterns() {
    std::vector<half> patterns(65536);
    for (std::size_t k = 0; k < patterns.size(); k++) patterns[k] = half(k);
    return patterns;
}

void check_widening(const Format &format) {
    const std::vector<half> patterns = all_patterns();
    std::vector<float> values(patterns.size());
    format.from(patterns.data(), values.data(), patterns.size());
    for (std::size_t k = 0; k < patterns.size(); k++) {
        const double expected = storage::widen(patterns[k], format.dtype);
        expect(storage::same(values[k], expected), "%04x widens to %.9g, expected %.9g", unsigned(k), values[k],
               expected);
    }
}

// A float and its neighbours.
void add_around(std::vector<float> &values, double value) {
    const float middle = float(value);
    for (const float each : {std::nextafterf(middle, -HUGE_VALF), middle, std::nextafterf(middle, HUGE_VALF)})
        values.push_back(each);
}

std::vector<float> values_to_narrow(const Format &format) {
    std::vector<float> values;
    for (std::uint32_t k = 0; k < 65536; k++) {
        const double here = storage::widen(half(k), format.dtype), next = storage::widen(half(k + 1), format.dtype);
        add_around(values, here);
        if (std::isfinite(here) && std::isfinite(next)) add_around(values, here / 2 + next / 2);
    }
    const double largest = storage::format(format.dtype).largest;
    const double unit = std::ldexp(largest, -storage::format(format.dtype).digits);
    for (const double sign : {1.0, -1.0})
        for (double by = 0.25; by < 4; by += 0.25) add_around(values, sign * (largest + by * unit));
    for (const std::uint32_t nan : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu})
        values.push_back(of_bits(nan));
    draw::Random random(1);
    for (int k = 0; k < 300000; k++) values.push_back(of_bits(std::uint32_t(random.below(0xffffffff))));
    return values;
}

void check_narrowing(const Format &format) {
    const std::vector<float> values = values_to_narrow(format);
    std::vector<half> patterns(values.size());
    format.to(values.data(), patterns.data(), values.size());
    for (std::size_t k = 0; k < values.size(); k++) {
        const half expected = storage::narrow(values[k], format.dtype);
        const bool both_nan = std::isnan(values[k]) && std::isnan(storage::widen(patterns[k], format.dtype));
        expect(both_nan || patterns[k] == expected, "%.9g narrows to %04x, expected %04x", values[k], patterns[k],
               expected);
    }
}

// Buffers of exactly n values: what is read or written beyond them the sanitizer sees.
void check_lengths(const Format &format) {
    const std::vector<half> patterns = all_patterns();
    for (std::size_t n = 0; n <= 200; n++) {
        const auto from = patterns.begin() + std::ptrdiff_t(97 * n);
        const std::vector<half> some(from, from + std::ptrdiff_t(n));
        std::vector<float> values(n);
        std::vector<half> back(n);
        format.from(some.data(), values.data(), n);
        format.to(values.data(), back.data(), n);
        for (std::size_t k = 0; k < n; k++)
            expect(back[k] == some[k] || std::isnan(values[k]), "%zu values: %04x came back as %04x", n, some[k],
                   back[k]);
    }
}

}  // namespace

int main() {
    for (const Format &format : FORMATS) {
        check::where() = format.name;
        check_widening(format);
        check_narrowing(format);
        check_lengths(format);
    }
    return check::result();
}
