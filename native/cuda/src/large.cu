// Kernels for sets that are cut into parts, so that a few of them keep the whole card busy.
//
// A launch is one pass over the values. Its blocks, one for each part, begin with what the last launch left: each adds
// up the sums of its set's parts, in their order, and takes the step; all of them come to the same bits. A set that has
// stopped is left alone from then on, the number of launches is fixed, and nothing waits for the device. One block each
// finishes the sets that are left, and makes the affine map.

#include "large.hpp"

#include "passes.cuh"

namespace augserve::cuda {
namespace {

constexpr unsigned THREADS = 256;
constexpr int COUNTING_PASSES = 9;

using Team = Block<THREADS>;

// Which part of which set a block works on.
struct Work {
    Group group;
    std::uint32_t channel, part;
    bool any;

    __device__ Work(const Norm &norm, const Table &table) : group(table.group(blockIdx.y)) {
        channel = blockIdx.x % norm.channels;
        part = blockIdx.x / norm.channels;
        any = part < group.parts;
    }

    __device__ std::size_t set() const { return std::size_t(group.set) + channel; }
    __device__ std::size_t first() const { return std::size_t(group.first) + std::size_t(channel) * group.parts; }

    template <class T>
    __device__ Streamed<T> values(const Norm &norm, const T *x, const Table &table, std::uint32_t which) const {
        const std::uint64_t begin = std::uint64_t(which) * group.part, rest = count_of(norm, group) - begin;
        const std::uint32_t size = rest < group.part ? std::uint32_t(rest) : group.part;
        return {x, span(table.rows(norm, group, channel), begin, size), norm.access};
    }
};

template <class T>
__global__ void __launch_bounds__(THREADS, 3) part_moments(Norm norm, const T *x, Table table, Parts memory) {
    const Work work(norm, table);
    if (!work.any) return;
    Team team;
    const Moments found = moments(team, work.values(norm, x, table, work.part), norm.kind == AUGSERVE_AUG);
    if (threadIdx.x == 0) memory.moments[work.first() + work.part] = found;
}

// The state of the block's set after the launch before this one; for those that lead. `launched`: passes before it.
__device__ void resume(Team &team, Median &median, const Work &work, const Norm &norm, const Parts &memory,
                       int launched) {
    if (launched == 0) {
        const std::uint64_t count = count_of(norm, work.group);
        const Moments found = merged(team, memory.moments + work.first(), work.group.parts, work.group.part, count);
        if (team.leads()) begin(median, found, norm, work.channel, count);
        return;
    }
    const int before = (launched - 1) & 1;
    const Median &last = memory.medians[before][work.set()];
    if (team.leads()) median = last;
    if (last.method == NOTHING) return;  // for all threads or none
    const Totals totals = added(team, memory.partials[before] + work.first(), work.group.parts, last.method);
    if (team.leads()) median.advance(totals);
}

template <class T>
AUGSERVE_ALONE __device__ Partial sums(Team &team, const Streamed<T> &values, const Point &at) {
    return pass(team, values, at);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    part_pass(Norm norm, const T *x, Table table, Parts memory, int launched) {
    const Work work(norm, table);
    if (!work.any) return;
    Team team;
    Median median;
    resume(team, median, work, norm, memory, launched);
    if (work.part == 0 && threadIdx.x == 0) memory.medians[launched & 1][work.set()] = median;
    Point at{};
    if (team.leads()) at = median.point();
    at = team.share(at);
    if (at.method == NOTHING) return;
    const Partial found = sums(team, work.values(norm, x, table, work.part), at);
    if (threadIdx.x == 0) memory.partials[launched & 1][work.first() + work.part] = found;
}

// The passes of a set by one block.
template <class T>
__device__ void go_on(Team &team, Median &median, const Work &work, const Norm &norm, const T *x, const Table &table) {
    for (;;) {
        Point at{};
        if (team.leads()) at = median.point();
        at = team.share(at);
        if (at.method == NOTHING) return;
        Totals totals = Totals::none();
        for (std::uint32_t k = 0; k < work.group.parts; k++) {
            const Partial found = sums(team, work.values(norm, x, table, k), at);
            if (team.leads()) totals.add(found);
        }
        if (team.leads()) median.advance(totals);
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 1) finish(Norm norm, const T *x, Table table, Parts memory, int launched) {
    const Work work(norm, table);
    Team team;
    Median median;
    resume(team, median, work, norm, memory, launched);
    go_on(team, median, work, norm, x, table);
    const std::uint64_t count = count_of(norm, work.group);
    const Moments found = merged(team, memory.moments + work.first(), work.group.parts, work.group.part, count);
    if (!team.leads()) return;
    const Affine map = affine_of(median, found, norm, work.channel, double(work.group.lambda), count);
    if (threadIdx.x == 0) memory.maps[work.set()] = map;
}

// Launches before the last one, so many that activations seldom need more.
int passes_of(const Norm &norm) {
    if (norm.kind != AUGSERVE_AUG) return 0;
    const double phi = norm.exponents ? 1.4 : norm.exponent;  // exponents of its own are the device's alone
    if (phi == 2 || phi > LARGEST_PHI) return 0;
    if (phi == 1) return COUNTING_PASSES;
    const int usual = phi < 1.15 ? 18 : phi < 1.45 ? 9 : phi < 1.7 ? 7 : 6;
    return usual < norm.max_steps ? usual : norm.max_steps;
}

}  // namespace

template <class T>
void run_large(const Norm &norm, const T *x, const Table &table, std::uint32_t groups, std::uint32_t parts,
               const Parts &memory, Stream stream) {
    const dim3 all(norm.channels * parts, groups);
    launch(part_moments<T>, all, THREADS, 0, stream, norm, x, table, memory);
    const int passes = passes_of(norm);
    for (int k = 0; k < passes; k++) launch(part_pass<T>, all, THREADS, 0, stream, norm, x, table, memory, k);
    launch(finish<T>, dim3(norm.channels, groups), THREADS, 0, stream, norm, x, table, memory, passes);
}

template void run_large(const Norm &, const float *, const Table &, std::uint32_t, std::uint32_t, const Parts &,
                        Stream);
template void run_large(const Norm &, const Half *, const Table &, std::uint32_t, std::uint32_t, const Parts &,
                        Stream);

}  // namespace augserve::cuda
