"""One contract for every norm layer: shapes, dtypes, modes, groups, state, gradients."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from augserve.errors import InputError, StatisticsError
from augserve.norms import (
    AugNorm1d,
    AugNorm2d,
    AugNorm3d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    RobustNorm1d,
    RobustNorm2d,
    RobustNorm3d,
    StatisticsNorm,
    set_statistics,
    use_statistics,
)
from augserve.norms.reduction import Local, reduced_dims
from augserve.statistics import Statistics
from tests import oracles
from tests.tolerances import BATCH_EQUIVALENCE, BLEND

Build = Callable[..., StatisticsNorm]

LAYERS: dict[str, tuple[str, Build]] = {
    "batch": ("batch", BatchNorm2d),
    "aug": ("aug", AugNorm2d),
    "aug-1.2": ("aug-1.2", lambda c, **k: AugNorm2d(c, 1.2, **k)),
    "aug-3": ("aug-3", lambda c, **k: AugNorm2d(c, 3.0, **k)),
    "median": ("aug-1", lambda c, **k: AugNorm2d(c, 1.0, **k)),
    "midrange": ("aug-inf", lambda c, **k: AugNorm2d(c, math.inf, **k)),
    "robust": ("robust", lambda c, **k: RobustNorm2d(c, **{"track_running_stats": True, **k})),
    "robust-range": ("range", lambda c, **k: RobustNorm2d(c, **{"track_running_stats": True, **k}, track="range")),
}


@pytest.fixture(params=LAYERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(name: str) -> Build:
    return LAYERS[name][1]


def rows(n: int, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def trained(build: Build, **options: object) -> StatisticsNorm:
    layer = build(3, **options)
    for seed in range(4):
        layer(rows(6, seed=10 + seed))
    if layer.weight is not None and layer.bias is not None:
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    return layer.eval()


def oracle(name: str, x: Tensor, tracked: tuple[Tensor, Tensor] | None = None, weight: float = 0.0) -> np.ndarray:
    """Normalize with float64 NumPy; the blend of the tracked and own statistics where weight > 0."""
    kind, _, phi = LAYERS[name][0].partition("-")
    data = x.double().numpy()
    if kind == "range":
        center, spread = data.mean((0, 2, 3)), data.max((0, 2, 3)) - data.min((0, 2, 3))
    else:
        center, spread = oracles.statistics(kind, data, float(phi or 1.5))
    if tracked is not None:
        center = weight * tracked[0].double().numpy() + (1 - weight) * center
        spread = weight * tracked[1].double().numpy() + (1 - weight) * spread
    if kind == "range":
        kind, spread = "robust", spread**0.2
    return oracles.normalize(kind, data, center, spread)


def test_batch_mode_is_the_formula(name: str, build: Build) -> None:
    layer = trained(build, affine=False)
    set_statistics(layer, Statistics("batch"))
    x = rows(5)
    np.testing.assert_allclose(layer(x).numpy(), oracle(name, x), atol=BLEND)


@pytest.mark.parametrize(
    "statistics", [Statistics("blend", tracked_weight=0.3), Statistics("blend", prior=2)], ids=["weight", "prior"]
)
def test_blend_mixes_center_and_spread(name: str, build: Build, statistics: Statistics) -> None:
    layer = trained(build, affine=False)
    set_statistics(layer, statistics)
    x = rows(5)
    tracked = (layer.running_mean, getattr(layer, layer.spread))
    expected = oracle(name, x, tracked, statistics.weight(5))
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=BLEND)
    assert not np.allclose(expected, oracle(name, x), atol=1e-3)


def test_tracked_mode_is_affine_in_each_row_alone(build: Build) -> None:
    layer = trained(build)
    x = rows(5)
    assert torch.equal(layer(x)[2:3], layer(x[2:3]))
    center = layer.running_mean
    assert center is not None
    assert layer.bias is not None
    at_center = layer(center[None, :, None, None].expand(1, 3, 4, 5))
    torch.testing.assert_close(at_center, layer.bias.detach()[None, :, None, None].expand(1, 3, 4, 5))


def test_train_and_eval_change_nothing_but_the_statistics(build: Build) -> None:
    layer = build(3, track_running_stats=False)
    x = rows(5)
    expected = layer(x)
    assert torch.equal(layer.eval()(x), expected)


def test_groups_answer_as_if_alone(build: Build) -> None:
    layer = trained(build)
    x, group = rows(7), torch.tensor([0, 2, 1, 0, 2, 1, 0])
    modes = [Statistics("batch"), Statistics("tracked"), Statistics("blend", tracked_weight=0.4)]
    with use_statistics(layer, modes, group=group):
        together = layer(x)
    for k, mode in enumerate(modes):
        with use_statistics(layer, mode):
            assert torch.equal(together[group == k], layer(x[group == k]))


def test_a_group_with_nan_or_inf_keeps_it(build: Build) -> None:
    layer = trained(build)
    x, group = rows(6), torch.tensor([0, 0, 1, 1, 2, 2])
    with use_statistics(layer, Statistics("batch"), group=group):
        clean = layer(x)
        x[0, 1, 0, 0], x[4, 2, 1, 1] = math.nan, math.inf
        dirty = layer(x)
    assert torch.equal(dirty[2:4], clean[2:4])
    assert torch.equal(dirty[:2, [0, 2]], clean[:2, [0, 2]])
    assert torch.isnan(dirty[0, 1]).any()


def test_training_with_groups_normalizes_each_by_itself(build: Build) -> None:
    layer, alone = build(3), build(3)
    x, group = rows(6), torch.tensor([0, 0, 1, 1, 1, 0])
    with use_statistics(layer, Statistics("batch"), group=group):
        y = layer(x)
    torch.testing.assert_close(y[group == 1], alone(x[group == 1]))
    assert layer.num_batches_tracked is not None
    assert int(layer.num_batches_tracked) == 1


def test_statistics_are_put_back(build: Build) -> None:
    layer = trained(build)
    before = layer(rows(3))
    with pytest.raises(RuntimeError, match="stop"), use_statistics(layer, Statistics("batch")):
        raise RuntimeError("stop")
    assert torch.equal(layer(rows(3)), before)


def test_gradients_agree_with_differences(build: Build) -> None:
    layer = build(3, dtype=torch.float64)
    x = rows(4).double()[:, :, :2, :2].clone().requires_grad_()
    parameters = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return y

    assert torch.autograd.gradcheck(run, (x, *parameters))
    layer.eval()
    modes = [Statistics("batch"), Statistics("blend", tracked_weight=0.3)]
    with use_statistics(layer, modes, group=torch.tensor([0, 1, 1, 0])):
        assert torch.autograd.gradcheck(run, (x, *parameters))


def test_a_constant_channel_gives_beta_and_finite_gradients(build: Build) -> None:
    layer = build(3)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, 0.25)
    x = torch.full((4, 3, 2, 2), 1.5, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, torch.full_like(y, 0.25), atol=2e-4, rtol=0)
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_state_dict_round_trip_copy_and_pickle(build: Build) -> None:
    layer = trained(build)
    other = build(3)
    other.load_state_dict(layer.state_dict())
    x = rows(3)
    for twin in (other.eval(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["batch", "tracked"])
def test_half_precision_keeps_its_dtype_and_is_near(build: Build, dtype: torch.dtype, mode: str) -> None:
    layer = trained(build)
    x = rows(6)
    with use_statistics(layer, Statistics("batch" if mode == "batch" else "tracked")):
        y = layer(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), layer(x.to(dtype).float()), atol=0.05, rtol=0.02)


def test_channels_last_gives_the_same_numbers(build: Build) -> None:
    layer = build(3)
    x = rows(4)
    expected = layer(x)
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected)


def test_running_statistics_average_like_torch(build: Build) -> None:
    layer, cumulative = build(3), build(3, momentum=None)
    x = rows(6)
    center, spread = layer.group_statistics(x, Local(reduced_dims(x)))
    expected = 0.9 * getattr(layer, layer.spread) + 0.1 * layer.unbiased(spread, 120)
    layer(x)
    torch.testing.assert_close(layer.running_mean, (0.1 * center).detach())
    torch.testing.assert_close(getattr(layer, layer.spread), expected.detach())
    for seed in range(3):
        cumulative(rows(6, seed=seed))
    over = Local(reduced_dims(x))
    means = torch.stack([cumulative.group_statistics(rows(6, seed=seed), over)[0] for seed in range(3)])
    torch.testing.assert_close(cumulative.running_mean, means.mean(0).detach())


def test_one_value_per_channel_is_refused_as_torch_does(build: Build) -> None:
    layer = build(3)
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(x)
    layer.eval()
    assert layer(x).shape == x.shape
    with use_statistics(layer, Statistics("batch")), pytest.raises(StatisticsError, match="larger groups"):
        layer(x)


def test_wrong_inputs_say_what_was_expected(build: Build) -> None:
    with pytest.raises(InputError, match="3 channels"):
        build(3)(torch.randn(2, 4, 5, 5))
    with pytest.raises(InputError, match="4D"):
        build(3)(torch.randn(2, 3))


def test_without_running_statistics_tracked_is_refused(build: Build) -> None:
    layer = nn.Sequential(build(3, track_running_stats=False))
    with pytest.raises(StatisticsError, match="'0' keeps no running statistics"):
        set_statistics(layer, Statistics("tracked"))
    with pytest.raises(StatisticsError, match="keeps no running statistics"):
        set_statistics(layer, Statistics("blend", prior=3))
    assert layer[0].statistics == Statistics("batch")


def test_a_batch_norm_of_torch_is_named_instead_of_being_passed_over() -> None:
    network = nn.Sequential(BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(StatisticsError, match=r"'1.0' \(torch.nn.BatchNorm2d\).*convert_norm"):
        set_statistics(network, Statistics("batch"))
    with (
        pytest.raises(StatisticsError, match="convert_norm"),
        use_statistics(network, Statistics("blend", prior=2)),
    ):
        pass
    set_statistics(network, Statistics("tracked"))


def test_a_checkpoint_without_the_number_of_batches_loads_as_in_torch(build: Build) -> None:
    layer = trained(build)
    state = {name: value for name, value in layer.state_dict().items() if name != "num_batches_tracked"}
    other = build(3)
    other.load_state_dict(state)
    assert torch.equal(other.eval()(rows(3)), layer(rows(3)))
    assert int(other.num_batches_tracked) == 0


def test_impossible_groups_are_refused(build: Build) -> None:
    layer = trained(build)
    for group, message in (
        (torch.tensor([0, 2]), "0..G-1"),
        (torch.tensor([0.0, 1.0]), "integers"),
        (torch.tensor([[0]]), "integers"),
    ):
        with pytest.raises(StatisticsError, match=message), use_statistics(layer, Statistics(), group=group):
            pass
    with (
        use_statistics(layer, Statistics(), group=torch.tensor([0, 1])),
        pytest.raises(StatisticsError, match="2 rows"),
    ):
        layer(rows(3))
    with (
        pytest.raises(StatisticsError, match="each of the 2 groups"),
        use_statistics(layer, [Statistics()] * 3, group=torch.tensor([0, 1])),
    ):
        pass


def test_repr_names_the_options(name: str, build: Build) -> None:
    text = repr(build(3))
    assert "eps=1e-05" in text
    assert ("phi=" in text) == (name.startswith("aug") or name in ("median", "midrange"))


SHAPES = [
    ((AugNorm1d, BatchNorm1d, RobustNorm1d), (6, 3)),
    ((AugNorm1d, BatchNorm1d, RobustNorm1d), (6, 3, 7)),
    ((AugNorm2d, BatchNorm2d, RobustNorm2d), (6, 3, 4, 5)),
    ((AugNorm3d, BatchNorm3d, RobustNorm3d), (6, 3, 2, 3, 4)),
]


@pytest.mark.parametrize(("kinds", "shape"), SHAPES)
def test_every_rank(kinds: tuple[type[StatisticsNorm], ...], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for kind, expected in zip(kinds, ("aug", "batch", "robust"), strict=True):
        y = kind(3)(x)
        data = x.double().numpy()
        np.testing.assert_allclose(
            y.detach().numpy(), oracles.normalize(expected, data, *oracles.statistics(expected, data)), atol=BLEND
        )


TORCH = {
    (6, 3): (AugNorm1d, BatchNorm1d, nn.BatchNorm1d),
    (6, 3, 4, 5): (AugNorm2d, BatchNorm2d, nn.BatchNorm2d),
    (6, 3, 2, 3, 4): (AugNorm3d, BatchNorm3d, nn.BatchNorm3d),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("shape", TORCH)
def test_phi_2_is_torch_batch_norm(shape: tuple[int, ...], momentum: float | None, dtype: torch.dtype) -> None:
    aug, batch, torchs = TORCH[shape]
    layers = [
        aug(3, phi=2.0, momentum=momentum, dtype=dtype),
        batch(3, momentum=momentum, dtype=dtype),
        torchs(3, momentum=momentum, dtype=dtype),
    ]
    tolerance = {"atol": BATCH_EQUIVALENCE[dtype], "rtol": BATCH_EQUIVALENCE[dtype]}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(shape, generator=generator, dtype=dtype) * 3 + 5
        upstream = torch.randn(shape, generator=generator, dtype=dtype)
        outputs, gradients = [], []
        for layer in layers:
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(upstream)
            outputs.append(y)
            assert leaf.grad is not None
            gradients.append([leaf.grad, layer.weight.grad, layer.bias.grad])
        for k in range(2):
            torch.testing.assert_close(outputs[k], outputs[2], **tolerance)
            torch.testing.assert_close(gradients[k], gradients[2], **tolerance)
            torch.testing.assert_close(dict(layers[k].state_dict()), dict(layers[2].state_dict()), **tolerance)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    for layer in layers:
        layer.eval()
    torch.testing.assert_close(layers[0](x), layers[2](x), **tolerance)
    layers[0].load_state_dict(layers[2].state_dict())
