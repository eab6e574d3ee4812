// What is done to each value by itself: the affine map of a norm, and the formats of storage. Here NaN and inf count.
#pragma once

#include <cstddef>
#include <cstdint>

namespace augserve {

// y = (value - center) * scale + shift; y may be the values themselves. The center is subtracted first, so that a
// channel far from 0 keeps its digits.
struct Affine {
    float center, scale, shift;
};
void affine_block(const float *values, float *y, std::size_t n, Affine map);
// The same with a residual (or nullptr) added, and with max(0, .) of it all if `relu`, which keeps NaN.
void affine_block(const float *values, const float *residual, float *y, std::size_t n, Affine map, bool relu);
// out = dy where the map of the value is positive or NaN, else 0; out may be dy itself.
void gate_block(const float *values, const float *dy, float *out, std::size_t n, Affine map);
void scale_block(float *values, std::size_t n, float scale);

// Rounded to the nearest, ties to even; inf and NaN are kept.
void from_float16(const std::uint16_t *from, float *to, std::size_t n);
void from_bfloat16(const std::uint16_t *from, float *to, std::size_t n);
void to_float16(const float *from, std::uint16_t *to, std::size_t n);
void to_bfloat16(const float *from, std::uint16_t *to, std::size_t n);

// Copy `segments` runs of n values, which lie `from_step` and `to_step` apart.
void copy_segments(const float *from, std::ptrdiff_t from_step, float *to, std::ptrdiff_t to_step,
                   std::size_t segments, std::size_t n);

// Lay `lanes` interleaved sequences of n values, `stride` apart, side by side with `leading` between them, and back.
void separate(const float *from, std::size_t stride, float *to, std::size_t leading, std::size_t n,
              std::size_t lanes);
void interleave(const float *from, std::size_t leading, float *to, std::size_t stride, std::size_t n,
                std::size_t lanes);

}  // namespace augserve
