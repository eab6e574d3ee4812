// Memory of the device that a run borrows, in the order of its stream: it may be handed back while kernels still wait
// for their turn.
#pragma once

#include <cstddef>

#include "../portable.cuh"

namespace augserve::cuda {

// Makes the device that holds `data` the current one, and the one before it again at the end.
class OnDeviceOf {
public:
    explicit OnDeviceOf(const void *data);
    ~OnDeviceOf();
    OnDeviceOf(const OnDeviceOf &) = delete;

    int device() const { return device_; }
    std::size_t block_memory() const;  // bytes that a block can have

private:
    int device_, before_;
};

// `size` bytes of the current device; none where size is 0.
class Borrowed {
public:
    Borrowed(std::size_t size, int device, Stream stream);
    ~Borrowed();
    Borrowed(const Borrowed &) = delete;

    void *data() const { return data_; }

private:
    void *data_ = nullptr;
    Stream stream_;
    bool pooled_ = false;
};

}  // namespace augserve::cuda
