// The loops of elementwise.hpp; compiled without relaxed floating point.

#include "elementwise.hpp"

#include "power.hpp"
#include "simd.hpp"
#include "transpose_avx512.hpp"

namespace augserve {
namespace {

AUGSERVE_INLINE float widen_float16(std::uint16_t half) {
    const std::uint32_t rest = half & 0x7fffu, sign = std::uint32_t(half & 0x8000u) << 16;
    const std::uint32_t finite = std::uint32_t(float_to_bits(bits_to_float(std::int32_t(rest << 13)) * 0x1p112f));
    const std::uint32_t other = 0x7f800000u | (rest << 13);
    return bits_to_float(std::int32_t(sign | (rest >= 0x7c00u ? other : finite)));
}

AUGSERVE_INLINE std::uint16_t narrow_float16(float value) {
    const std::uint32_t bits = std::uint32_t(float_to_bits(value)), size = bits & 0x7fffffffu;
    const std::uint32_t shifted = size - 0x38000000u;  // the exponent of float16
    const std::uint32_t normal = (shifted + 0xfffu + ((shifted >> 13) & 1u)) >> 13;
    const float tiny = bits_to_float(std::int32_t(size < 0x38800000u ? size : 0u)) + 0.5f;
    const std::uint32_t subnormal = std::uint32_t(float_to_bits(tiny)) - 0x3f000000u;
    const std::uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t rest = size >= 0x47800000u ? large : size < 0x38800000u ? subnormal : normal;
    return std::uint16_t(((bits >> 16) & 0x8000u) | rest);
}

AUGSERVE_INLINE std::uint16_t narrow_bfloat16(float value) {
    const std::uint32_t bits = std::uint32_t(float_to_bits(value));
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t nan = (bits >> 16) | 0x40u;
    return std::uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

}  // namespace

AUGSERVE_SIMD void affine_block(const float *values, float *y, std::size_t n, Affine map) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) y[i] = (values[i] - map.center) * map.scale + map.shift;
}

namespace {

// (y < 0 ? 0 : y) by a mask, which GCC turns into SIMD instructions
AUGSERVE_INLINE float rectified(float y) {
    return bits_to_float(float_to_bits(y) & ~-std::int32_t(y < 0));
}

AUGSERVE_SIMD void rectified_block(const float *values, float *y, std::size_t n, Affine map) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) y[i] = rectified((values[i] - map.center) * map.scale + map.shift);
}

AUGSERVE_SIMD void added_block(const float *values, const float *residual, float *y, std::size_t n, Affine map) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) y[i] = (values[i] - map.center) * map.scale + map.shift + residual[i];
}

AUGSERVE_SIMD void rectified_sum_block(const float *values, const float *residual, float *y, std::size_t n,
                                       Affine map) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++)
        y[i] = rectified((values[i] - map.center) * map.scale + map.shift + residual[i]);
}

}  // namespace

void affine_block(const float *values, const float *residual, float *y, std::size_t n, Affine map, bool relu) {
    if (residual)
        return relu ? rectified_sum_block(values, residual, y, n, map) : added_block(values, residual, y, n, map);
    return relu ? rectified_block(values, y, n, map) : affine_block(values, y, n, map);
}

AUGSERVE_SIMD void gate_block(const float *values, const float *dy, float *out, std::size_t n, Affine map) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++)
        out[i] = (values[i] - map.center) * map.scale + map.shift <= 0 ? 0.0f : dy[i];
}

AUGSERVE_SIMD void scale_block(float *values, std::size_t n, float scale) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) values[i] *= scale;
}

AUGSERVE_SIMD void from_float16(const std::uint16_t *AUGSERVE_RESTRICT from, float *AUGSERVE_RESTRICT to,
                                std::size_t n) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) to[i] = widen_float16(from[i]);
}

