"""Rows in, logits out: what a session is fed, and what is made of its answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from augserve.errors import InputError
from augserve.manifest import Manifest
from augserve.operators import GROUP, STEERING, TRACKED_WEIGHT


def run_rows(
    session: ort.InferenceSession,
    rows: npt.NDArray[np.float32],
    group: npt.NDArray[np.int64] | None = None,
    tracked_weight: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Run rows through the session.

    Args:
        session: an open augserve file.
        rows: float32 (N, C, H, W), preprocessed.
        group: int64 (N,), ids 0..G-1; left out: one group. Adaptive files only.
        tracked_weight: float32 (N,), lambda of each row's group; left out: 1 (tracked). Adaptive files only.

    Returns:
        The logits, float32 (N, K).
    """
    n = len(rows)
    names = [node.name for node in session.get_inputs()]
    own = [name for name in names if name not in STEERING]
    if len(own) != 1:
        raise InputError(f"expected a file with one input; this one takes {', '.join(own)}: call the session's run")
    feed: dict[str, npt.NDArray[np.generic]] = {own[0]: rows}
    if GROUP in names:
        feed[GROUP] = np.zeros(n, np.int64) if group is None else group
        feed[TRACKED_WEIGHT] = np.ones(n, np.float32) if tracked_weight is None else tracked_weight
    logits: npt.NDArray[np.float32] = session.run([session.get_outputs()[0].name], feed)[0]
    return logits


def check_rows(rows: npt.ArrayLike, manifest: Manifest) -> npt.NDArray[np.float32]:
    """Return rows as contiguous float32 (N, C, H, W) of the manifest's shape.

    Raises:
        InputError: another shape, values that are not numbers, or NaN or inf.
    """
    try:
        array = np.asarray(rows)
    except ValueError:
        expected = _expected(manifest)
        raise InputError(f"expected rows of equal shape {expected}; got rows of different shapes") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"expected rows of numbers, shape {_expected(manifest)}; got values of type {array.dtype}")
    if list(array.shape[1:]) not in manifest.shapes:
        came = "(" + ", ".join(str(size) for size in array.shape) + ")"
        raise InputError(f"expected rows of shape {_expected(manifest)}; got {came}")
    if len(array) == 0:
        raise InputError("expected at least 1 row; got none")
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    finite = np.isfinite(array)
    if not finite.all():
        first = int(np.argmin(finite.all(axis=tuple(range(1, array.ndim)))))
        raise InputError(f"expected finite float32 numbers; row {first} holds NaN or inf")
    return array


def _expected(manifest: Manifest) -> str:
    return " or ".join("(N, " + ", ".join(map(str, shape)) + ")" for shape in manifest.shapes)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return exp(z_k) / sum_j exp(z_j) by row, float64 (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    result: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def rows_with_own_statistics(manifest: Manifest) -> int:
    """Return the fewest rows of a group with statistics of its own: 1, or 2 where some layer has L = 1."""
    return 2 if manifest.min_positions == 1 else 1
