// Threads that work on one set together: a warp, or a block. What they combine, they combine in one order, so that
// equal values give equal bits; every thread of the team has to take part.
//
// The result of combine() is for those that lead, a whole warp; share() hands what they made of it to all. Each takes
// one barrier, since the memory alternates: when it is written again, everybody has passed the barrier in between.
#pragma once

#include "portable.cuh"

namespace augserve::cuda {

constexpr unsigned LANES = 32;

// op has to be commutative: then all lanes end with the same bits.
template <class T, class Op>
__device__ T combine_lanes(T value, Op op, unsigned lanes = LANES) {
    AUGSERVE_UNROLL
    for (unsigned bits = LANES / 2; bits > 0; bits /= 2)
        if (bits < lanes) value = op(value, shuffle_xor(value, bits));
    return value;
}

template <int K>
struct Sums {
    double value[K];
};

template <int K>
struct FloatSums {
    float value[K];
};

struct Add {
    template <int K>
    __device__ Sums<K> operator()(const Sums<K> &a, const Sums<K> &b) const {
        Sums<K> sum;
        AUGSERVE_UNROLL
        for (int k = 0; k < K; k++) sum.value[k] = a.value[k] + b.value[k];
        return sum;
    }
    template <int K>
    __device__ FloatSums<K> operator()(const FloatSums<K> &a, const FloatSums<K> &b) const {
        FloatSums<K> sum;
        AUGSERVE_UNROLL
        for (int k = 0; k < K; k++) sum.value[k] = a.value[k] + b.value[k];
        return sum;
    }
};

template <int K>
__device__ Sums<K> widened(const FloatSums<K> &sums) {
    Sums<K> wide;
    AUGSERVE_UNROLL
    for (int k = 0; k < K; k++) wide.value[k] = sums.value[k];
    return wide;
}

class Warp {
public:
    static constexpr unsigned SIZE = LANES;

    __device__ unsigned rank() const { return threadIdx.x % LANES; }
    __device__ bool leads() const { return true; }
    __device__ void barrier() const { __syncwarp(); }

    template <class T, class Op>
    __device__ T combine(const T &value, Op op) {
        return combine_lanes(value, op);
    }

    // Of the first lane, so that all go the same way whatever they hold.
    template <class T>
    __device__ T share(const T &value) {
        return shuffle_first(value);
    }
};

template <unsigned THREADS>
class Block {
public:
    static constexpr unsigned SIZE = THREADS, WARPS = THREADS / LANES, MOST = 128;
    static_assert(THREADS % LANES == 0 && WARPS <= LANES && (WARPS & (WARPS - 1)) == 0, "a power of two of warps");

    __device__ unsigned rank() const { return threadIdx.x; }
    __device__ bool leads() const { return threadIdx.x < LANES; }
    __device__ void barrier() const { __syncthreads(); }

    template <class T, class Op>
    __device__ T combine(const T &value, Op op) {
        return combine_warps(combine_lanes(value, op), op);
    }

    // Of values that are the same in all lanes of a warp.
    template <class T, class Op>
    __device__ T combine_warps(const T &own, Op op) {
        if (threadIdx.x % LANES == 0) slot<T>(threadIdx.x / LANES) = own;
        __syncthreads();
        T result = own;
        if (leads()) result = combine_lanes(slot<T>(threadIdx.x % WARPS), op, WARPS);
        turn_ ^= 1;
        return result;
    }

    template <class T>
    __device__ T share(const T &value) {
        if (threadIdx.x == 0) slot<T>(0) = value;
        __syncthreads();
        const T shared = slot<T>(0);
        turn_ ^= 1;
        return shared;
    }

private:
    template <class T>
    __device__ T &slot(unsigned warp) {
        static_assert(sizeof(T) <= MOST && alignof(T) <= 16, "it has to fit");
        return *reinterpret_cast<T *>(place(turn_, warp));
    }

    // Declared here, not handed over, so that the compiler knows where it is.
    __device__ static unsigned char *place(unsigned turn, unsigned warp) {
        alignas(16) __shared__ unsigned char memory[2][WARPS][MOST];
        return memory[turn][warp];
    }

    unsigned turn_ = 0;
};

// Sums of floats of each thread: in float within a warp, in double beyond.
template <int K>
__device__ Sums<K> add_up(Warp &team, const FloatSums<K> &own) {
    return widened(team.combine(own, Add()));
}

template <unsigned THREADS, int K>
__device__ Sums<K> add_up(Block<THREADS> &team, const FloatSums<K> &own) {
    return team.combine_warps(widened(combine_lanes(own, Add())), Add());
}

}  // namespace augserve::cuda
