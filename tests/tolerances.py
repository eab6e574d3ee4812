"""Every tolerance of the suite, keyed by operation and dtype, each with its reason."""

from __future__ import annotations

import torch

# Error of the generalized median in standard deviations, against bisection in float64. The bracket is 1e-6 wide;
# in float32 the data themselves are rounded at 6e-8 of their size.
MEDIAN = {torch.float64: 1e-6, torch.float32: 2e-4}

# AugNorm with phi = 2 against torch.nn.BatchNorm: another order of summation.
BATCH_EQUIVALENCE = {torch.float64: 1e-12, torch.float32: 1e-5}

# Golden numbers of published code in float64 and float32: rounding only.
GOLDEN = {torch.float64: 1e-10, torch.float32: 1e-4}

# A blend computed by torch against the same formula in float64 NumPy, float32 data of size 1.
BLEND = 1e-5

# Logits of torch against ONNX Runtime in float32, and of a group against that group run alone.
PARITY = 1e-4
GROUP_ALONE = 1e-5

# float16 and bfloat16 data of size 5 against float32: their own rounding, 2^-9 of it at worst, and that of weights.
HALF = 0.05

# A compiled or exported layer against the eager one, float32: sums in another order, whose gradients nearly cancel.
COMPILED = {"atol": 2e-4, "rtol": 1e-4}

# Statistics over several processes against one process on the whole batch, in the size of the largest number: other
# orders of summation; the median's brackets are 1e-12 (1e-5 in float32) of a standard deviation wide, and Newton's
# last estimate is closer than that.
PROCESSES = {torch.float64: 1e-9, torch.float32: 1e-5}

# Statistics over a data set in float64 of layer inputs in float32, which depend on how the rows were cut.
CALIBRATED = {"atol": 1e-5, "rtol": 1e-5}

# A native or Triton kernel in float32 against the same formula in float64, in the size of the largest number: the
# median's bracket is 1e-5 of a standard deviation wide, the rest is rounding.
KERNEL = 2e-5

# Their gradients, at the same median.
GRADIENT = 1e-4
