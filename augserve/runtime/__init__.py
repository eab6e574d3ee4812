"""An augserve file in ONNX Runtime: opened, checked, and run. No torch; onnx only when a file is folded."""

from augserve.runtime.kernels import Kernels, Native
from augserve.runtime.rows import check_rows, rows_with_own_statistics, run_rows, softmax
from augserve.runtime.session import (
    DEFAULT_PROVIDERS,
    kernels_of,
    open_session,
    open_tracked_session,
    read_manifest,
)

__all__ = [
    "DEFAULT_PROVIDERS",
    "Kernels",
    "Native",
    "check_rows",
    "kernels_of",
    "open_session",
    "open_tracked_session",
    "read_manifest",
    "rows_with_own_statistics",
    "run_rows",
    "softmax",
]
