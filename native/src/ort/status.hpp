// Errors on their way to the runtime: thrown inside, an OrtStatus outside.
#pragma once

#include <exception>
#include <string>

#include "api.hpp"

namespace augserve::ort {

// An error of ours.
struct Failure {
    std::string text;
    ErrorCode code = INVALID_ARGUMENT;
};

// An error that a function of the runtime returned.
struct Refusal {
    OrtStatus *status;
};

inline void check(OrtStatus *status) {
    if (status) throw Refusal{status};
}

// Calls body() and returns its error, which is told as one of the operator `name`.
template <class Body>
OrtStatus *guarded(const OrtApi &api, const char *name, const Body &body) noexcept {
    const auto failed = [&](ErrorCode code, const char *text) {
        try {
            return api.CreateStatus(code, (std::string("augserve.") + name + ": " + text).c_str());
        } catch (const std::exception &) {  // no memory for the text
            return api.CreateStatus(code, text);
        }
    };
    try {
        body();
        return nullptr;
    } catch (const Refusal &refusal) {
        return refusal.status;
    } catch (const Failure &failure) {
        return failed(failure.code, failure.text.c_str());
    } catch (const std::exception &error) {
        return failed(FAIL, error.what());
    } catch (...) {
        return failed(FAIL, "an unknown error");
    }
}

}  // namespace augserve::ort
