"""What a model must show before it serves: it answers, and groups of a run do not see each other.

An adaptive file is asked the same rows with different strangers in the other groups, and with NaN in one of them:
the answer must be the same to the bit, or the promise that every request is answered as if alone would be empty.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from augserve.errors import ModelFileError
from augserve.manifest import Manifest
from augserve.runtime import rows_with_own_statistics
from augserve.service.model.graph import Form

FOLDED_RTOL = 1e-3  # of the largest logit: float32 rounds some 100 times in a network

Array = npt.NDArray[np.float32]


def check_answers(form: Form, manifest: Manifest) -> None:
    """See that rows of zeros get one finite logit a class.

    Raises:
        ModelFileError: the model fails, or answers something else.
    """
    n = 1 if "tracked" in manifest.modes else rows_with_own_statistics(manifest)
    zeros = np.zeros((n, *manifest.shape), np.float32)
    logits = _run(form, zeros, np.zeros(n, np.int64), np.ones(n, np.float32), "a row of zeros")
    classes = len(manifest.classes)
    if logits.shape != (n, classes) or not np.isfinite(logits).all():
        came = f"logits of shape {logits.shape}" if logits.shape != (n, classes) else "NaN or inf"
        raise ModelFileError(
            f"fails its self-check on zeros: expected {classes} finite logits a row; got {came}; "
            "export the file again"
        )


def check_isolation(form: Form, manifest: Manifest) -> None:
    """See that what is in other groups changes no bit of a group's answer, in any mode.

    Raises:
        ModelFileError: it does.
    """
    size = max(2, rows_with_own_statistics(manifest))
    weights = np.repeat(np.asarray([0.0, 1.0, 0.5, 0.0], np.float32), size)
    ids = np.repeat(np.arange(4), size)
    random = np.random.default_rng(0)
    rows = random.normal(size=(4 * size, *manifest.shape)).astype(np.float32)
    answers = _run(form, rows, ids, weights, "random rows")
    for stranger in (3, 0):  # the last rows, and the first: their numbers are those of groups, too
        theirs = ids == stranger
        strange = rows.copy()
        strange[theirs] = random.normal(size=strange[theirs].shape)
        damaged = rows.copy()
        damaged[theirs] = np.nan
        for others, what in ((strange, "other rows"), (damaged, "NaN")):
            changed = _run(form, others, ids, weights, f"groups beside {what}")
            if answers[~theirs].tobytes() != changed[~theirs].tobytes():
                raise ModelFileError(
                    f"fails its self-check: {what} in one statistics group changed the answer of another; "
                    "this graph does not keep groups apart: export the file again"
                )


def agree(tracked: Form, adaptive: Form, manifest: Manifest) -> bool:
    """Whether the folded form answers tracked rows as the adaptive one does."""
    rows = np.random.default_rng(0).normal(size=(2, *manifest.shape)).astype(np.float32)
    ids, weights = np.zeros(2, np.int64), np.ones(2, np.float32)
    folded, written = tracked.run(rows, ids, weights), adaptive.run(rows, ids, weights)
    return folded.shape == written.shape and bool(
        np.abs(folded - written).max() <= FOLDED_RTOL * max(1.0, float(np.abs(written).max()))
    )


def same_bits(form: Form, manifest: Manifest) -> bool:
    """Whether a run beside others gives the bits that it gives alone, for a single row and groups of every mode."""
    random = np.random.default_rng(0)
    for n in (1, 8):
        rows = random.normal(size=(n, *manifest.shape)).astype(np.float32)
        ids = np.arange(n) * 4 // n
        weights = np.asarray([1.0, 0.0, 0.5, 0.0], np.float32)[ids]
        alone, beside = (form.run(rows, ids, weights, alone=alone) for alone in (True, False))
        if alone.tobytes() != beside.tobytes():
            return False
    return True


def _run(form: Form, rows: Array, ids: npt.NDArray[np.int64], weights: Array, what: str) -> Array:
    try:
        return form.run(rows, ids, weights)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelFileError(f"fails its self-check on {what} ({reason})") from None
