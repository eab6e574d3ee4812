// See transpose_avx512.hpp.

#include "transpose_avx512.hpp"

#ifdef AUGSERVE_AVX512

// GCC 12 warns of its own header, which leaves registers undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include "simd.hpp"

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")

namespace augserve {
namespace {

constexpr std::size_t WIDTH = 16;

AUGSERVE_INLINE __mmask16 first(std::size_t n) { return n >= WIDTH ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

// Rows become columns: pairs of values, pairs of pairs, then quarters of registers change places.
AUGSERVE_INLINE void transpose(__m512 *r) {
    __m512 t[WIDTH];
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
        t[2 * k] = _mm512_unpacklo_ps(r[2 * k], r[2 * k + 1]);
        t[2 * k + 1] = _mm512_unpackhi_ps(r[2 * k], r[2 * k + 1]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const __m512d a = _mm512_castps_pd(t[4 * k]), b = _mm512_castps_pd(t[4 * k + 1]);
        const __m512d c = _mm512_castps_pd(t[4 * k + 2]), d = _mm512_castps_pd(t[4 * k + 3]);
        r[4 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[4 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[4 * k + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[4 * k + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        t[k] = _mm512_shuffle_f32x4(r[k], r[k + 4], 0x88);
        t[k + 4] = _mm512_shuffle_f32x4(r[k], r[k + 4], 0xdd);
        t[k + 8] = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0x88);
        t[k + 12] = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        r[k] = _mm512_shuffle_f32x4(t[k], t[k + 8], 0x88);
        r[k + 4] = _mm512_shuffle_f32x4(t[k + 4], t[k + 12], 0x88);
        r[k + 8] = _mm512_shuffle_f32x4(t[k], t[k + 8], 0xdd);
        r[k + 12] = _mm512_shuffle_f32x4(t[k + 4], t[k + 12], 0xdd);
    }
}

}  // namespace

void separate_avx512(const float *from, std::size_t stride, float *to, std::size_t leading, std::size_t n,
                     std::size_t lanes) {
    const __mmask16 of_lanes = first(lanes);
    for (std::size_t i = 0; i < n; i += WIDTH) {
        const std::size_t rows = n - i < WIDTH ? n - i : WIDTH;
        __m512 r[WIDTH] = {};
        for (std::size_t k = 0; k < rows; k++) r[k] = _mm512_maskz_loadu_ps(of_lanes, from + (i + k) * stride);
        transpose(r);
        for (std::size_t k = 0; k < lanes; k++) _mm512_mask_storeu_ps(to + k * leading + i, first(rows), r[k]);
    }
}

void interleave_avx512(const float *from, std::size_t leading, float *to, std::size_t stride, std::size_t n,
                       std::size_t lanes) {
    const __mmask16 of_lanes = first(lanes);
    for (std::size_t i = 0; i < n; i += WIDTH) {
        const std::size_t rows = n - i < WIDTH ? n - i : WIDTH;
        __m512 r[WIDTH] = {};
        for (std::size_t k = 0; k < lanes; k++) r[k] = _mm512_maskz_loadu_ps(first(rows), from + k * leading + i);
        transpose(r);
        for (std::size_t k = 0; k < rows; k++) _mm512_mask_storeu_ps(to + (i + k) * stride, of_lanes, r[k]);
    }
}

}  // namespace augserve

#pragma GCC pop_options
#endif
