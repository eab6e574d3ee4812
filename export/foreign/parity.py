"""The proof that comes with a converted file, on given or random rows.

    tracked     the file against the original
    norms       what every norm makes of its input, by group and in every mode, against its definition in NumPy
    batch       the file against the network as it was before additions and ReLUs went into its norms
    company     groups in one run against the same groups alone
    NaN, inf    a group of them, which may change no other group's answer by a bit

So each part is compared with something that shares nothing with it. Norms are compared one by one, since rounding
may grow through a network whose statistics come from few values. For the same reason a comparison of outputs that
misses its limit is held against what ONNX Runtime's own optimizations change in the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from augserve.errors import ExportError
from augserve.export.foreign.inputs import Array, Feed, Ports, rows_of, take_rows
from augserve.export.foreign.load import open_plain, show
from augserve.export.foreign.original import Answer, Original
from augserve.export.foreign.reference import normalized
from augserve.export.parity import ParityReport
from augserve.manifest import ParityCheck
from augserve.operators import GROUP, TRACKED_WEIGHT

TRACKED = 1e-5  # of the largest number of an output
ADAPTIVE = 1e-4  # alike: kernels may sum in another order for another number of rows, and norms enlarge rounding
HALF = 2e-2  # instead of both, where some norm takes float16
FLOOR = 5e-7  # of 1: what a sigmoid's own arithmetic leaves in a small number
OWN = 4  # times what ONNX Runtime's optimizations change is allowed as well,
MOST = 1e-2  # up to this part of the largest number
REPEATS = 2
CHANNELS = 6  # of every norm are looked at
GROUPS = np.array([0, 2, 1, 0, 2, 1, 3], np.int64)
FEW = np.array([0, 2, 1, 0], np.int64)  # instead, where a row holds many values: activations fill the memory
MANY_VALUES = 2**19
LAMBDAS = np.array([0.0, 0.5, 0.0, 1.0], np.float32)  # of groups 0 to 3

Vector = npt.NDArray[np.generic]
Own = Callable[[Feed, Vector, Vector], list[float]]


@dataclass(frozen=True)
class Norm:
    """A norm of the adaptive network: its node, channels C, the exponent of its center, its epsilon."""

    node: NodeProto
    features: int
    phi: float
    eps: float


@dataclass(frozen=True)
class Subject:
    """What is proven.

    original: the file as it came. adaptive: the network with its new norms, before anything was fused.
    ports: the inputs, sizes filled in. example: rows to run, again from the first where there are too few.
    min_rows: the fewest rows of a group that has statistics of its own.
    """

    original: Original
    adaptive: ModelProto
    norms: Sequence[Norm]
    ports: Ports
    example: Feed
    min_rows: int

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return [value.name for value in self.adaptive.graph.output]

    @property
    def group(self) -> npt.NDArray[np.int64]:
        """The groups of a run with several, one a row."""
        values = sum(self.example[port.name][:1].size for port in self.ports.inputs if port.has_rows)
        return FEW if values > MANY_VALUES and self.min_rows == 1 else GROUPS

    @property
    def sizes(self) -> list[int]:
        """The numbers of rows of runs with one group."""
        return [1, len(self.group)]

    def rows(self, n: int) -> Feed:
        """Return n rows."""
        return take_rows(self.ports, self.example, np.arange(n) % rows_of(self.ports, self.example))


def prove(subject: Subject, sessions: Mapping[bool, ort.InferenceSession]) -> ParityReport:
    """Compare a converted file with what it was made of.

    Args:
        subject: what it was made of.
        sessions: the file, opened with (True) and without the native operators.

    Raises:
        ExportError: a check that failed, by name.
    """
    looked = _with_norms(subject).SerializeToString()
    alone = open_plain(looked)
    casts = {a.i for node in subject.adaptive.graph.node if node.op_type == "Cast" for a in node.attribute}
    limit = HALF if TensorProto.FLOAT16 in casts or TensorProto.BFLOAT16 in casts else ADAPTIVE

    def own(rows: Feed, group: Vector, weights: Vector) -> list[float]:
        plain = open_plain(looked, optimized=False)
        answers = [_run(session, rows, group, weights, subject.outputs) for session in (alone, plain)]
        return [_difference(a, b) for a, b in zip(*answers, strict=True)]

    checks = [_norms(subject, alone)]
    for native, session in sessions.items():
        checks += _tracked(subject, native, session, TRACKED if limit == ADAPTIVE else limit)
        checks += _batch(subject, native, session, alone, limit, own)
        checks += _company(subject, native, session, limit, own)
    return ParityReport("adaptive", tuple(checks))


def _tracked(subject: Subject, native: bool, session: ort.InferenceSession, limit: float) -> Iterator[ParityCheck]:
    for n in subject.sizes:
        rows = subject.rows(n)
        answers = _repeat(subject, session, rows, np.arange(n), np.ones(n))
        expected = subject.original.run(rows)
        yield _check(f"tracked, {n} rows", native, expected, answers, limit, partial(_own, subject, rows))


def _own(subject: Subject, rows: Feed) -> list[float]:
    """Return what ONNX Runtime's optimizations change in each output of the original."""
    answers = (original.run(rows) for original in (subject.original, subject.original.unoptimized()))
    return [_difference(a, b) for a, b in zip(*answers, strict=True)]


