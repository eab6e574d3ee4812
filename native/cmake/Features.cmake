# Flags as this compiler has them. Each is a list that is empty where it does not apply:
#
#   AUGSERVE_WARNINGS        warnings
#   AUGSERVE_PRECISE         arithmetic as written
#   AUGSERVE_FAST            for the files that may reorder sums
#   AUGSERVE_SIMD            `#pragma omp simd` without the OpenMP runtime
#   AUGSERVE_LOCAL_CALLS     calls inside the library cannot be replaced from outside
#   AUGSERVE_STATIC_RUNTIME  the C++ runtime inside the library: hosts may have an older one
#   AUGSERVE_NO_FAST_LINK    undoes a -ffast-math in CXXFLAGS: at link time it would switch denormals off for the
#                            whole process that loads the library
#   AUGSERVE_CAN_CLONE       target_clones works
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

function(augserve_flags result)
    set(accepted "")
    foreach(flag IN LISTS ARGN)
        string(MAKE_C_IDENTIFIER "AUGSERVE_HAS${flag}" known)
        check_cxx_compiler_flag("${flag}" ${known})
        if(${known})
            list(APPEND accepted "${flag}")
        endif()
    endforeach()
    set(${result} "${accepted}" PARENT_SCOPE)
endfunction()

set(AUGSERVE_FAST "")
set(AUGSERVE_STATIC_RUNTIME "")
set(AUGSERVE_NO_FAST_LINK "")
set(AUGSERVE_CAN_CLONE FALSE)

if(MSVC)
    set(AUGSERVE_WARNINGS /W4)
    set(AUGSERVE_PRECISE /fp:precise)
    augserve_flags(AUGSERVE_SIMD -openmp:experimental)
    if(AUGSERVE_WERROR)
        list(APPEND AUGSERVE_WARNINGS /WX)
    endif()
    if(NOT AUGSERVE_SANITIZE)
        set(AUGSERVE_FAST /fp:fast)
    endif()
    return()
endif()

set(AUGSERVE_WARNINGS -Wall -Wextra)
if(AUGSERVE_WERROR)
    list(APPEND AUGSERVE_WARNINGS -Werror)
endif()
set(AUGSERVE_PRECISE -fno-fast-math)
# Copies of a few values are loops on purpose: a call of memcpy, which compilers would make of them, takes longer.
augserve_flags(AUGSERVE_SIMD -fopenmp-simd -fno-tree-loop-distribute-patterns)
augserve_flags(AUGSERVE_LOCAL_CALLS -fno-semantic-interposition -fvisibility-inlines-hidden)

if(AUGSERVE_SANITIZE)
    # Everything, the tests too, is compiled and linked with them.
    set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
    add_compile_options(${sanitizers})
    add_link_options(${sanitizers})
    return()
endif()

augserve_flags(AUGSERVE_FAST -ffast-math -mprefer-vector-width=512)
set(AUGSERVE_NO_FAST_LINK -fno-fast-math)

# Not everywhere is there a static libstdc++ to link (Fedora: libstdc++-static); macOS has one C++ runtime for all.
if(NOT APPLE)
    set(CMAKE_REQUIRED_LINK_OPTIONS -static-libstdc++ -static-libgcc)
    check_cxx_source_compiles("#include <string>\nint main(int, char **v) { return std::string(v[0]).empty(); }"
                              AUGSERVE_HAS_STATIC_RUNTIME)
    if(AUGSERVE_HAS_STATIC_RUNTIME)
        set(AUGSERVE_STATIC_RUNTIME ${CMAKE_REQUIRED_LINK_OPTIONS})
    endif()
    unset(CMAKE_REQUIRED_LINK_OPTIONS)
endif()

# Asked for with the names that the kernels use. It needs ifunc, which ELF with glibc has and musl has not.
if(AUGSERVE_CLONES AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT APPLE AND NOT WIN32)
    check_cxx_source_compiles([[
        __attribute__((target_clones("avx512f", "avx2", "default"))) int twice(int n) { return 2 * n; }
        int main(int n, char **) { return twice(n); }]] AUGSERVE_HAS_CLONES)
    if(AUGSERVE_HAS_CLONES AND NOT (CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 9))
        set(AUGSERVE_CAN_CLONE TRUE)
    endif()
endif()
