"""convert_norm: weights, statistics, flags and hooks survive, and what cannot be converted is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from augserve.errors import ConfigurationError
from augserve.norms import AugNorm1d, AugNorm2d, BatchNorm2d, RobustNorm2d, convert_norm, norm_layers
from augserve.statistics import Statistics


class UserNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), nn.Conv2d(4, 4, 3), shared)
        self.head = nn.ModuleDict({"norm": nn.BatchNorm1d(4, eps=1e-3, momentum=None), "linear": nn.Linear(4, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x).mean(dim=(2, 3))
        logits: torch.Tensor = self.head["linear"](self.head["norm"](y))
        return logits


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    net = UserNetwork()
    for _ in range(3):
        net(torch.randn(8, 3, 9, 9))
    return net


@pytest.mark.parametrize(("norm", "options"), [("batch", {}), ("aug", {"phi": 2.0})])
def test_converting_to_the_same_norm_changes_no_answer(network: nn.Module, norm: str, options: dict) -> None:
    x = torch.randn(5, 3, 9, 9)
    network.eval()
    before = network(x)
    report = convert_norm(network, norm, **options)
    torch.testing.assert_close(network(x), before)
    assert report.converted == ("body.1", "head.norm")
    assert report.kept_statistics
    network.train()
    assert isinstance(network.body[1], nn.Module)
    assert network.body[1] is network.body[4]


def test_parameters_stay_the_same_objects(network: nn.Module) -> None:
    before = dict(network.named_parameters())
    convert_norm(network, "aug", phi=1.25)
    after = dict(network.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)
    layers = norm_layers(network)
    assert [type(layer) for layer in layers.values()] == [AugNorm2d, AugNorm1d]
    assert layers["head.norm"].eps == 1e-3
    assert layers["head.norm"].momentum is None
    assert layers["body.1"].phi == 1.25


def test_training_flag_dtype_and_hooks_survive() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3).double().eval())
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    convert_norm(net, "batch")
    assert not net[0].training
    assert net[0].running_mean.dtype == torch.float64
    net(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert calls == [1]


def test_robust_starts_its_denominator_anew(network: nn.Module) -> None:
    report = convert_norm(network, "robust")
    assert not report.kept_statistics
    assert "started anew" in str(report)
    layer = network.body[1]
    assert isinstance(layer, RobustNorm2d)
    assert layer.statistics == Statistics("batch")
    assert torch.equal(layer.running_denominator, torch.ones(4))


def test_untracked_layers_stay_untracked() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False, affine=False))
    convert_norm(net, "batch")
    assert isinstance(net[0], BatchNorm2d)
    assert net[0].running_mean is None
    assert net[0].weight is None
    assert net[0].statistics == Statistics("batch")


def test_what_cannot_be_converted_is_named() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.SyncBatchNorm(3)))
    with pytest.raises(ConfigurationError, match=r"'1.0': cannot convert SyncBatchNorm"):
        convert_norm(net)
    assert type(net[0]) is nn.BatchNorm2d
    with pytest.raises(ConfigurationError, match="itself"):
        convert_norm(nn.BatchNorm2d(3))
    with pytest.raises(ConfigurationError, match=r"no torch.nn.BatchNorm"):
        convert_norm(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="choose one of: aug, batch, robust"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3)), "group")
    with pytest.raises(ConfigurationError, match="phi"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3)), "batch", phi=1.5)
