// The middle values of a set, exactly: a search along the line of floats in sixteenths, then, of an even number of
// values, the next one above. Ten passes of counting at most.
#pragma once

#include "portable.cuh"

namespace augserve::cuda {

// Integers in the order of the floats, with -0 just before 0.
AUGSERVE_ANYWHERE inline std::uint32_t key_of_bits(std::uint32_t bits) {
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
AUGSERVE_ANYWHERE inline std::uint32_t bits_of_key(std::uint32_t key) {
    return key & 0x80000000u ? key & 0x7fffffffu : ~key;
}

constexpr int PIVOTS = 15;

// How many keys are at most each pivot; of the last pass, the first entry so counts, and `above` is the least other.
struct Counts {
    std::uint64_t at_most[PIVOTS];
    std::uint32_t above, unused;
};

struct Selection {
    std::uint64_t count;
    std::uint32_t from, to;  // keys: the lower middle value lies between them
    std::uint32_t next;      // key of the upper one, once it is known
    std::int32_t running;

    AUGSERVE_ANYWHERE void begin(std::uint32_t low_key, std::uint32_t high_key, std::uint64_t values) {
        count = values;
        from = low_key;
        to = next = high_key;
        running = 1;
        settle();
    }

    AUGSERVE_ANYWHERE std::uint32_t stride() const { return (to - from) / (PIVOTS + 1) + 1; }
    AUGSERVE_ANYWHERE std::uint32_t pivot(int k) const { return pivot(from, to, stride(), k); }
    AUGSERVE_ANYWHERE static std::uint32_t pivot(std::uint32_t from, std::uint32_t to, std::uint32_t stride, int k) {
        const std::uint64_t at = std::uint64_t(from) + std::uint64_t(k + 1) * stride - 1;
        return at < to ? std::uint32_t(at) : to;
    }

    AUGSERVE_ANYWHERE void advance(const Counts &found) {
        const std::uint64_t rank = (count - 1) / 2;
        if (from == to) {
            next = found.at_most[0] > rank + 1 ? from : found.above;
            running = 0;
            return;
        }
        int k = 0;
        while (k < PIVOTS && found.at_most[k] <= rank) k++;
        const std::uint32_t last = k < PIVOTS ? pivot(k) : to;
        if (k > 0) from = pivot(k - 1) + 1;
        to = last;
        settle();
    }

private:
    AUGSERVE_ANYWHERE void settle() {
        if (from == to && count % 2) {
            next = from;
            running = 0;
        }
    }
};

}  // namespace augserve::cuda
