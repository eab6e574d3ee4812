# Is there a C++17 compiler that works? Sets AUGSERVE_COMPILER, or AUGSERVE_NO_COMPILER to the reason why not.
#
# The languages of project() fail where a compiler is missing or broken; check_language tries in a project of its own.
include(CheckLanguage)

set(AUGSERVE_COMPILER FALSE)
if(AUGSERVE_BUILD STREQUAL "OFF")
    set(AUGSERVE_NO_COMPILER "AUGSERVE_BUILD=OFF asks for none")
    return()
endif()

# scikit-build-core sets CXX to the compiler that Python was built with, which need not be here.
set(named "$ENV{CXX}")
if(named)
    get_filename_component(program "${named}" PROGRAM)
    if(NOT program)
        message(STATUS "CXX=${named} is not here; looking for another C++ compiler")
        unset(ENV{CXX})
    endif()
endif()

if(NOT DEFINED CMAKE_CXX_COMPILER)
    check_language(CXX)
    set(works "${CMAKE_CXX_COMPILER}")
    # Not kept: the next run may find a compiler that was installed meanwhile, and of CXX="ccache g++" it is half.
    unset(CMAKE_CXX_COMPILER CACHE)
    unset(CMAKE_CXX_COMPILER)
else()
    set(works TRUE) # named by -DCMAKE_CXX_COMPILER, or found by a run before
endif()
if(NOT works)
    set(AUGSERVE_NO_COMPILER "there is no C++ compiler that works")
    if(named)
        string(APPEND AUGSERVE_NO_COMPILER " (CXX=${named})")
    endif()
    return()
endif()

enable_language(CXX)
if(NOT cxx_std_17 IN_LIST CMAKE_CXX_COMPILE_FEATURES)
    set(AUGSERVE_NO_COMPILER "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} knows no C++17")
    return()
endif()
set(AUGSERVE_COMPILER TRUE)
