// What a test program does with a failure: print it with the case at hand, count it, go on; the count is its result.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>

namespace check {

constexpr int MOST_PRINTED = 40;

inline int &failures() {
    static int count = 0;
    return count;
}

// What is being tested, printed with each failure.
inline std::string &where() {
    static std::string text;
    return text;
}

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
inline bool expect(bool holds, const char *format, ...) {
    if (holds) return true;
    if (failures()++ < MOST_PRINTED) {
        std::fprintf(stderr, "FAILED [%s] ", where().c_str());
        va_list arguments;
        va_start(arguments, format);
        std::vfprintf(stderr, format, arguments);
        va_end(arguments);
        std::fputc('\n', stderr);
    }
    return false;
}

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
inline std::string text(const char *format, ...) {
    char line[600];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

inline int result() {
    if (failures()) std::fprintf(stderr, "%d failures\n", failures());
    return failures() ? 1 : 0;
}

}  // namespace check
