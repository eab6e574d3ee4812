"""Our layers against numbers that the papers' published code gave, where our design follows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from augserve.norms import AugNorm2d, BatchNorm2d, GraphNorm, RobustNorm2d, StatisticsNorm, generalized_median
from augserve.norms.reduction import Reduction
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


def test_aug_norm_with_phi_1_5_as_the_published_code_where_it_has_converged() -> None:
    # The published code stops after four Newton steps and differentiates the median with weights of its own, so its
    # y and its gradient in x are compared around its own center, with our formula; beta's gradient holds as it is.
    golden = Golden("augnorm_author_phi1.5_f64")
    layer = AugNorm2d(4, phi=1.5, eps=float(golden.arrays["eps"]), dtype=golden.dtype)
    with torch.no_grad():
        layer.load_state_dict({"weight": golden["weight"], "bias": golden["bias"]}, strict=False)
    for k in (1, 2, 3):
        x, mu = golden[f"x{k}"], golden[f"mu4_{k}"]
        published = _around(x, mu, layer)
        golden.close(published, f"y_train{k}")
        layer.zero_grad()
        ours = layer(x)
        ours.backward(golden[f"grad_out{k}"])
        exact = _around(x, golden[f"mu_exact_f64_{k}"], layer)
        torch.testing.assert_close(ours.detach(), exact, rtol=GOLDEN[golden.dtype], atol=GOLDEN[golden.dtype])
        golden.close(layer.bias.grad, f"grad_bias{k}")


def _around(x: Tensor, mu: Tensor, layer: AugNorm2d) -> Tensor:
    """AugNorm's formula around a given center, (C,)."""
    s = x - mu[:, None, None]
    xhat = s / (s.square().mean(dim=(0, 2, 3), keepdim=True) + layer.eps).sqrt()
    return (xhat * layer.weight[:, None, None] + layer.bias[:, None, None]).detach()


class PublishedBatchNorm(BatchNorm2d):
    """BatchNorm as RobustNorm's published code has it: unbiased variance, eps outside the root."""

    def group_statistics(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor]:
        mean, var = super().group_statistics(x, over)
        return mean, var * (x.numel() / x.shape[1] / (x.numel() / x.shape[1] - 1))

    def divisor(self, spread: Tensor) -> Tensor:
        return spread.sqrt() + self.eps


def test_batch_norm_without_tracking_with_the_published_options_as_a_subclass() -> None:
    golden = Golden("robustnorm_BNwoT_f64")
    layer = PublishedBatchNorm(5, track_running_stats=False, dtype=golden.dtype)
    train_three_batches(golden, layer, {})
    x = golden["x_eval"].clone().requires_grad_()
    y = layer.eval()(x)
    golden.close(y.detach(), "y_eval")
    y.backward(golden["grad_out_eval"])
    assert x.grad is not None
    golden.close(x.grad, "grad_x_eval")


def test_graph_norm_as_the_published_code() -> None:
    golden = Golden("graphnorm_gnn_ws_f64")
    layer = GraphNorm(6, eps=float(golden.arrays["eps"]), dtype=golden.dtype)
    layer.load_state_dict({name: golden[name] for name in ("weight", "bias", "mean_scale")})
    x = golden["x"].clone().requires_grad_()
    y = layer(x, golden["batch"].long(), len(golden["sizes"]))
    golden.close(y.detach(), "y")
    y.backward(golden["grad_out"])
    for ours, key in ((x, "x"), *((getattr(layer, name), name) for name in ("weight", "bias", "mean_scale"))):
        assert ours.grad is not None
        golden.close(ours.grad, f"grad_{key}")
