// See forward.hpp.

#include "forward.hpp"

#include <algorithm>

#include "large.hpp"
#include "rows.hpp"
#include "sets.hpp"
#include "upload.hpp"

namespace augserve::cuda {
namespace {

constexpr std::uint32_t MOST_GROUPS = 65535;  // of a launch whose grid has them as its second dimension

// Memory cut into arrays; without memory it only counts.
class Arrays {
public:
    explicit Arrays(void *memory) : memory_(static_cast<char *>(memory)) {}

    template <class Value>
    Value *take(std::size_t count) {
        char *here = memory_ ? memory_ + size_ : nullptr;
        size_ += (count * sizeof(Value) + 255) / 256 * 256;
        return reinterpret_cast<Value *>(here);
    }

    std::size_t size() const { return size_; }

private:
    char *memory_;
    std::size_t size_ = 0;
};

struct Buffers {
    std::int32_t *order;
    Group *groups;
    Parts parts;
};

Buffers arrange(Arrays &arrays, const Plan &plan) {
    Buffers s{};
    s.order = arrays.take<std::int32_t>(plan.order.size());
    s.groups = arrays.take<Group>(plan.groups.size() > 1 ? plan.groups.size() : 0);
    s.parts.moments = arrays.take<Moments>(plan.parts);
    for (Partial *&partials : s.parts.partials) partials = arrays.take<Partial>(plan.parts);
    for (Median *&medians : s.parts.medians) medians = arrays.take<Median>(plan.sets);
    s.parts.maps = arrays.take<Affine>(plan.sets);
    return s;
}

template <class T>
bool aligned(const T *pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % (4 * sizeof(T)) == 0;
}

template <class T>
class Run {
public:
    Run(const Plan &plan, const Norm &norm, const Tensors<T> &t, void *scratch, Stream stream)
        : plan_(plan), norm_(norm), t_(t), stream_(stream) {
        Arrays arrays(scratch);
        buffers_ = arrange(arrays, plan);
        norm_.access.quads = norm.positions.by % 4 == 0;
        norm_.access.aligned = aligned(t.x) && aligned(t.y) && aligned(t.residual);
    }

    void operator()() const {
        if (!plan_.order.empty())
            upload(buffers_.order, plan_.order.data(), plan_.order.size() * sizeof(std::int32_t), stream_);
        if (plan_.groups.size() > 1)
            upload(buffers_.groups, plan_.groups.data(), plan_.groups.size() * sizeof(Group), stream_);
        for (const Size size : {Size::WARP, Size::SMALL_BLOCK, Size::BLOCK}) {
            const Class &own = of(size);
            if (own.groups == 0) continue;
            run_sets(size, norm_, t_, table(own.begin), own.groups, own.rows * norm_.positions.by, stream_);
        }
        const Class &large = of(Size::LARGE), &tracked = of(Size::TRACKED);
        for (std::uint32_t done = 0; done < large.groups; done += MOST_GROUPS) {
            const std::uint32_t some = std::min(MOST_GROUPS, large.groups - done);
            const Table groups = table(large.begin + done);
            run_large(norm_, t_.x, groups, some, large.parts, buffers_.parts, stream_);
            run_rows(norm_, t_, groups, some, large.rows, buffers_.parts.maps, stream_);
        }
        if (tracked.groups > 0) run_rows(norm_, t_, table(tracked.begin), 1, tracked.rows, nullptr, stream_);
    }

private:
    const Class &of(Size size) const { return plan_.classes[int(size)]; }

    Table table(std::uint32_t begin) const {
        const bool one = plan_.groups.size() == 1;
        return {one ? nullptr : buffers_.groups + begin, plan_.order.empty() ? nullptr : buffers_.order,
                plan_.groups[begin]};
    }

    const Plan &plan_;
    Norm norm_;
    const Tensors<T> &t_;
    Stream stream_;
    Buffers buffers_;
};

}  // namespace

std::size_t scratch_size(const Plan &plan) {
    Arrays arrays(nullptr);
    arrange(arrays, plan);
    return arrays.size();
}

template <class T>
void forward(const Plan &plan, Norm norm, const Tensors<T> &t, void *scratch, Stream stream) {
    Run<T>(plan, norm, t, scratch, stream)();
}

template void forward(const Plan &, Norm, const Tensors<float> &, void *, Stream);
template void forward(const Plan &, Norm, const Tensors<Half> &, void *, Stream);

}  // namespace augserve::cuda
