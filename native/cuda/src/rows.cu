// The kernel that only maps: rows with the running statistics, and those whose statistics were found before.

#include "rows.hpp"

namespace augserve::cuda {
namespace {

constexpr unsigned THREADS = 256;
constexpr std::uint32_t EACH = 2;  // accesses of a thread, so that more of them are on their way

struct Element {
    std::uint32_t at, channel;
    bool any;
};

// Of access `k` of this thread, `width` values wide, in a row of `size` values.
__device__ inline Element element(const Norm &norm, std::uint32_t block, std::uint32_t k, std::uint32_t width,
                                  std::uint32_t size) {
    const std::uint64_t at = (std::uint64_t(block * EACH + k) * THREADS + threadIdx.x) * width;
    return {std::uint32_t(at), at < size ? norm.positions.divide(std::uint32_t(at)) : 0, at < size};
}

__device__ inline Affine map_of(const Norm &norm, const Affine *maps, std::uint32_t set, std::uint32_t channel) {
    return maps ? maps[set + channel] : tracked_affine(norm, channel);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 4)
    map_rows(Norm norm, Tensors<T> t, Table table, const Affine *maps, std::uint32_t blocks) {
    const Group group = table.group(blockIdx.y);
    const std::uint32_t row = blockIdx.x / blocks, block = blockIdx.x % blocks, size = std::uint32_t(norm.stride());
    if (row >= std::uint32_t(group.rows)) return;
    const std::int64_t begin = table.rows(norm, group, 0).offset(row, 0);
    const T *x = t.x + begin, *residual = t.residual ? t.residual + begin : nullptr;
    T *y = t.y + begin;
    if (!norm.access.quads) {
        for (std::uint32_t k = 0; k < EACH; k++) {
            const Element e = element(norm, block, k, 1, size);
            if (!e.any) return;
            const float more = residual ? to_float(residual[e.at]) : 0.0f;
            round_to(mapped(to_float(x[e.at]), more, map_of(norm, maps, group.set, e.channel), norm.relu), y[e.at]);
        }
        return;
    }
    Four value[EACH], more[EACH] = {};
    AUGSERVE_UNROLL
    for (std::uint32_t k = 0; k < EACH; k++) {
        const Element e = element(norm, block, k, 4, size);
        if (e.any) value[k] = load_four(x + e.at, norm.access.aligned);
        if (e.any && residual) more[k] = load_four(residual + e.at, norm.access.aligned);
    }
    AUGSERVE_UNROLL
    for (std::uint32_t k = 0; k < EACH; k++) {
        const Element e = element(norm, block, k, 4, size);
        if (!e.any) return;
        const Affine map = map_of(norm, maps, group.set, e.channel);
        AUGSERVE_UNROLL
        for (int i = 0; i < 4; i++) value[k].value[i] = mapped(value[k].value[i], more[k].value[i], map, norm.relu);
        store_four(y + e.at, value[k], norm.access.aligned);
    }
}

}  // namespace

template <class T>
void run_rows(const Norm &norm, const Tensors<T> &t, const Table &table, std::uint32_t groups, std::uint32_t rows,
              const Affine *maps, Stream stream) {
    const std::uint32_t each = THREADS * EACH * (norm.access.quads ? 4 : 1);
    const std::uint32_t blocks = std::uint32_t((norm.stride() + each - 1) / each);
    launch(map_rows<T>, dim3(blocks * rows, groups), THREADS, 0, stream, norm, t, table, maps, blocks);
}

template void run_rows(const Norm &, const Tensors<float> &, const Table &, std::uint32_t, std::uint32_t,
                       const Affine *, Stream);
template void run_rows(const Norm &, const Tensors<Half> &, const Table &, std::uint32_t, std::uint32_t,
                       const Affine *, Stream);

}  // namespace augserve::cuda
