// What the kernels should give, in double and straight from the definitions; nothing here knows of the kernels' code.
//
// The median is found by bisection of the residual's sign, gradients by the closed formulas and, for few values, by
// central differences of `loss`, which uses none of those formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "augserve.h"

namespace oracle {

using Values = std::vector<double>;

// --- the generalized geometric median --------------------------------------------------------------------------

constexpr double LARGEST_PHI = 1e9;  // the midrange from here on

inline double signed_power(double d, double p) {
    const double power = p == 0.5 ? std::sqrt(std::fabs(d)) : std::pow(std::fabs(d), p);
    return d > 0 ? power : d < 0 ? -power : 0;
}

// sum sgn(y - x) |y - x|^(phi - 1), of differences over the largest one, which keeps the sign.
inline double residual(const Values &x, double y, double phi, double low, double high) {
    const double reach = std::max(y - low, high - y);
    double sum = 0;
    for (const double value : x) sum += signed_power((y - value) / reach, phi - 1);
    return sum;
}

inline double middle_value(Values x) {
    std::sort(x.begin(), x.end());
    return x[(x.size() - 1) / 2] / 2 + x[x.size() / 2] / 2;
}

inline double mean_of(const Values &x) {
    long double sum = 0;
    for (const double value : x) sum += value;
    return double(sum / (long double)(x.size()));
}

inline double median(const Values &x, double phi) {
    double low = *std::min_element(x.begin(), x.end()), high = *std::max_element(x.begin(), x.end());
    if (phi == 2) return mean_of(x);
    if (x.size() <= 2 || phi > LARGEST_PHI || low == high) return low / 2 + high / 2;
    if (phi == 1) return middle_value(x);
    const double least = low, most = high;
    for (int k = 0; k < 2000; k++) {
        const double middle = low / 2 + high / 2;
        if (!(middle > low && middle < high)) break;
        const double g = residual(x, middle, phi, least, most);
        if (g <= 0) low = middle;
        if (g >= 0) high = middle;
        if (high - low <= 1e-14 * (most - least)) break;
    }
    return low / 2 + high / 2;
}

// Whether the median lies in [lower, upper], for phi in (1, inf): two residuals instead of a search.
inline bool between(const Values &x, double phi, double lower, double upper) {
    const double low = *std::min_element(x.begin(), x.end()), high = *std::max_element(x.begin(), x.end());
    return (lower <= low || residual(x, lower, phi, low, high) <= 0) &&
           (upper >= high || residual(x, upper, phi, low, high) >= 0);
}

// --- statistics and the forward pass ---------------------------------------------------------------------------

struct Statistics {
    bool finite;
    double mean, std, low, high;           // of the values
    double center, spread, first, second;  // as augserve_forward gives them
    double tracked;                        // the spread as running statistics hold it
};

inline double variance_about(const Values &x, double center) {
    long double sum = 0;
    for (const double value : x) sum += (long double)(value - center) * (value - center);
    return double(sum / (long double)(x.size()));
}

inline double power_of_range(double range, double p) { return range > 0 ? std::pow(range, p) : 0; }

inline Statistics statistics(const Values &x, augserve_kind kind, double exponent) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    Statistics s{true, nan, nan, nan, nan, nan, nan, nan, nan, nan};
    for (const double value : x) s.finite = s.finite && std::isfinite(value);
    s.finite = s.finite && !x.empty() && (kind != AUGSERVE_AUG || exponent >= 1);
    if (!s.finite) return s;
    s.mean = mean_of(x);
    s.std = std::sqrt(variance_about(x, s.mean));
    s.low = *std::min_element(x.begin(), x.end());
    s.high = *std::max_element(x.begin(), x.end());
    if (kind == AUGSERVE_AUG) {
        s.center = median(x, exponent);
        s.spread = s.tracked = variance_about(x, s.center);
        s.first = s.mean - s.center;
        s.second = std::max(s.high - s.center, s.center - s.low);
    } else {
        s.center = s.mean;
        s.spread = s.high - s.low;
        s.tracked = kind == AUGSERVE_ROBUST ? power_of_range(s.spread, exponent) : s.spread;
        s.first = s.low;
        s.second = s.high;
    }
    return s;
}

// Of a spread as running statistics hold it.
inline double divisor(augserve_kind kind, double tracked, double exponent, double eps) {
    if (kind == AUGSERVE_AUG) return std::sqrt(tracked + eps);
    return (kind == AUGSERVE_ROBUST ? tracked : power_of_range(tracked, exponent)) + eps;
}

inline double blend(double lambda, double running, double own) {
    return lambda == 0 ? own : lambda == 1 ? running : lambda * running + (1 - lambda) * own;
}

// --- the backward pass -----------------------------------------------------------------------------------------

// The statistics that backward is given.
struct Given {
    double center, spread, first, second;
};

