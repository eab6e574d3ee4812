"""convert_norm: weights, statistics, flags and hooks survive, and what cannot be converted is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from augserve.errors import ConfigurationError
from augserve.norms import AugNorm1d, AugNorm2d, BatchNorm2d, ConvNorm2d, RobustNorm2d, convert_norm, norm_layers
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


def test_hooks_of_every_kind_survive() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    calls: list[str] = []
    net[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    net[0].register_forward_hook(lambda *_, **__: calls.append("after"), with_kwargs=True, always_call=True)
    net[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    net[0].register_state_dict_post_hook(lambda *_: calls.append("state"))
    convert_norm(net, "aug")
    net(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    net.state_dict()
    assert calls == ["before", "after", "backward", "state"]


@pytest.mark.parametrize(
    ("norm", "mode", "options"),
    [
        ("aug", "tracked", {"phi": 1.25}),
        ("aug-learned", "tracked", {"phi_max": 2.5}),
        ("batch-untracked", "batch", {}),
        ("median", "tracked", {}),
        ("robust-tracked", "batch", {"track": "range"}),
    ],
)
def test_every_family_by_its_name(network: nn.Module, norm: str, mode: str, options: dict) -> None:
    old = network.body[1].running_mean.clone()
    report = convert_norm(network, norm, **options)
    layer = network.body[1]
    assert layer.statistics == Statistics(mode)
    assert torch.equal(layer.running_mean, old)
    assert report.changes[0] == ("body.1", "BatchNorm2d", type(layer).__name__)
    for name, value in options.items():
        assert getattr(layer, name) == value or name == "phi"
    assert torch.isfinite(network(torch.randn(4, 3, 9, 9))).all()


def test_our_own_layers_convert_too(network: nn.Module) -> None:
    x = torch.randn(5, 3, 9, 9)
    network.eval()
    before = network(x)
    convert_norm(network, "aug", phi=1.5)
    convert_norm(network, "batch")
    torch.testing.assert_close(network(x), before)
    assert isinstance(network.body[1], BatchNorm2d)
    for name in ("robust", "robust-tracked", "batch"):
        assert not convert_norm(network, name).kept_statistics


def test_sync_batch_norm_becomes_a_synchronised_layer_of_any_rank() -> None:
    net = nn.Sequential(nn.SyncBatchNorm(3, eps=1e-4), nn.Flatten(2), nn.SyncBatchNorm(3))
    expected = nn.Sequential(nn.BatchNorm2d(3, eps=1e-4), nn.Flatten(2), nn.BatchNorm1d(3))
    report = convert_norm(net, "batch")
    assert report.changes[0] == ("0", "SyncBatchNorm", "BatchNorm")
    assert net[0].process_group is None  # all processes, where there are any
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(net(x), expected(x))


class Scaled(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_subclasses_are_refused_skipped_or_taken_for_what_they_extend() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(Scaled(3)))

    net = build()
    with pytest.raises(ConfigurationError, match=r"'1.0': cannot convert Scaled.*subclasses='convert'"):
        convert_norm(net)
    assert type(net[0]) is nn.BatchNorm2d
    report = convert_norm(net, subclasses="skip")
    assert (report.converted, report.skipped) == (("0",), ("1.0",))
    assert type(net[1][0]) is Scaled
    assert "left alone: 1.0" in str(report)
    net = build()
    assert convert_norm(net, subclasses="convert").converted == ("0", "1.0")
    assert isinstance(net[1][0], AugNorm2d)
    with pytest.raises(ConfigurationError, match="choose one of: convert, error, skip"):
        convert_norm(build(), subclasses="ignore")


def test_convolutions_become_conv_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding="same", groups=4, padding_mode="circular"),
        nn.Conv1d(8, 8, 1),
    )
    weights = [net[0].weight, net[2].weight]
    shapes = [net[:3](torch.randn(2, 3, 9, 9)).shape]
    report = convert_norm(net, "conv", affine=False)
    assert report.converted == ("0", "2")
    assert "running statistics" not in str(report)
    assert [net[0].weight, net[2].weight] == weights
    assert isinstance(net[2], ConvNorm2d)
    assert (net[2].padding_mode, net[2].groups, net[0].bias, net[0].affine) == ("circular", 4, None, False)
    assert net[:3](torch.randn(2, 3, 9, 9)).shape == shapes[0]
    with pytest.raises(ConfigurationError, match=r"no nn.Conv2d"):
        convert_norm(net, "conv")
    normalized = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)))
    with pytest.raises(ConfigurationError, match="'0'"):
        convert_norm(normalized, "conv")


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'0'.*LazyBatchNorm2d has no shape yet"):
        convert_norm(nn.Sequential(nn.LazyBatchNorm2d()), subclasses="convert")
    with pytest.raises(ConfigurationError, match="itself"):
        convert_norm(nn.BatchNorm2d(3))
    with pytest.raises(ConfigurationError, match=r"no torch.nn.BatchNorm"):
        convert_norm(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=r"choose one of: aug, aug-learned, batch.* conv"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3)), "group")
    with pytest.raises(ConfigurationError, match="phi"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3)), "batch", phi=1.5)


def test_handles_of_hooks_and_hooks_that_hold_their_layer_go_on_working() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    calls: list[object] = []
    handle = net[0].register_forward_hook(lambda *_: calls.append("forward"))
    net[0].register_load_state_dict_pre_hook(lambda layer, *_: calls.append(layer))
    convert_norm(net, "aug")
    net.load_state_dict(net.state_dict())
    assert calls == [net[0]]
    handle.remove()
    net(torch.randn(4, 3, 2, 2))
    assert calls == [net[0]]


@pytest.mark.parametrize("idiom", ["flag off", "buffers gone", "both", "no count"])
def test_evaluation_stays_what_it_was_whatever_the_flag_of_tracking_says(idiom: str) -> None:
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
    net = nn.Sequential(nn.BatchNorm2d(3))
    net(x)
    if idiom in ("flag off", "both"):
        net[0].track_running_stats = False
    if idiom in ("buffers gone", "both"):
        net[0].running_mean = net[0].running_var = None
    if idiom == "no count":
        net[0].num_batches_tracked = None
    net.eval()
    before = net(x)
    assert convert_norm(net, "batch").kept_statistics
    torch.testing.assert_close(net(x), before)


def test_running_statistics_keep_a_wider_dtype_than_the_weights() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    net[0].weight.data, net[0].bias.data = net[0].weight.data.half(), net[0].bias.data.half()
    net[0].running_mean += 1e-5
    convert_norm(net, "aug")
    assert net[0].running_mean.dtype == torch.float32
    assert torch.equal(net[0].running_mean, torch.full((3,), 1e-5))


def test_a_parametrized_norm_is_named() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    nn.utils.parametrize.register_parametrization(net[0], "weight", nn.Identity())
    with pytest.raises(ConfigurationError, match="'0': its weight is parametrized"):
        convert_norm(net, "batch", subclasses="convert")