def _batch(
    subject: Subject,
    native: bool,
    session: ort.InferenceSession,
    alone: ort.InferenceSession,
    limit: float,
    own: Own,
) -> Iterator[ParityCheck]:
    for n in sorted({max(size, subject.min_rows) for size in subject.sizes}):
        rows, zeros = subject.rows(n), np.zeros(n)
        expected = _run(alone, rows, zeros, zeros, subject.outputs)
        answers = _repeat(subject, session, rows, zeros, zeros)
        yield _check(f"batch, {n} rows", native, expected, answers, limit, partial(own, rows, zeros, zeros))


def _company(
    subject: Subject, native: bool, session: ort.InferenceSession, limit: float, own: Own
) -> Iterator[ParityCheck]:
    group = subject.group
    rows, weights = subject.rows(len(group)), LAMBDAS[group]
    together = _repeat(subject, session, rows, group, weights)
    apart = [np.empty_like(output) for output in together[0]]
    for g in np.unique(group):
        mine = np.flatnonzero(g == group)
        part = take_rows(subject.ports, rows, mine)
        answer = _run(session, part, np.zeros(len(mine)), weights[mine], subject.outputs)
        for whole, output in zip(apart, answer, strict=True):
            whole[mine] = output
    slack = partial(own, rows, group, weights)
    yield _check("groups as if alone", native, apart, together, limit, slack)
    numbers = [port.name for port in subject.ports.inputs if port.has_rows and port.dtype.kind == "f"]
    if not numbers:
        return
    others = group > 1
    spoiled = {name: array.copy() if name in numbers else array for name, array in rows.items()}
    for name in numbers:
        spoiled[name][group == 0] = np.nan
        spoiled[name][group == 1] = np.inf
    answers = [[output[others] for output in a] for a in _repeat(subject, session, spoiled, group, weights)]
    expected = [output[others] for output in together[0]]
    yield _check("groups beside NaN and inf", native, expected, answers, 0.0, list)


def _with_norms(subject: Subject) -> ModelProto:
    """Return the adaptive network with more outputs: y, x and the parameters of each norm, in some channels."""
    looked = ModelProto()
    looked.CopyFrom(subject.adaptive)
    graph = looked.graph
    for k, norm in enumerate(subject.norms):
        channels = np.unique(np.linspace(0, norm.features - 1, CHANNELS).astype(np.int64))
        graph.initializer.append(numpy_helper.from_array(channels, f"augserve.{k}.channels"))
        for j, source in enumerate((norm.node.output[0], *norm.node.input[:5])):
            made, axis = f"augserve.{k}.{j}", 1 if j < 2 else 0
            graph.node.append(helper.make_node("Gather", [source, f"augserve.{k}.channels"], [made], axis=axis))
            graph.output.append(ValueInfoProto(name=made))
    return looked


