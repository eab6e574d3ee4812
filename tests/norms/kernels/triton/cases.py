"""What the tests of the Triton kernels share: the device they run on, data, and the kernels' module.

On a host without a CUDA device the kernels run in Triton's interpreter, on CPU tensors. Triton decides that when it
and the kernels are imported: here, with TRITON_INTERPRET set for just that long. Nothing else runs kernels on such
a host.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

PACKAGE = "augserve.norms.kernels.triton"
KERNELS = ("newton", "tiles", "moments", "statistics", "state", "solve", "passes", "gradient", "backward")

# NumPy, which interprets, warns of NaN and of divisions by 0; a device does not.
WARNINGS = [pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@contextmanager
def _interpreted() -> Iterator[None]:
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def _load() -> Any:
    entry = importlib.import_module(f"{PACKAGE}.norm")
    if not entry.available():
        pytest.skip("Triton is not installed: it exists for Linux only", allow_module_level=True)
    if torch.cuda.is_available():
        return entry
    if "triton" in sys.modules:
        raise RuntimeError(
            "Triton was imported while tests were collected, before its interpreter could be chosen; "
            "find the module that imports it, or what imports it (torch._dynamo does)"
        )
    with _interpreted():
        importlib.import_module("triton.experimental.gluon")  # Triton would import it at the first launch
        for name in KERNELS:
            importlib.import_module(f"{PACKAGE}.{name}")
    return entry


norm: Any = _load()

DEVICES = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(
            torch.cuda.is_available(), reason="the kernels are compiled for the device there is"
        ),
    ),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]

# Distributions by name; all but the last three are finite and of moderate size.
CASES = ("normal", "zeros", "relu", "outlier", "offset", "constant", "nan")


def draw(case: str, m: int, seed: int = 0) -> Tensor:
    """m values, float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, generator=generator)
    if case == "zeros":
        x[torch.rand(m, generator=generator) < 0.3] = 0
    elif case == "relu":
        x = x.clamp_min(0)
    elif case == "outlier":
        x[m // 2] = 1e4
    elif case == "offset":
        x = x + 1e4
    elif case == "constant":
        x = torch.full((m,), 3.7)
    elif case == "nan":
        x[m // 3] = float("nan")
    return x


def rows(m: int, cases: tuple[str, ...] = CASES) -> Tensor:
    return torch.stack([draw(case, m, seed) for seed, case in enumerate(cases)])


def split_everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make tiles and splits so small that a few values have several of each; for fixtures.

    Fewer passes are launched too, since each costs the interpreter as much as one that has something to do.
    """
    plan = importlib.import_module(f"{PACKAGE}.plan")
    launch = importlib.import_module(f"{PACKAGE}.launch")
    for name, size in (("TILE", 32), ("GROUP_TILE", 32), ("SHARE", 32)):
        monkeypatch.setattr(plan, name, size)
    passes = launch.Task.passes.fget
    monkeypatch.setattr(launch.Task, "passes", property(lambda task: min(passes(task), 3)))
    plan.plan.cache_clear()
    yield
    plan.plan.cache_clear()


def spacing(values: Tensor) -> Tensor:
    """Half the distance between float32 numbers of this size: what rounding a result costs."""
    return values.abs() * 2**-24
