"""The proof that comes with every file: torch against ONNX Runtime, on real rows, in every mode the file serves."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor, nn

from augserve.errors import ExportError
from augserve.export.conditioning import Conditioning, conditioning
from augserve.manifest import Accuracy, FileMode, ParityCheck, Precision
from augserve.norms import use_statistics
from augserve.runtime import run_rows
from augserve.statistics import Statistics

TOLERANCE = 1e-4  # of a logit,
# or this of the largest logit, where that is more: float32 itself rounds at 1e-7, float16 at 5e-4. What rounding to
# int8 does to a network, only its accuracy tells.
RELATIVE: dict[Precision, float] = {"float32": 5e-6, "float16": 2e-2, "int8": math.inf}
# A row beyond the limit may instead be this many times as far from float64 as torch's own float32 is in that row,
OWN = 3.0
MOST = RELATIVE["float16"]  # up to this part of the largest logit. For float32 files alone.
ACCURACY_LOST = 0.05  # at most, against float32
SIZES = (1, 2, 7, 32)
REPEATS = 3

_LOG = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ParityReport:
    """What was compared and what came of it: `checks` and `accuracy` as in the file's manifest."""

    mode: FileMode
    checks: tuple[ParityCheck, ...]
    accuracy: Accuracy | None = None

    @property
    def max_abs_difference(self) -> float:
        """The largest difference of any logit in any check."""
        return max(check.max_abs_difference for check in self.checks)


@dataclass(frozen=True)
class _Case:
    name: str
    groups: tuple[tuple[int, Statistics], ...]  # rows and statistics of each group

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.groups)


def compare(
    model: nn.Module,
    sessions: Mapping[bool, ort.InferenceSession],
    example: Tensor,
    mode: FileMode,
    min_rows: int,
    precision: Precision = "float32",
) -> ParityReport:
    """Run torch and ONNX Runtime on the same rows.

    Args:
        model: the network, in eval mode, on the CPU.
        sessions: the file that was written from it, opened with (True) and without the native operators.
        example: real rows (N, C, H, W); used in order, again from the first where there are too few.
        mode: of the file.
        min_rows: the fewest rows of a group that has statistics of its own.
        precision: of the file.

    Raises:
        ExportError: a difference above the tolerance that is not torch's own rounding, or repeated runs that
            differ; the check is named.
    """
    checks = [
        check for case in _cases(mode, min_rows) for check in _checks(model, sessions, example, case, precision)
    ]
    return ParityReport(mode, tuple(checks))


def _cases(mode: FileMode, min_rows: int) -> Iterator[_Case]:
    tracked, batch, blend = Statistics("tracked"), Statistics("batch"), Statistics("blend", tracked_weight=0.5)
    served = {"tracked": [tracked], "batch": [batch], "adaptive": [tracked, batch, blend]}[mode]
    for statistics in served:
        for rows in SIZES:
            if statistics.mode == "tracked" or rows >= min_rows:
                yield _Case(f"{statistics.mode}, {rows} rows", ((rows, statistics),))
    if mode == "adaptive":
        mixed = ((7, batch), (1, tracked), (2, blend), (9, batch), (5, tracked), (8, Statistics("blend", prior=16)))
        yield _Case("mixed groups and modes", mixed)


def _checks(
    model: nn.Module,
    sessions: Mapping[bool, ort.InferenceSession],
    example: Tensor,
    case: _Case,
    precision: Precision,
) -> Iterator[ParityCheck]:
    rows = example[torch.arange(case.rows) % len(example)]
    sizes = [size for size, _ in case.groups]
    # Groups interleaved: the rows of a group need not lie together.
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int64)
    weights = np.array([statistics.weight(size) for size, statistics in case.groups], np.float32)

    def answer(network: nn.Module, x: Tensor) -> Tensor:
        statistics = [statistics for _, statistics in case.groups]
        with torch.no_grad(), use_statistics(network, statistics, torch.from_numpy(group)):
            logits: Tensor = network(x)
        return logits

    @functools.cache
    def doubt() -> Conditioning | None:
        return conditioning(model, rows, answer) if precision == "float32" else None

    expected = answer(model, rows).numpy()
    for native, session in sessions.items():
        runs = [run_rows(session, rows.numpy(), group, weights[group]) for _ in range(REPEATS)]
        name = f"{case.name}, {'native' if native else 'standard'} operators"
        _refuse_another_answer(name, expected, runs[0], RELATIVE[precision], doubt)
        if not all(np.array_equal(runs[0], run) for run in runs[1:]):
            raise ExportError(f"parity failed ({name}): repeated runs differ")
        yield ParityCheck(
            name=case.name,
            rows=case.rows,
            native=native,
            max_abs_difference=_largest(runs[0] - expected),
            max_relative_difference=_largest(runs[0] - expected) / max(_largest(expected), 1e-30),
            top1_agreement=float((runs[0].argmax(1) == expected.argmax(1)).mean()),
            repeats_identical=True,
        )


def _refuse_another_answer(
    name: str, expected: Logits, came: Logits, relative: float, doubt: Callable[[], Conditioning | None]
) -> None:
    """Raise ExportError for a row beyond the limit, unless it is as close to float64 as torch's float32 is."""
    limit = max(TOLERANCE, relative * _largest(expected))
    beyond = ~(np.abs(came - expected).max(1) <= limit)
    if not beyond.any():
        return
    message = f"torch and ONNX Runtime differ by {_largest(came - expected):.3g}, more than {limit:.3g}"
    found = doubt() if np.isfinite(came[beyond]).all() else None
    if found is None:
        raise ExportError(f"parity failed ({name}): {message}")
    error, own = found.of(came)[beyond], found.error[beyond]
    excess = error - np.minimum(OWN * own, MOST * _largest(expected))
    worst = int(excess.argmax())
    measured = f"the file is off by {error[worst]:.3g} from float64, torch's own float32 by {own[worst]:.3g}"
    if not excess[worst] <= 0:
        raise ExportError(f"parity failed ({name}): {message}; {measured}")
    _LOG.warning(
        "%s: %s; %s: statistics of so few values amplify rounding; take more rows in a group, or larger images",
        name,
        message,
        measured,
    )


def compare_accuracy(
    session: ort.InferenceSession, float32: ort.InferenceSession, rows: Tensor, labels: Tensor
) -> Accuracy:
    """Count the right answers of a file and of the same network in float32.

    Args:
        session: the file.
        float32: the same network in float32.
        rows: real rows (N, C, H, W) that the network was not trained on.
        labels: int64 (N,), their classes.

    Raises:
        ExportError: the file loses more than ACCURACY_LOST.
    """
    shares = [_accuracy(opened, rows.numpy(), labels.numpy()) for opened in (session, float32)]
    if shares[1] - shares[0] > ACCURACY_LOST:
        raise ExportError(
            f"the file answers {shares[0]:.2%} of the validation rows rightly, the network in float32 "
            f"{shares[1]:.2%}: export as float16 or float32"
        )
    return Accuracy(rows=len(labels), file=shares[0], float32=shares[1])


def _accuracy(session: ort.InferenceSession, rows: Logits, labels: npt.NDArray[np.int64]) -> float:
    parts = np.split(rows, range(max(SIZES), len(rows), max(SIZES)))
    answers = np.concatenate([run_rows(session, part).argmax(1) for part in parts])
    return float((answers == labels).mean())


def _largest(values: npt.NDArray[np.float32]) -> float:
    return float(np.abs(values).max())