def _norms(subject: Subject, alone: ort.InferenceSession) -> ParityCheck:
    """Compare what every norm made of its input with the definition."""
    name = "norms against definition"
    outputs = [f"augserve.{k}.{j}" for k in range(len(subject.norms)) for j in range(6)]
    group = subject.group
    rows, weights = subject.rows(len(group)), LAMBDAS[group]
    answers = [_run(alone, rows, group, weights, outputs) for _ in range(REPEATS)]
    worst = relative = 0.0
    for k, norm in enumerate(subject.norms):
        y, x, *parameters = answers[0][6 * k : 6 * k + 6]
        given = dict(
            zip(("weight", "bias", "mean", "var"), (p.astype(np.float64) for p in parameters), strict=True)
        )
        expected, allowed = normalized(x, given, group, weights, norm.phi, norm.eps)
        difference = np.abs(y.astype(np.float64) - expected)
        if not (difference <= allowed).all():
            raise ExportError(
                f"parity failed ({name}): {show(norm.node)} differs by {difference.max():.3g}; nothing was written"
            )
        worst = max(worst, float(difference.max(initial=0.0)))
        relative = max(relative, float(difference.max(initial=0.0) / np.abs(expected).max(initial=1e-30)))
    return ParityCheck(
        name=name,
        rows=len(group),
        max_abs_difference=worst,
        max_relative_difference=relative,
        top1_agreement=1.0,
        repeats_identical=_identical(name, answers),
    )


def _check(
    name: str, native: bool, expected: Answer, answers: list[Answer], limit: float, own: Callable[[], list[float]]
) -> ParityCheck:
    """Compare outputs; `limit` is a fraction of the largest number of each, or 0 for every bit.

    `own` tells for each output what ONNX Runtime's optimizations change.
    """
    differences = [_difference(ours, theirs) for ours, theirs in zip(answers[0], expected, strict=True)]
    sizes = [float(np.abs(t[np.isfinite(t)].astype(np.float64)).max(initial=0.0)) for t in expected]
    allowed = [max(limit * size, FLOOR) if limit else 0.0 for size in sizes]
    if limit and not all(d <= a for d, a in zip(differences, allowed, strict=True)):
        allowed = [max(a, min(OWN * o, MOST * s)) for a, o, s in zip(allowed, own(), sizes, strict=True)]
    for difference, most in zip(differences, allowed, strict=True):
        if not difference <= most:  # also catches NaN
            raise ExportError(
                f"parity failed ({name}, {'native' if native else 'standard'} operators): a difference of "
                f"{difference:.3g}, more than {most:.3g}; nothing was written"
            )
    return ParityCheck(
        name=name,
        rows=len(expected[0]),
        native=native,
        max_abs_difference=max(differences),
        max_relative_difference=max(d / s if d and s else d for d, s in zip(differences, sizes, strict=True)),
        top1_agreement=_agreement(answers[0], expected),
        repeats_identical=_identical(name, answers),
    )


def _identical(name: str, answers: list[Answer]) -> bool:
    for answer in answers[1:]:
        for first, again in zip(answers[0], answer, strict=True):
            if not np.array_equal(first, again, equal_nan=first.dtype.kind == "f"):
                raise ExportError(f"parity failed ({name}): repeated runs differ; nothing was written")
    return True


def _run(
    session: ort.InferenceSession, feed: Feed, group: npt.ArrayLike, weights: npt.ArrayLike, outputs: Sequence[str]
) -> Answer:
    given = feed | {GROUP: np.asarray(group, np.int64), TRACKED_WEIGHT: np.asarray(weights, np.float32)}
    try:
        return list(session.run(list(outputs), given))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"the converted network does not run: {reason}") from None


def _repeat(
    subject: Subject, session: ort.InferenceSession, feed: Feed, group: npt.ArrayLike, weights: npt.ArrayLike
) -> list[Answer]:
    return [_run(session, feed, group, weights, subject.outputs) for _ in range(REPEATS)]


def _difference(ours: Array, theirs: Array) -> float:
    """Return the largest difference; equal infinities and NaN at the same places are none."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("nan")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0.0, np.abs(a - b)).max(initial=0.0))


def _agreement(ours: Answer, theirs: Answer) -> float:
    """Return the fraction of rows whose largest number stands at the same place, in the first output."""
    a, b = (answer[0].reshape(len(answer[0]), -1) for answer in (ours, theirs))
    return float((a.argmax(1) == b.argmax(1)).mean()) if a.size else 1.0
