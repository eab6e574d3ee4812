"""Files run without augserve: by plain ONNX Runtime, and by the reference implementation of the ONNX standard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from augserve.export import export_onnx, open_session
from augserve.runtime import run_rows
from tests.export.conftest import KINDS, small_network
from tests.tolerances import PARITY

pytestmark = pytest.mark.slow

GROUP = np.array([0, 3, 2, 1, 0, 2, 2, 3, 0, 1], np.int64)
WEIGHT = np.array([0, 1, 0.4, 0, 0, 0.4, 0.4, 1, 0, 0], np.float32)  # own statistics, tracked ones, a blend

# Nothing but onnxruntime and NumPy: -I keeps the current folder and the environment out, and what the repository's
# own installation adds to sys.path cannot be imported.
PROGRAM = """
import sys
sys.modules["augserve"] = None
import numpy as np
import onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
feed = np.load(sys.argv[2])
np.save(sys.argv[3], session.run(["logits"], {name: feed[name] for name in feed})[0])
assert not [name for name in sys.modules if name.split(".")[0] in ("torch", "onnx") or name.startswith("augserve.")]
"""


def feed_of(mode: str, rows: Tensor) -> dict[str, np.ndarray]:
    feed: dict[str, np.ndarray] = {"input": rows[: len(GROUP)].numpy()}
    if mode == "adaptive":
        feed |= {"group": GROUP, "tracked_weight": WEIGHT}
    return feed


def answer_here(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """What the standard operators answer under augserve."""
    return run_rows(open_session(path, native="off"), feed["input"], feed.get("group"), feed.get("tracked_weight"))


@pytest.mark.parametrize("mode", ["tracked", "adaptive", "batch"])
def test_a_process_without_augserve_gives_the_same_answer(mode: str, rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(small_network(KINDS["aug-1.5"]), path, example=rows, mode=mode)
    feed = feed_of(mode, rows)
    np.savez(tmp_path / "feed.npz", **feed)
    command = [sys.executable, "-I", "-c", PROGRAM, str(path), str(tmp_path / "feed.npz"), str(tmp_path / "y.npy")]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), answer_here(path, feed))


@pytest.mark.parametrize("kind", ["batch", "aug-1.5", "aug-learned", "robust-range"])
def test_tracked_files_under_the_reference_implementation(kind: str, rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(small_network(KINDS[kind]), path, example=rows, mode="tracked")
    feed = feed_of("tracked", rows)
    (answer,) = ReferenceEvaluator(str(path)).run(None, feed)
    np.testing.assert_allclose(answer, answer_here(path, feed), atol=PARITY)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_modes_under_the_reference_implementation(kind: str, rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(small_network(KINDS[kind]), path, example=rows)
    feed = feed_of("adaptive", rows)
    (answer,) = ReferenceEvaluator(str(path)).run(None, feed)
    np.testing.assert_allclose(answer, answer_here(path, feed), atol=PARITY)
    changed = {**feed, "tracked_weight": np.ones_like(WEIGHT)}
    assert np.abs(answer - ReferenceEvaluator(str(path)).run(None, changed)[0]).max() > 0.01


def test_a_tracked_file_is_of_standard_operators_alone(rows: Tensor, tmp_path: Path) -> None:
    """What another runtime has to know: operators of opset 18, one input (N, C, H, W), one output (N, K)."""
    path = tmp_path / "m.onnx"
    export_onnx(small_network(KINDS["aug-1.5"]), path, example=rows, mode="tracked")
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    for node in model.graph.node:
        assert onnx.defs.get_schema(node.op_type, 18).name == node.op_type
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ((given,), (made,)) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("input", "tensor(float)", [3, 8, 8])
    assert (made.name, made.type, made.shape[1:]) == ("logits", "tensor(float)", [4])
    for n in (1, 5):
        assert session.run(None, {"input": torch.zeros(n, 3, 8, 8).numpy()})[0].shape == (n, 4)
