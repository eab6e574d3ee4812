"""The forms of AugNorm that normalize each row or graph, learned exponents, and warm starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from augserve.errors import ConfigurationError, InputError
from augserve.norms import (
    AugGraphNorm,
    AugGroupNorm,
    AugInstanceNorm2d,
    AugLayerNorm,
    AugNorm2d,
    GraphNorm,
    StatisticsNorm,
    generalized_median,
    norm_layers,
)
from augserve.norms.median.solve import solve
from augserve.norms.median.values import Stored
from augserve.norms.reduction import Segments
from tests import oracles
from tests.norms.cases import CASES, GRAPHS, NUM_GRAPHS, SHAPES
from tests.tolerances import BATCH_EQUIVALENCE, BLEND


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2 + 1


TORCH = {
    "instance": (lambda: AugInstanceNorm2d(6, 2.0), lambda: nn.InstanceNorm2d(6, affine=True)),
    "layer": (lambda: AugLayerNorm((4, 5), 2.0), lambda: nn.LayerNorm((4, 5))),
    "last": (lambda: AugLayerNorm(5, 2.0, bias=False), lambda: nn.LayerNorm(5, bias=False)),
    "group": (lambda: AugGroupNorm(3, 6, 2.0), lambda: nn.GroupNorm(3, 6)),
}


@pytest.mark.parametrize("name", TORCH)
def test_phi_2_is_the_layer_of_torch(name: str) -> None:
    ours, theirs = (build().double() for build in TORCH[name])
    ours.load_state_dict(theirs.state_dict())
    x = rows(3, 6, 4, 5, dtype=torch.float64)
    tolerance = BATCH_EQUIVALENCE[torch.float64]
    torch.testing.assert_close(ours(x), theirs(x), atol=tolerance, rtol=tolerance)


def _sets(name: str, x: np.ndarray) -> np.ndarray:
    """The values that are normalized together, one set a row."""
    if name == "instance":
        return x.reshape(-1, 20)
    return x.reshape(-1, 40) if name == "group" else x.reshape(-1, 20)


@pytest.mark.parametrize("phi", [1.0, 1.3, 1.5, 3.0, math.inf])
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("instance", lambda phi: AugInstanceNorm2d(6, phi, affine=False)),
        ("layer", lambda phi: AugLayerNorm((4, 5), phi, elementwise_affine=False)),
        ("group", lambda phi: AugGroupNorm(3, 6, phi, affine=False)),
    ],
)
def test_each_row_is_the_formula(name: str, build: object, phi: float) -> None:
    x = rows(3, 6, 4, 5)
    sets = _sets(name, x.double().numpy())
    center, spread = oracles.statistics("aug", sets.T[:, :, None], phi)
    expected = (sets - center[:, None]) / np.sqrt(spread + 1e-5)[:, None]
    np.testing.assert_allclose(_sets(name, build(phi)(x).numpy()), expected, atol=BLEND)  # type: ignore[operator]


@pytest.mark.parametrize("phi", [1.0, 1.3, 1.5, 2.0, 3.0, math.inf])
def test_each_graph_is_the_formula(phi: float) -> None:
    x, graphs = rows(*SHAPES["nodes"]), torch.tensor(GRAPHS)
    layer = AugGraphNorm(4, phi)
    with torch.no_grad():
        layer.mean_scale.copy_(torch.tensor([0.0, 0.5, 1.0, 2.0]))
    y = layer(x, graphs, NUM_GRAPHS).detach().numpy()
    for graph in set(GRAPHS):
        nodes = x[graphs == graph].double().numpy()
        for channel, alpha in enumerate((0.0, 0.5, 1.0, 2.0)):
            s = nodes[:, channel] - alpha * oracles.generalized_median(nodes[:, channel], phi)
            expected = s / np.sqrt((s**2).mean() + 1e-5)
            np.testing.assert_allclose(y[np.array(graph) == GRAPHS][:, channel], expected, atol=BLEND)


def test_graph_norm_is_aug_graph_norm_with_phi_2_and_order_does_not_matter() -> None:
    x, graphs = rows(40, 4), torch.randint(6, (40,), generator=torch.Generator().manual_seed(0))
    expected = GraphNorm(4)(x, graphs, 6)
    torch.testing.assert_close(AugGraphNorm(4, 2.0)(x, graphs, 6), expected)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(GraphNorm(4)(x[order], graphs[order]), expected[order])


@pytest.mark.parametrize("kind", [GraphNorm, AugGraphNorm])
def test_one_graph_no_nodes_and_wrong_graphs(kind: type[GraphNorm]) -> None:
    layer, x = kind(4), rows(5, 4)
    torch.testing.assert_close(layer(x), layer(x, torch.zeros(5, dtype=torch.int64)))
    single = layer(x[:1])
    torch.testing.assert_close(single, torch.zeros_like(single))  # x - mu = 0, then beta
    assert layer(x[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
    assert layer(x[:0], torch.zeros(0, dtype=torch.int64), 3).shape == (0, 4)
    for arguments, message in (
        ((x[:, :3],), "nodes"),
        ((x, torch.zeros(4, dtype=torch.int64)), "int64"),
        ((x, torch.zeros(5)), "int64"),
        ((x, None, 3), "expected `batch`"),
        ((x, torch.tensor([0, 0, 3, 1, 1]), 3), "from 0 to 2; got 0 to 3"),
    ):
        with pytest.raises(InputError, match=message):
            layer(*arguments)


@pytest.mark.parametrize("kind", [GraphNorm, AugGraphNorm, lambda c, **k: AugGraphNorm(c, learn_phi=True, **k)])
def test_graph_layers_do_not_wait_for_the_device_where_batch_size_is_given(kind: type[GraphNorm]) -> None:
    # A tensor of the device "meta" has no values, so that reading one is an error.
    layer = kind(4, device="meta")
    x, graphs = torch.randn(9, 4, device="meta"), torch.zeros(9, dtype=torch.int64, device="meta")
    assert layer(x, graphs, 3).shape == (9, 4)
    with pytest.raises(RuntimeError):
        layer(x, graphs)


@pytest.mark.parametrize("phi", [1.5, 3.0])
def test_the_solver_on_graphs_does_not_wait_for_the_device(phi: float) -> None:
    x, graphs = torch.randn(9, 4, device="meta"), torch.zeros(9, dtype=torch.int64, device="meta")
    result, _ = solve(Stored(x, Segments(graphs, 3)), phi, 1e-5, 8)
    assert result.value.shape == (3, 4)
    each = torch.full((3, 4), phi, device="meta")
    result, _ = solve(Stored(x, Segments(graphs, 3)), each, 1e-5, 8, interior=True)
    assert result.value.shape == (3, 4)


LEARNED = [name for name in CASES if "learned" in name]


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_exponent_begins_at_phi_and_cannot_leave_its_range(name: str) -> None:
    wrapped = CASES[name].build(learn_phi=True)
    layer = getattr(wrapped, "layer", wrapped)
    torch.testing.assert_close(layer.phi, torch.full_like(layer.phi, 1.5))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e6)
    for sign in (1, -1):
        for _ in range(3):
            optimizer.zero_grad()
            (sign * layer.phi.sum()).backward()
            optimizer.step()
            assert ((layer.phi >= 1.1) & (layer.phi <= 3.0)).all()
            assert torch.isfinite(wrapped(CASES[name].input())).all()
    layer.phi_logit.data.fill_(math.inf)
    assert (layer.phi == 3.0).all()


def test_a_learned_exponent_is_the_same_as_a_fixed_one_of_its_value() -> None:
    x = rows(6, 4, 3, 5)
    learned, fixed = AugNorm2d(4, 1.7, learn_phi=True), AugNorm2d(4, 1.7)
    torch.testing.assert_close(learned(x), fixed(x))
    torch.testing.assert_close(learned.running_var, fixed.running_var)


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_learned_exponent_survives_a_wrong_gradient(wrong: float, dtype: torch.dtype) -> None:
    layer = AugNorm2d(3, learn_phi=True, dtype=dtype)
    optimizer = torch.optim.Adam(layer.parameters(), lr=100)
    layer(rows(4, 3, 2, 2)).sum().backward()
    layer.phi_logit.grad.fill_(wrong)
    optimizer.step()
    assert ((layer.phi >= 1.1) & (layer.phi <= 3)).all()


@pytest.mark.parametrize("scale", [1e15, 1e20, 1e30])
def test_a_variance_that_overflows_gives_finite_gradients(scale: float) -> None:
    x = (rows(8, 3, 5, 5) * scale).requires_grad_()
    layer = AugNorm2d(3)
    layer(x).backward(rows(8, 3, 5, 5, seed=1))
    for grad in (x.grad, layer.weight.grad, layer.bias.grad):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("level", [0.7, 1e4, 1e6])
def test_a_constant_channel_far_from_0_is_exactly_beta(level: float) -> None:
    x = torch.full((4, 4, 3, 3), level)
    for layer in (AugNorm2d(4), AugInstanceNorm2d(4), AugLayerNorm((3, 3)), AugGroupNorm(2, 4)):
        assert (layer(x) == 0).all(), type(layer)


def test_impossible_ranges_are_refused() -> None:
    for options, message in (
        ({"phi_min": 1.0}, "1 < phi_min"),
        ({"phi_max": math.inf}, "phi_max < inf"),
        ({"phi_min": 2.0, "phi_max": 1.5}, "phi_min"),
        ({"phi": 1.05}, "begin between"),
        ({"phi": 0.5}, "phi must lie in"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            AugNorm2d(4, learn_phi=True, **options)
    with pytest.raises(ConfigurationError, match="divide 6 channels"):
        AugGroupNorm(4, 6)
    with pytest.raises(InputError, match=r"\(4, 5\)"):
        AugLayerNorm((4, 5))(rows(2, 5, 4))


def test_a_warm_start_saves_passes_and_keeps_the_answer() -> None:
    x = rows(32, 8, 16, 16)
    cold, warm = AugNorm2d(8), AugNorm2d(8, warm_start=True)
    for seed in range(5):
        x = rows(32, 8, 16, 16, seed=seed).clamp_min(0)
        torch.testing.assert_close(warm(x), cold(x), atol=2e-5, rtol=2e-5)
    flat = x.transpose(0, 1).flatten(1)
    exact = generalized_median(flat, 1.5, 1)
    near = generalized_median(flat, 1.5, 1, start=exact.value + 1e-4)
    far = generalized_median(flat, 1.5, 1, start=exact.value + 100)
    assert near.num_steps.sum() < exact.num_steps.sum()
    std = flat.std(dim=1)
    for other in (near, far):
        assert ((other.value - exact.value).abs() <= 2e-6 * std).all()
        assert ((other.upper - other.lower) <= 1.1e-6 * std).all()


def test_two_thousand_steps_with_a_learned_exponent_stay_finite() -> None:
    """Post-ReLU data, batches of four, learning rate 0.1: what made the printed parametrisation NaN."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.ReLU(),
        AugNorm2d(4, learn_phi=True),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.ReLU(),
        AugNorm2d(6, learn_phi=True, phi=1.2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(2000):
        x = torch.randn(4, 4, 4, 4, generator=generator) - 0.5
        x[:, step % 4] *= 0 if step % 7 == 0 else 10.0 ** (step % 5 - 2)  # a dead channel, and scales that change
        target = torch.randint(3, (4,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), target)
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss), step
    for name, value in network.state_dict().items():
        assert torch.isfinite(value.float()).all(), name
    exponents = [layer.phi for layer in norm_layers(network).values() if isinstance(layer, AugNorm2d)]
    assert any((phi.detach() - 1.5).abs().max() > 0.05 for phi in exponents)
    assert all(isinstance(layer, StatisticsNorm) for layer in norm_layers(network).values())


def test_vmap_over_graphs_says_what_to_do() -> None:
    layer = AugGraphNorm(4)
    with pytest.raises(InputError, match="all graphs in one batch"):
        torch.vmap(lambda x: layer(x, torch.tensor(GRAPHS), NUM_GRAPHS))(rows(2, *SHAPES["nodes"]))
