"""Conversion of files that others wrote: every mode against an interpretation of the original; groups; names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto
from sklearn.datasets import load_digits

from augserve.export.foreign.convert import convert_onnx
from augserve.runtime import open_session, read_manifest
from tests.export.foreign import files
from tests.export.foreign.files import Feed, close, expected, write
from tests.tolerances import GROUP_ALONE

pytestmark = pytest.mark.slow

NORMS = {"batch": ("batch", 2.0), "aug": ("aug", 1.5), "median": ("aug", 1.0)}
SOURCES: dict[str, Callable[[Path], ModelProto]] = {
    "torch, TorchScript, opset 11": lambda path: files.from_torch(path, 11, dynamo=False),
    "torch, TorchScript, opset 17": lambda path: files.from_torch(path, 17, dynamo=False),
    "torch, dynamo, opset 20": lambda path: files.from_torch(path, 20, dynamo=True),
    **{name: lambda path, make=make: write(path, make()) for name, make in files.FOREIGN.items()},
}
GROUP = np.array([0, 2, 1, 1, 0, 2, 0, 2, 3], np.int64)
WEIGHTS = np.array([0.0, 0.0, 0.4, 1.0], np.float32)[GROUP]


class Converted(NamedTuple):
    """A file that was converted, with the original and rows for it."""

    name: str
    original: ModelProto
    path: Path
    source: Path
    rows: Feed
    options: Feed


def some_rows(model: ModelProto, count: int) -> tuple[Feed, Feed]:
    """Return rows for a file's inputs, and its options: digits where they are images, numbers elsewhere."""
    generator = np.random.default_rng(5)
    known = {tensor.name for tensor in model.graph.initializer}
    rows, options = {}, {}
    for value in model.graph.input:
        sizes = [dim.dim_value if dim.dim_value > 0 else 8 for dim in value.type.tensor_type.shape.dim]
        if value.name in known:
            continue
        if value.name in ("temperature", "weights"):
            options[value.name] = generator.uniform(0.5, 2, sizes).astype(np.float32)
        elif value.type.tensor_type.elem_type == TensorProto.INT64:
            rows[value.name] = generator.integers(0, 100, [count, *sizes[1:]])
        elif sizes[1:] in ([3, 8, 8], [8, 8, 3]):
            digits = (load_digits().images[: 3 * count] / 8 - 1).reshape(count, 3, 8, 8)
            rows[value.name] = (digits if sizes[1] == 3 else digits.transpose(0, 2, 3, 1)).astype(np.float32)
        else:
            rows[value.name] = (generator.normal(size=[count, *sizes[1:]]) * 2 + 1).astype(np.float32)
    return rows, options


PAIRS = [
    *((name, "batch") for name in SOURCES),
    *((name, "aug") for name in ("torch, TorchScript, opset 17", "paddle", "old", "tokens")),
    *((name, "median") for name in ("tensorflow", "shuffled")),
]


@pytest.fixture(scope="module", params=PAIRS, ids=" ".join)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    name, norm = request.param
    kind, phi = NORMS[norm]
    path = tmp_path_factory.mktemp("foreign") / f"{files.slug(name)}.onnx"
    original, target = SOURCES[name](path), path.with_name("out.onnx")
    convert_onnx(path, target, norm=kind, phi=phi)
    rows, options = some_rows(original, len(GROUP))
    return Converted(norm, original, target, path, rows, options)


def run(session: ort.InferenceSession, file: Converted, rows: Feed, group: np.ndarray, weights: np.ndarray) -> list:
    return session.run(None, rows | file.options | {"group": group, "tracked_weight": weights})


def interpret(file: Converted, rows: Feed, weight: float) -> list:
    kind, phi = NORMS[file.name]
    return expected(file.original, rows | file.options, kind=kind, phi=phi, tracked_weight=weight)


def take(rows: Feed, mine: np.ndarray) -> Feed:
    return {name: values[mine] for name, values in rows.items()}


