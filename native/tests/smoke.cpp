// The library says which interface it has.
#include "augserve.h"

#include <cstdio>

int main() {
    if (augserve_abi() != AUGSERVE_ABI) {
        std::fprintf(stderr, "expected ABI %d; the library says %d\n", AUGSERVE_ABI, static_cast<int>(augserve_abi()));
        return 1;
    }
    return 0;
}