struct Gradient {
    Values dx;
    Values size;  // of the terms that dx is the sum of: what rounding is measured by
    double dweight, dbias, dexponent;
    double weight_size, bias_size, exponent_size;
    double exponent_unit;  // what a factor e of the unit adds to dexponent
};

// |x - mu|^(phi - 2) of differences over the largest one; a value at mu has the weight of one at `least`.
inline Values weights(const Values &x, double mu, double phi, double least) {
    double reach = 0;
    for (const double value : x) reach = std::max(reach, std::fabs(value - mu));
    Values w(x.size(), 1.0);
    if (x.size() <= 2 || reach == 0) return w;
    for (std::size_t i = 0; i < x.size(); i++)
        w[i] = std::pow(std::max(std::fabs(x[i] - mu), least) / reach, phi - 2);
    return w;
}

// dmu / dphi = sum sgn(d) |d|^(phi - 1) ln|d| / ((phi - 1) sum |d|^(phi - 2)); the same of absolute values; and how far
// mu is from the root, by one step of Newton's. Another unit of d, as that of ln|d| is free, adds to the value the
// logarithm of the unit times that distance, which is 0 of the exact mu only.
struct Slope {
    double value, size, distance;
};
inline Slope slope_in_phi(const Values &x, double mu, double phi, const Values &w) {
    double sum = 0, size = 0, total = 0, reach = 0, residual = 0;
    for (const double value : x) reach = std::max(reach, std::fabs(value - mu));
    if (x.size() <= 2 || reach == 0) return {0, 0, 0};
    for (std::size_t i = 0; i < x.size(); i++) {
        const double d = x[i] - mu, log = d == 0 ? 0 : std::log(std::fabs(d) / reach);
        sum += w[i] * d * log;
        size += std::fabs(w[i] * d) * (1 + std::fabs(log));
        residual += w[i] * d;
        total += w[i];
    }
    const double over = (phi - 1) * total;
    return {sum / over, size / over, std::fabs(residual / over)};
}

inline void add_ends(Gradient &g, const Values &x, double at, double amount, double size) {
    const double ties = double(std::max<std::ptrdiff_t>(std::count(x.begin(), x.end(), at), 1));
    for (std::size_t i = 0; i < x.size(); i++) {
        if (x[i] != at) continue;
        g.dx[i] += amount / ties;
        g.size[i] += size / ties;
    }
}

// `least`: see weights.
inline Gradient gradient(const Values &x, const Values &dy, augserve_kind kind, double exponent, double eps,
                         double gamma, Given s, double least) {
    const std::size_t m = x.size();
    const double power = power_of_range(s.spread, exponent);
    const double r = 1 / (kind == AUGSERVE_AUG ? std::sqrt(s.spread + eps) : power + eps), scale = gamma * r;
    double a = 0, b = 0, a_size = 0, b_size = 0;
    for (std::size_t i = 0; i < m; i++) {
        const double t = (x[i] - s.center) * r;
        a += dy[i];
        b += dy[i] * t;
        a_size += std::fabs(dy[i]);
        b_size += std::fabs(dy[i] * t);
    }
    Gradient g{Values(m), Values(m), b, a, 0, b_size, a_size, 0, 0};
    const double offset = kind == AUGSERVE_AUG ? s.first * r : 0;
    const double d_center = -scale * (a - offset * b);
    const double center_size = std::fabs(scale) * (a_size + std::fabs(offset) * b_size);
    const Values w = kind == AUGSERVE_AUG ? weights(x, s.center, exponent, least) : Values(m, 1.0);
    double total = 0;
    for (const double weight : w) total += weight;
    const double by_t = kind == AUGSERVE_AUG ? -scale * b / double(m) : 0;
    for (std::size_t i = 0; i < m; i++) {
        const double t = (x[i] - s.center) * r;
        g.dx[i] = scale * dy[i] + by_t * t + d_center * (w[i] / total);
        g.size[i] = std::fabs(scale * dy[i]) + center_size * (w[i] / total) +
                    (kind == AUGSERVE_AUG ? std::fabs(scale * t) * b_size / double(m) : 0);
    }
    if (kind == AUGSERVE_AUG) {
        const Slope slope = slope_in_phi(x, s.center, exponent, w);
        g.dexponent = d_center * slope.value;
        g.exponent_size = center_size * slope.size;
        g.exponent_unit = std::fabs(d_center) * slope.distance;
    } else if (s.spread > 0) {
        const double each = exponent * power / s.spread * scale;
        add_ends(g, x, s.second, -each * b, std::fabs(each) * b_size);
        add_ends(g, x, s.first, each * b, std::fabs(each) * b_size);
    }
    return g;
}

// sum dy y, of which `gradient` is the derivative in x and phi.
inline double loss(const Values &x, const Values &dy, augserve_kind kind, double exponent, double eps, double gamma) {
    const Statistics s = statistics(x, kind, exponent);
    const double over = divisor(kind, s.tracked, exponent, eps);
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); i++) sum += dy[i] * gamma * (x[i] - s.center) / over;
    return sum;
}

}  // namespace oracle