def test_every_mode_answers_as_the_original_interpreted(converted: Converted) -> None:
    session = open_session(converted.path)
    n = (
        1 if converted.source.stem == "shuffled" else 3
    )  # as many as the Reshape nodes of some files are written for
    rows = take(converted.rows, np.arange(n))
    answers = []
    for weight in (0.0, 0.4, 1.0):
        group, weights = np.zeros(n, np.int64), np.full(n, weight, np.float32)
        answers.append(run(session, converted, rows, group, weights))
        close(answers[-1], interpret(converted, rows, weight), 1e-5)
    assert any(np.abs(a - b).max() > 1e-3 * np.abs(b).max() for a, b in zip(answers[0], answers[2], strict=True))


def test_tracked_rows_answer_as_the_original_run(converted: Converted) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    original = ModelProto()
    original.CopyFrom(converted.original)
    for node in original.graph.node:  # ONNX Runtime does not take spatial=1 in opset 9
        kept = [attribute for attribute in node.attribute if attribute.name != "spatial"]
        del node.attribute[:]
        node.attribute.extend(kept)
    theirs = ort.InferenceSession(original.SerializeToString(), options, providers=["CPUExecutionProvider"])
    size = theirs.get_inputs()[0].shape[0]
    size = size if isinstance(size, int) and size > 0 else len(GROUP)
    rows = take(converted.rows, np.arange(len(GROUP) // size * size))
    n = len(next(iter(rows.values())))
    parts = [theirs.run(None, take(rows, np.arange(k, k + size)) | converted.options) for k in range(0, n, size)]
    wanted = [np.concatenate(part) for part in zip(*parts, strict=True)]
    ours = run(open_session(converted.path), converted, rows, np.zeros(n, np.int64), np.ones(n, np.float32))
    close(ours, wanted, 1e-5)


def test_groups_answer_as_if_alone_and_confine_what_is_not_finite(converted: Converted) -> None:
    session = open_session(converted.path)
    together = run(session, converted, converted.rows, GROUP, WEIGHTS)
    for g in np.unique(GROUP):
        mine = g == GROUP
        alone = run(session, converted, take(converted.rows, mine), np.zeros(mine.sum(), np.int64), WEIGHTS[mine])
        close([answer[mine] for answer in together], alone, GROUP_ALONE)
    numbers = [name for name, values in converted.rows.items() if values.dtype.kind == "f"]
    for bad in (np.nan, np.inf, np.float32(3e38)):
        spoiled = {name: values.copy() for name, values in converted.rows.items()}
        for name in numbers:
            spoiled[name][GROUP == 1] = bad
        for before, after in zip(together, run(session, converted, spoiled, GROUP, WEIGHTS), strict=True):
            assert np.array_equal(before[GROUP != 1], after[GROUP != 1])


def test_the_file_says_what_it_is_and_keeps_its_names(converted: Converted) -> None:
    session = open_session(converted.path)
    manifest = read_manifest(session)
    theirs = [v for v in converted.original.graph.input if v.name in converted.rows | converted.options]
    assert [spec.name for spec in manifest.inputs] == [value.name for value in theirs]
    assert [node.name for node in session.get_inputs()] == [*(v.name for v in theirs), "group", "tracked_weight"]
    assert [n.name for n in session.get_outputs()] == [v.name for v in converted.original.graph.output]
    assert {spec.name for spec in manifest.inputs if not spec.rows} == set(converted.options)
    assert (manifest.mode, manifest.source.file) == ("adaptive", converted.source.name)
    assert manifest.source.sha256 == hashlib.sha256(converted.source.read_bytes()).hexdigest()
    norms = files.nodes_of(converted.original, "BatchNormalization")
    assert [layer.name for layer in manifest.norms] == [node.name or node.output[0] for node in norms]
    kind = {"batch": "BatchNorm", "aug": "AugNorm", "median": "MedianNorm"}[converted.name]
    assert {layer.options["operator"] for layer in manifest.norms} == {kind}
    assert {check.native for check in manifest.parity} >= {False}
    assert all(check.repeats_identical for check in manifest.parity)
    onnx.checker.check_model(onnx.load(converted.path))
