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
