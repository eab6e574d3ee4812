"""The benchmark of exported files: who takes part, that all give the same answer, what is refused; no times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from augserve.bench.files import FOLDED, LOAD, UNROLLED, _written_out, measure_files
from augserve.errors import ConfigurationError
from augserve.export import export_onnx, open_session
from augserve.models import build_model
from augserve.native import find_library
from augserve.runtime import run_rows

pytestmark = pytest.mark.slow


def test_every_mode_of_every_file_takes_part() -> None:
    table = measure_files(rows=[2], rounds=1)
    kinds = ["native", "standard"] if find_library() else ["standard"]
    loads = [FOLDED, *kinds]
    runs = [FOLDED, *(f"{mode}, {kind}" for kind in kinds for mode in ("tracked", "batch")), UNROLLED]
    assert [row.contestant for row in table if row.rows == LOAD] == loads
    assert [row.contestant for row in table if row.rows == 2] == runs
    assert all(row.ms > 0 for row in table)
    assert all(row.ratio == 1 for row in table if row.contestant == FOLDED)


def test_the_solver_that_is_written_out_finds_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("resnet20", norm="aug")
    example = torch.randn(8, 3, 16, 16)
    network(example)
    export_onnx(network.eval(), tmp_path / "m.onnx", example=example)
    answers = [
        run_rows(open_session(path, native="off"), example.numpy(), None, np.zeros(8, np.float32))
        for path in (tmp_path / "m.onnx", _written_out(tmp_path / "m.onnx"))
    ]
    assert not np.array_equal(*answers)
    np.testing.assert_allclose(*answers, atol=1e-3)


def test_impossible_measurements_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown model 'lenet'"):
        measure_files("lenet")
    with pytest.raises(ConfigurationError, match="rows >= 2"):
        measure_files(rows=[1])
    with pytest.raises(ConfigurationError, match="a norm with statistics modes"):
        measure_files(norm="none", rounds=1)
