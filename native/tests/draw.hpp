// What the fuzzers draw: sizes near the borders of the kernels' cases, layouts, and channels of many characters.
//
// Draws are made from the generator's bits alone, so that a seed means the same case with every standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "storage.hpp"

namespace draw {

class Random {
public:
    explicit Random(std::uint32_t seed) : bits_(seed) {}

    std::int64_t below(std::int64_t n) { return std::int64_t(bits_() % std::uint32_t(n)); }
    bool one_in(std::int64_t n) { return below(n) == 0; }
    double uniform() { return (bits_() + 0.5) / 4294967296.0; }
    double normal() {
        const double radius = std::sqrt(-2 * std::log(uniform()));
        return radius * std::cos(6.283185307179586 * uniform());
    }
    template <class T>
    T of(std::initializer_list<T> choices) {
        return choices.begin()[below(std::int64_t(choices.size()))];
    }

private:
    std::mt19937 bits_;
};

inline storage::Shape shape(Random &random, std::int64_t least, std::int64_t most) {
    for (;;) {
        const auto positions = random.of<std::int64_t>({0, 1, 1, 2, 3, 4, 7, 9, 15, 16, 17, 49, 63, 64, 65, 100, 196,
            255,
                                                        256, 257, 784, 1023, 1024, 1025, 1500, 2049, 3136});
        const auto rows = random.of<std::int64_t>({0, 1, 1, 2, 3, 4, 5, 8, 13, 16, 32, 100, 400, 1025, 2100});
        const auto channels = random.of<std::int64_t>({0, 1, 1, 2, 3, 5, 8, 15, 16, 17, 33});
        const storage::Shape shape{rows, channels, positions};
        if (shape.values() < least || shape.values() > most) continue;
        if (shape.values() == 0 && !random.one_in(8)) continue;
        return shape;
    }
}

// Of distinct addresses, or of any where it is for an input.
inline augserve_layout layout(Random &random, storage::Shape s, bool input) {
    const std::int64_t sizes[] = {std::max<std::int64_t>(s.rows, 1), std::max<std::int64_t>(s.channels, 1),
                                  std::max<std::int64_t>(s.positions, 1)};
    static const int orders[][3] = {{0, 1, 2}, {0, 1, 2}, {0, 2, 1}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1},
        {2, 1, 0}};
    const int *order = orders[random.below(8)];
    const bool gaps = random.one_in(3), turned = input && random.one_in(5), repeated = input && random.one_in(8);
    std::int64_t strides[3], stride = gaps && random.one_in(3) ? 2 : 1;
    for (int k = 2; k >= 0; k--) {
        strides[order[k]] = stride;
        stride = stride * sizes[order[k]] + (gaps ? random.below(6) : 0);
    }
    for (std::int64_t &each : strides) {
        if (turned && random.one_in(2)) each = -each;
        if (repeated && random.one_in(2)) each = 0;
    }
    return {strides[0], strides[1], strides[2]};
}

enum Character { NORMAL, RELU, ZEROS, CONSTANT, OUTLIER, TIES, CLUSTERS, FAR, HEAVY, CHARACTERS };

inline double value(Random &random, Character character, double own) {
    switch (character) {
        case RELU: return std::max(random.normal(), 0.0);
        case ZEROS: return random.uniform() < 0.9 ? 0.0 : random.normal();
        case CONSTANT: return own;
        case OUTLIER: return random.one_in(50) ? 1e4 : random.normal();
        case TIES: return std::floor(3 * random.normal());
        case CLUSTERS: return 0.1 * random.normal() + (random.uniform() < 0.3 ? 10 : 0);
        case FAR: return 300 + random.normal();
        case HEAVY: return std::exp(1.5 * random.normal());
        default: return random.normal();
    }
}

// Fills channel after channel; `broken`: whether some channels get NaN or inf.
inline void fill(Random &random, storage::Tensor &x, bool broken) {
    for (std::int64_t c = 0; c < x.shape.channels; c++) {
        const auto character = Character(random.below(CHARACTERS));
        const double scale = random.of({1.0, 1.0, 1.0, 1.0, 1.0, 1e3, 1e-3, 1e-8, 1e30, 1e-30, 1e-38});
        const double own = random.normal();
        for (std::int64_t n = 0; n < x.shape.rows; n++)
            for (std::int64_t l = 0; l < x.shape.positions; l++)
                x.set(n, c, l, scale * value(random, character, own));
        if (x.shape.values() == 0 || !broken || !random.one_in(3)) continue;
        const double bad = random.of({std::nan(""), HUGE_VAL, -HUGE_VAL});
        x.set(random.below(x.shape.rows), c, random.below(x.shape.positions), bad);
    }
}

// Of size n, each drawn by `one`; the heap block is exactly as long.
template <class T, class One>
std::vector<T> some(std::int64_t n, One one) {
    std::vector<T> result(static_cast<std::size_t>(n));
    for (T &each : result) each = T(one());
    return result;
}

// Most cases are small, near the borders of the kernels' cases; each tenth is of a size that threads share.
inline storage::Shape shape_of_case(Random &random, std::uint32_t seed) {
    return seed % 10 == 9 ? shape(random, 33000, 150000) : shape(random, 0, 6000);
}

// --- executors ---------------------------------------------------------------------------------------------------

inline void backwards(void *calls, void (*body)(void *, std::size_t), void *argument, std::size_t tasks) {
    ++*static_cast<int *>(calls);
    for (std::size_t task = tasks; task-- > 0;) body(argument, task);
}

inline void on_threads(void *calls, void (*body)(void *, std::size_t), void *argument, std::size_t tasks) {
    ++*static_cast<int *>(calls);
    std::vector<std::thread> threads;
    for (std::size_t task = 0; task < tasks; task++) threads.emplace_back(body, argument, task);
    for (std::thread &thread : threads) thread.join();
}

}  // namespace draw
