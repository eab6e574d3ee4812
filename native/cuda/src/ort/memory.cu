// See memory.hpp. Each device has a pool of ours, which keeps up to 64 MB at hand between runs: the pool that the whole
// process shares would give them back at every synchronization. Where a device has no pools, runs wait for each other.

#include "memory.hpp"

#ifdef AUGSERVE_EMULATED

namespace augserve::cuda {

OnDeviceOf::OnDeviceOf(const void *) : device_(0), before_(0) {}
OnDeviceOf::~OnDeviceOf() {}
std::size_t OnDeviceOf::block_memory() const { return emulator::MOST_SHARED; }

Borrowed::Borrowed(std::size_t size, int, Stream stream)
    : data_(size ? std::aligned_alloc(256, (size + 255) / 256 * 256) : nullptr), stream_(stream) {
    if (data_) std::memset(data_, 0xff, size);
}
Borrowed::~Borrowed() { std::free(data_); }

}  // namespace augserve::cuda

#else

#include <mutex>
#include <vector>

namespace augserve::cuda {
namespace {

constexpr std::uint64_t KEPT = std::uint64_t(64) << 20;

cudaMemPool_t new_pool(int device) {
    int has_pools = 0;
    check(cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, device), "the device's attributes");
    if (!has_pools) return nullptr;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t pool = nullptr;
    check(cudaMemPoolCreate(&pool, &properties), "a pool of memory");
    std::uint64_t kept = KEPT;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "a pool of memory");
    return pool;
}

// Pools stay as long as the process: runs may still be on their way at its end.
cudaMemPool_t pool_of(int device) {
    struct Entry {
        int device;
        cudaMemPool_t pool;
    };
    static std::mutex mutex;
    static std::vector<Entry> *const entries = new std::vector<Entry>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const Entry &entry : *entries)
        if (entry.device == device) return entry.pool;
    entries->push_back({device, new_pool(device)});
    return entries->back().pool;
}

}  // namespace

OnDeviceOf::OnDeviceOf(const void *data) {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, data), "the place of x");
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
        throw std::runtime_error("x is not in memory of a CUDA device");
    device_ = attributes.device;
    check(cudaGetDevice(&before_), "the current device");
    if (device_ != before_) check(cudaSetDevice(device_), "the device of x");
}

OnDeviceOf::~OnDeviceOf() {
    if (device_ != before_) cudaSetDevice(before_);
}

std::size_t OnDeviceOf::block_memory() const {
    int size = 0;
    check(cudaDeviceGetAttribute(&size, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_), "the device's attributes");
    return std::size_t(size);
}

Borrowed::Borrowed(std::size_t size, int device, Stream stream) : stream_(stream) {
    if (size == 0) return;
    const cudaMemPool_t pool = pool_of(device);
    pooled_ = pool != nullptr;
    check(pooled_ ? cudaMallocFromPoolAsync(&data_, size, pool, stream) : cudaMalloc(&data_, size),
          "memory for a run");
}

Borrowed::~Borrowed() {
    if (!data_) return;
    if (pooled_)
        cudaFreeAsync(data_, stream_);
    else
        cudaFree(data_);
}

}  // namespace augserve::cuda

#endif