AUGSERVE_SIMD void from_bfloat16(const std::uint16_t *AUGSERVE_RESTRICT from, float *AUGSERVE_RESTRICT to,
                                 std::size_t n) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) to[i] = bits_to_float(std::int32_t(std::uint32_t(from[i]) << 16));
}

AUGSERVE_SIMD void to_float16(const float *AUGSERVE_RESTRICT from, std::uint16_t *AUGSERVE_RESTRICT to,
                              std::size_t n) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) to[i] = narrow_float16(from[i]);
}

AUGSERVE_SIMD void to_bfloat16(const float *AUGSERVE_RESTRICT from, std::uint16_t *AUGSERVE_RESTRICT to,
                               std::size_t n) {
#pragma omp simd
    for (std::size_t i = 0; i < n; i++) to[i] = narrow_bfloat16(from[i]);
}

namespace {

constexpr std::size_t WIDTH = 16;

// Runs of `REGISTERS` registers of 16 values: short runs cost more in loops than in copies.
template <std::size_t REGISTERS>
AUGSERVE_INLINE void copy_registers(const float *AUGSERVE_RESTRICT from, std::ptrdiff_t from_step,
                                    float *AUGSERVE_RESTRICT to, std::ptrdiff_t to_step, std::size_t segments) {
    for (std::size_t s = 0; s < segments; s++, from += from_step, to += to_step) {
#pragma omp simd
        for (std::size_t i = 0; i < REGISTERS * WIDTH; i++) to[i] = from[i];
    }
}

}  // namespace

AUGSERVE_SIMD void copy_segments(const float *AUGSERVE_RESTRICT from, std::ptrdiff_t from_step,
                                 float *AUGSERVE_RESTRICT to, std::ptrdiff_t to_step, std::size_t segments,
                                 std::size_t n) {
    if (n == WIDTH) return copy_registers<1>(from, from_step, to, to_step, segments);
    if (n == 4 * WIDTH) return copy_registers<4>(from, from_step, to, to_step, segments);
    for (std::size_t s = 0; s < segments; s++, from += from_step, to += to_step) {
        std::size_t i = 0;
        for (; i + WIDTH <= n; i += WIDTH) {
#pragma omp simd
            for (std::size_t k = 0; k < WIDTH; k++) to[i + k] = from[i + k];
        }
        if (i == n) continue;
        if (n >= WIDTH) {  // the last register once more, at the end
#pragma omp simd
            for (std::size_t k = 0; k < WIDTH; k++) to[n - WIDTH + k] = from[n - WIDTH + k];
        } else {
            for (; i < n; i++) to[i] = from[i];
        }
    }
}

void separate(const float *AUGSERVE_RESTRICT from, std::size_t stride, float *AUGSERVE_RESTRICT to,
              std::size_t leading, std::size_t n, std::size_t lanes) {
#ifdef AUGSERVE_AVX512
    if (has_avx512() && lanes <= WIDTH) return separate_avx512(from, stride, to, leading, n, lanes);
#endif
    constexpr std::size_t rows = 16;
    for (std::size_t i = 0; i < n; i += rows) {
        const std::size_t end = i + rows < n ? i + rows : n;
        for (std::size_t lane = 0; lane < lanes; lane++)
            for (std::size_t j = i; j < end; j++) to[lane * leading + j] = from[j * stride + lane];
    }
}

void interleave(const float *AUGSERVE_RESTRICT from, std::size_t leading, float *AUGSERVE_RESTRICT to,
                std::size_t stride, std::size_t n, std::size_t lanes) {
#ifdef AUGSERVE_AVX512
    if (has_avx512() && lanes <= WIDTH) return interleave_avx512(from, leading, to, stride, n, lanes);
#endif
    constexpr std::size_t rows = 16;
    for (std::size_t i = 0; i < n; i += rows) {
        const std::size_t end = i + rows < n ? i + rows : n;
        for (std::size_t j = i; j < end; j++)
            for (std::size_t lane = 0; lane < lanes; lane++) to[j * stride + lane] = from[lane * leading + j];
    }
}

}  // namespace augserve
