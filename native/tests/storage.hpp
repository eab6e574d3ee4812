// Tensors as callers may hold them: any strides, an exact-size buffer from the heap, a start off the usual alignment.
//
// The sanitizer sees each access beyond the buffer; `untouched` sees each write between the elements. Halves are
// widened and narrowed by definition, in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "augserve.h"

namespace storage {

// --- formats -----------------------------------------------------------------------------------------------------

struct Format {
    int digits, least_exponent;  // of the significand without its first one; of the smallest normal number
    double largest;
    std::uint16_t infinity;
};
inline Format format(std::int64_t dtype) {
    if (dtype == AUGSERVE_FLOAT16) return {10, -14, 65504.0, 0x7c00};
    return {7, -126, std::ldexp(255.0, 120), 0x7f80};
}

inline double widen(std::uint16_t bits, std::int64_t dtype) {
    const Format f = format(dtype);
    const int size = bits & 0x7fff, fraction = size & ((1 << f.digits) - 1), exponent = size >> f.digits;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (size == f.infinity) return sign * std::numeric_limits<double>::infinity();
    if (size > f.infinity) return std::numeric_limits<double>::quiet_NaN();
    if (exponent == 0) return sign * std::ldexp(double(fraction), f.least_exponent - f.digits);
    return sign * std::ldexp(double(fraction + (1 << f.digits)), f.least_exponent + exponent - 1 - f.digits);
}

// To the nearest, ties to even; NaN gives one of the patterns of NaN.
inline std::uint16_t narrow(double value, std::int64_t dtype) {
    const Format f = format(dtype);
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return std::uint16_t(sign | f.infinity | 1u << (f.digits - 1));
    const double size = std::fabs(value);
    if (size == 0) return sign;
    if (std::isinf(size)) return sign | f.infinity;
    const int exponent = std::max(std::ilogb(size), f.least_exponent);
    const double unit = std::ldexp(1.0, exponent - f.digits), rounded = std::nearbyint(size / unit) * unit;
    if (rounded > f.largest) return sign | f.infinity;
    const auto steps = std::uint32_t(std::ldexp(rounded, f.digits - exponent));  // of `unit`
    const std::uint32_t normal = steps >> f.digits;  // 0 below, 1 in, and 2 at the end of the binade of `exponent`
    if (normal == 0) return std::uint16_t(sign | steps);
    return std::uint16_t(sign | ((std::uint32_t(exponent - f.least_exponent) << f.digits) + steps));
}

// --- tensors -----------------------------------------------------------------------------------------------------

struct Shape {
    std::int64_t rows, channels, positions;
    std::int64_t values() const { return rows * channels * positions; }
};

inline augserve_layout dense(Shape s) { return {s.channels * s.positions, s.positions, 1}; }

inline augserve_layout channels_last(Shape s) { return {s.channels * s.positions, 1, s.channels}; }

class Tensor {
public:
    // `off`: elements between an aligned address and the buffer's first.
    Tensor(Shape shape, augserve_layout layout, std::int64_t dtype, std::int64_t off = 0)
        : shape(shape), layout(layout), dtype(dtype), width_(dtype == AUGSERVE_FLOAT32 ? 4 : 2) {
        std::int64_t least = 0, most = 0;
        const std::int64_t sizes[] = {shape.rows, shape.channels, shape.positions};
        const std::int64_t strides[] = {layout.row, layout.channel, layout.position};
        for (int k = 0; k < 3; k++) {
            least += std::min<std::int64_t>(0, (sizes[k] - 1) * strides[k]);
            most += std::max<std::int64_t>(0, (sizes[k] - 1) * strides[k]);
        }
        bytes_ = shape.values() == 0 ? 0 : std::size_t(off + most - least + 1) * width_;
        origin_ = shape.values() == 0 ? 0 : off - least;
        memory_.reset(static_cast<unsigned char *>(std::malloc(bytes_)));
        if (bytes_) std::memset(memory_.get(), 0xa5, bytes_);
    }

    void *data() const { return memory_.get() + std::size_t(origin_) * width_; }

    double get(std::int64_t n, std::int64_t c, std::int64_t l) const {
        if (dtype == AUGSERVE_FLOAT32) {
            float value;
            std::memcpy(&value, at(n, c, l), sizeof value);
            return value;
        }
        return widen(bits(n, c, l), dtype);
    }

    void set(std::int64_t n, std::int64_t c, std::int64_t l, double value) {
        if (dtype == AUGSERVE_FLOAT32) {
            const float narrower = float(value);
            std::memcpy(at(n, c, l), &narrower, sizeof narrower);
        } else {
            const std::uint16_t narrower = narrow(value, dtype);
            std::memcpy(at(n, c, l), &narrower, sizeof narrower);
        }
    }

    std::vector<unsigned char> copy() const { return {memory_.get(), memory_.get() + bytes_}; }

    // Whether all bytes but those of the elements are as they were made.
    bool untouched() const {
        std::vector<bool> element(bytes_, false);
        for (std::int64_t n = 0; n < shape.rows; n++)
            for (std::int64_t c = 0; c < shape.channels; c++)
                for (std::int64_t l = 0; l < shape.positions; l++)
                    for (std::size_t k = 0; k < width_; k++)
                        element[std::size_t(at(n, c, l) - memory_.get()) + k] = true;
        for (std::size_t k = 0; k < bytes_; k++)
            if (!element[k] && memory_.get()[k] != 0xa5) return false;
        return true;
    }

    const Shape shape;
    const augserve_layout layout;
    const std::int64_t dtype;

private:
    struct Free {
        void operator()(unsigned char *memory) const { std::free(memory); }
    };

    unsigned char *at(std::int64_t n, std::int64_t c, std::int64_t l) const {
        const std::int64_t element = origin_ + n * layout.row + c * layout.channel + l * layout.position;
        return memory_.get() + std::size_t(element) * width_;
    }

    std::uint16_t bits(std::int64_t n, std::int64_t c, std::int64_t l) const {
        std::uint16_t value;
        std::memcpy(&value, at(n, c, l), sizeof value);
        return value;
    }

    std::size_t width_, bytes_;
    std::int64_t origin_;
    std::unique_ptr<unsigned char[], Free> memory_;
};

// NaN equals NaN, whatever its bits; 0 does not equal -0.
inline bool same(double a, double b) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
    return a == b && std::signbit(a) == std::signbit(b);
}

}  // namespace storage
