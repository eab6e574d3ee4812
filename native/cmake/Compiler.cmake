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

check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
    unset(CMAKE_CXX_COMPILER CACHE) # so that the next run sees a compiler that was installed meanwhile
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
