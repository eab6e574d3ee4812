"""torch.onnx.export by itself: what the networks' own operations mean, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from augserve.norms import ConvNorm2d, StatisticsNorm, library, set_statistics
from augserve.statistics import Statistics
from tests.export.conftest import KINDS


def network(norm: Callable[[int], StatisticsNorm]) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(ConvNorm2d(3, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    for _ in range(3):
        made(torch.randn(8, 3, 8, 8) + 1)
    return made.eval()


def export(model: nn.Module, path: Path) -> None:
    rows = ({0: torch.export.Dim("N")},)
    program = torch.onnx.export(model, (torch.randn(3, 3, 8, 8),), dynamo=True, dynamic_shapes=rows, verbose=False)
    assert program is not None
    program.save(path)


@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.parametrize("kind", KINDS)
def test_tracked_statistics_are_standard_operators(kind: str, tmp_path: Path) -> None:
    model, x = network(KINDS[kind]), torch.randn(5, 3, 8, 8)
    set_statistics(model, Statistics("tracked"))
    export(model, tmp_path / "direct.onnx")
    session = ort.InferenceSession(tmp_path / "direct.onnx", providers=["CPUExecutionProvider"])
    (came,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(came, model(x).numpy(), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_library", [True, False])
@pytest.mark.parametrize("training", [True, False], ids=["training", "batch"])
@pytest.mark.parametrize("kind", ["batch", "aug-1.5", "median", "robust"])
def test_other_statistics_are_refused(
    kind: str, training: bool, with_library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_library:
        monkeypatch.setattr(library, "LIBRARY", None)
    model = network(KINDS[kind])
    set_statistics(model, Statistics("batch"))
    model.train(training)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="convert") as refused:
        export(model, tmp_path / "direct.onnx")
    assert "augserve.norm_forward" in str(refused.value.__cause__)
