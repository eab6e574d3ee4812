// What a node reads of the runtime: its attributes when it is made, its tensors in a run.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "operators.hpp"
#include "status.hpp"

namespace augserve::ort {

class Attributes {
public:
    Attributes(const OrtApi &api, const OrtKernelInfo *info) : api_(api), info_(info) {}

    double number(const char *name) const {
        float value = 0;
        found(name, "a float", api_.KernelInfoGetAttribute_float(info_, name, &value));
        return double(value);
    }

    std::int64_t whole(const char *name) const {
        std::int64_t value = 0;
        found(name, "an int", api_.KernelInfoGetAttribute_int64(info_, name, &value));
        return value;
    }

private:
    void found(const char *name, const char *what, OrtStatus *status) const {
        if (!status) return;
        api_.ReleaseStatus(status);
        throw Failure{std::string("the node has no attribute ") + name + ", " + what};
    }

    const OrtApi &api_;
    const OrtKernelInfo *info_;
};

// The tensors of a run. x is (rows, channels, positions..).
class Tensors {
public:
    Tensors(const CustomOp &op, const OrtApi &api, OrtKernelContext *context) : op_(op), api_(api), context_(context) {
        shape_ = shape(X);
        if (shape_.size() < 2)
            throw Failure{"x has " + std::to_string(shape_.size()) + " dimensions; expected (N, C, ...)"};
        rows = shape_[0];
        channels = shape_[1];
        for (std::size_t k = 2; k < shape_.size(); k++) positions *= shape_[k];
    }

    bool empty() const { return rows == 0 || channels == 0 || positions == 0; }

    const void *x() const { return data(value(X)); }

    // Of the shape of x; made by the call.
    void *y() const {
        OrtValue *made = nullptr;
        check(api_.KernelContext_GetOutput(context_, 0, shape_.data(), shape_.size(), &made));
        return data(made);
    }

    // Of the shape of x, or nullptr where the operator has none.
    const void *residual() const {
        if (!op_.ending->residual) return nullptr;
        if (shape(op_.residual()) != shape_) throw Failure{"residual has another shape than x"};
        return data(value(op_.residual()));
    }

    // One for each channel, or nullptr where the operator has none.
    const float *exponents() const { return op_.which->learned ? vector<float>(EXPONENTS, channels) : nullptr; }

    template <class Value>
    const Value *vector(std::size_t index, std::int64_t size) const {
        const std::vector<std::int64_t> found = shape(index);
        if (found.size() != 1 || found[0] != size)
            throw Failure{std::string(name_of(index)) + " has " +
                          (found.size() == 1 ? std::to_string(found[0]) + " values" : "another shape") +
                          "; expected one dimension of " + std::to_string(size)};
        return static_cast<const Value *>(data(value(index)));
    }

    std::int64_t rows = 0, channels = 0, positions = 1;

private:
    const char *name_of(std::size_t index) const {
        constexpr const char *names[EXPONENTS] = {"x", "weight", "bias", "running_mean", "running_spread",
                                                  "group", "tracked_weight"};
        if (index < EXPONENTS) return names[index];
        return index == op_.residual() ? "residual" : "exponents";
    }

    const OrtValue *value(std::size_t index) const {
        const OrtValue *found = nullptr;
        check(api_.KernelContext_GetInput(context_, index, &found));
        if (!found) throw Failure{std::string("the node has no input ") + name_of(index)};
        return found;
    }

    std::vector<std::int64_t> shape(std::size_t index) const {
        OrtTensorTypeAndShapeInfo *info = nullptr;
        check(api_.GetTensorTypeAndShape(value(index), &info));
        const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api_.ReleaseTensorTypeAndShapeInfo)> owner(
            info, api_.ReleaseTensorTypeAndShapeInfo);
        std::size_t rank = 0;
        check(api_.GetDimensionsCount(info, &rank));
        std::vector<std::int64_t> sizes(rank);
        check(api_.GetDimensions(info, sizes.data(), rank));
        return sizes;
    }

    void *data(const OrtValue *tensor) const {
        void *found = nullptr;
        check(api_.GetTensorMutableData(const_cast<OrtValue *>(tensor), &found));
        return found;
    }

    const CustomOp &op_;
    const OrtApi &api_;
    OrtKernelContext *context_;
    std::vector<std::int64_t> shape_;
};

}  // namespace augserve::ort
