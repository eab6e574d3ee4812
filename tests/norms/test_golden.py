"""Our layers against numbers that the papers' published code gave, where our design follows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from augserve.norms import AugNorm2d, BatchNorm2d, RobustNorm2d, StatisticsNorm, generalized_median
from augserve.statistics import Statistics
from tests.shared import shared_folder
from tests.tolerances import GOLDEN


class Golden:
    def __init__(self, name: str) -> None:
        path: Path = shared_folder("golden") / f"{name}.npz"
        self.arrays = dict(np.load(path))
        self.dtype = torch.float32 if name.endswith("f32") else torch.float64

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def close(self, ours: Tensor, key: str) -> None:
        tolerance = GOLDEN[self.dtype]
        torch.testing.assert_close(ours, self[key], rtol=tolerance, atol=tolerance, msg=lambda m: f"{key}: {m}")


def train_three_batches(golden: Golden, layer: StatisticsNorm, running: dict[str, str]) -> None:
    with torch.no_grad():
        layer.load_state_dict({"weight": golden["weight"], "bias": golden["bias"]}, strict=False)
    for k in (1, 2, 3):
        layer.zero_grad()
        x = golden[f"x{k}"].clone().requires_grad_()
        y = layer(x)
        golden.close(y.detach(), f"y_train{k}")
        y.backward(golden[f"grad_out{k}"])
        assert x.grad is not None
        golden.close(x.grad, f"grad_x{k}")
        golden.close(layer.weight.grad, f"grad_weight{k}")
        golden.close(layer.bias.grad, f"grad_bias{k}")
        for buffer, key in running.items():
            golden.close(getattr(layer, buffer), f"{key}{k}")


@pytest.mark.parametrize("name", ["robustnorm_RN_p0.2_f64", "robustnorm_RN_p0.2_f32"])
def test_robust_norm_with_batch_statistics(name: str) -> None:
    golden = Golden(name)
    layer = RobustNorm2d(5, p=0.2, dtype=golden.dtype)
    train_three_batches(golden, layer, {})
    golden.close(layer.eval()(golden["x_eval"]).detach(), "y_eval")


def test_robust_norm_tracking_the_range_as_the_published_code() -> None:
    golden = Golden("robustnorm_RNT_p0.2_f64")
    layer = RobustNorm2d(5, p=0.2, track_running_stats=True, track="range", dtype=golden.dtype)
    train_three_batches(golden, layer, {"running_mean": "running_mean", "running_range": "running_var"})
    golden.close(layer.eval()(golden["x_eval"]).detach(), "y_eval")


@pytest.mark.parametrize("kind", [BatchNorm2d, lambda c, dtype: AugNorm2d(c, 2.0, dtype=dtype)])
def test_batch_norm_with_tracking(kind: type[StatisticsNorm]) -> None:
    golden = Golden("batchnorm_torch_tracked_f64")
    layer = kind(5, dtype=golden.dtype)
    train_three_batches(golden, layer, {"running_mean": "running_mean", "running_var": "running_var"})
    assert layer.statistics == Statistics("tracked")
    golden.close(layer.eval()(golden["x_eval"]).detach(), "y_eval")


@pytest.mark.parametrize("phi", [1.5, 2.0])
def test_generalized_median_is_the_exact_argmin(phi: float) -> None:
    golden = Golden(f"augnorm_author_phi{phi:g}_f64")
    for k in (1, 2, 3):
        mu = generalized_median(golden[f"x{k}"], phi, dim=(0, 2, 3), rtol=1e-13, max_steps=100).value
        golden.close(mu, f"mu_exact_f64_{k}")


def test_aug_norm_with_phi_2_as_the_published_code() -> None:
    golden = Golden("augnorm_author_phi2_f64")
    layer = AugNorm2d(4, phi=2.0, eps=float(golden.arrays["eps"]), dtype=golden.dtype)
    # The published backward departs from the derivative for phi = 1.5 (its own weights), not for phi = 2.
    with torch.no_grad():
        layer.load_state_dict({"weight": golden["weight"], "bias": golden["bias"]}, strict=False)
    for k in (1, 2, 3):
        golden.close(layer(golden[f"x{k}"]).detach(), f"y_train{k}")
        golden.close(layer.running_mean, f"running_mean{k}")
