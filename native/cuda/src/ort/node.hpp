// See node.cu.
#pragma once

#include "operators.hpp"

namespace augserve::cuda {

OrtStatus *AUGSERVE_ORT_CALL create_node(const OrtCustomOp *self, const OrtApi *api, const OrtKernelInfo *info,
                                         void **node);
OrtStatus *AUGSERVE_ORT_CALL run_node(void *node, OrtKernelContext *context);
void AUGSERVE_ORT_CALL destroy_node(void *node);

}  // namespace augserve::cuda
