// A set from beginning to end by one team: moments, the search until it has converged, the affine map.
#pragma once

#include "norm.cuh"
#include "passes.cuh"

namespace augserve::cuda {

template <class Team>
__device__ void search(Team &team, Median &median, const Staged &values) {
    for (;;) {
        Point at{};
        if (team.leads()) at = median.point();
        at = team.share(at);
        if (at.method == NOTHING) return;
        const Partial found = pass(team, values, at);
        if (team.leads()) {
            Totals totals = Totals::none();
            totals.add(found);
            median.advance(totals);
        }
    }
}

// The map of a set, for all threads: one function for all types of x.
template <class Team>
AUGSERVE_ALONE __device__ Affine solve(Team team, Staged values, const Norm &norm, std::uint32_t channel,
                                       float lambda) {
    const Moments found = moments(team, values, norm.kind == AUGSERVE_AUG);
    Median median;
    if (team.leads()) begin(median, found, norm, channel, values.count());
    if (norm.kind == AUGSERVE_AUG) search(team, median, values);
    Affine map{};
    if (team.leads()) map = affine_of(median, found, norm, channel, double(lambda), values.count());
    return team.share(map);
}

// y of the values of a set.
template <class T, class Team>
__device__ void write(const Team &team, const Tensors<T> &t, const Span &span, Access access, Staged values,
                      const Affine &map, bool relu) {
    const float *staged = block_memory() + values.begin;
    if (!access.quads) {
        for (std::uint32_t i = team.rank(); i < span.size; i += Team::SIZE) {
            const std::int64_t at = span.offset(i);
            const float residual = t.residual ? to_float(t.residual[at]) : 0.0f;
            round_to(mapped(staged[i], residual, map, relu), t.y[at]);
        }
        return;
    }
    struct Loaded {
        std::int64_t at;
        Four residual;
    };
    const auto load = [&](std::uint32_t i) {
        Loaded loaded{span.offset(i), {}};
        if (t.residual) loaded.residual = load_four(t.residual + loaded.at, access.aligned);
        return loaded;
    };
    each_fourth<2>(team, span.size, load, [&](std::uint32_t i, const Loaded &loaded) {
        Four y = load_four(staged + i, true);
        AUGSERVE_UNROLL
        for (int k = 0; k < 4; k++) y.value[k] = mapped(y.value[k], loaded.residual.value[k], map, relu);
        store_four(t.y + loaded.at, y, access.aligned);
    });
}

}  // namespace augserve::cuda
