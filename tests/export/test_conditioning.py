"""Where torch's own float32 is off, a file may be as far off; nowhere else, and no farther."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from augserve.errors import ExportError
from augserve.export import export_onnx
from augserve.export import parity as parity_module
from augserve.export.conditioning import conditioning
from augserve.runtime import run_rows

FAR = 1e4  # float32 rounds beside it to multiples of 2^-10
ILL = 9  # the row of the fixture that has an outlier


class Cancels(nn.Module):
    """x, but rows with an outlier go by way of x + FAR, which rounds them."""

    def __init__(self, *, widens: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.widens = widens

    def forward(self, x: Tensor) -> Tensor:
        far = torch.where(x.amax((1, 2, 3)) > 20, FAR, 0.0)[:, None].to(x.dtype)
        y = x.mean((2, 3)) @ (self.weight if self.widens else self.weight.float())
        return y + far - far


def measured(rows: Tensor) -> npt.NDArray[np.float64]:
    found = conditioning(Cancels(), rows, lambda network, x: network(x))
    assert found is not None
    np.testing.assert_allclose(found.exact, rows.double().mean((2, 3)).numpy(), rtol=0, atol=1e-12)
    return found.error


def test_the_error_is_that_of_float32_in_each_row(rows: Tensor) -> None:
    error = measured(rows)
    assert 2**-13 < error[ILL] <= 2**-11 + 1e-6  # half of the distance of two numbers
    assert np.delete(error, ILL).max() < 1e-6
    network = Cancels()
    assert conditioning(network, rows, lambda network, x: network(x)) is not None
    assert network.weight.dtype == torch.float32
    assert conditioning(Cancels(widens=False), rows, lambda network, x: network(x)) is None


@pytest.mark.parametrize(
    ("row", "factor", "widens", "passes"),
    [(ILL, 1.5, True, True), (ILL, 5.0, True, False), (ILL - 1, 1.5, True, False), (ILL, 1.5, False, False)],
    ids=["as wrong as torch", "more wrong", "another row", "no float64"],
)
def test_a_file_may_be_as_wrong_as_torch(
    row: int,
    factor: float,
    widens: bool,
    passes: bool,
    rows: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    off = factor * measured(rows)[ILL]
    assert off > parity_module.TOLERANCE

    def wrong(*arguments: object) -> npt.NDArray[np.float32]:
        answer: npt.NDArray[np.float32] = run_rows(*arguments)
        answer[row, 1] += np.float32(off)
        return answer

    monkeypatch.setattr(parity_module, "run_rows", wrong)
    monkeypatch.setattr(parity_module, "SIZES", (32,))
    path = tmp_path / "m.onnx"
    words = "tracked, 32 rows, standard operators"
    if passes:
        with caplog.at_level(logging.WARNING, "augserve.export.parity"):
            report = export_onnx(Cancels(), path, example=rows, mode="tracked")
        assert off / 2 < report.max_abs_difference < 2 * off
        assert re.search(f"{words}.*torch's own float32 by", caplog.text)
    else:
        with pytest.raises(ExportError, match=rf"parity failed \({words}\).*more than"):
            export_onnx(Cancels(widens=widens), path, example=rows, mode="tracked")
        assert not path.exists()
