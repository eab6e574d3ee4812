// A placeholder until the kernels are here: only what says which library this is.
#include "augserve.h"

extern "C" {

int64_t augserve_abi(void) { return AUGSERVE_ABI; }

const char *augserve_message(int) { return "this library is a placeholder without kernels"; }

const char *augserve_instruction_set(void) { return "baseline"; }
}
