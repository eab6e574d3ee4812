"""ONI, OCNN's penalty and spectral normalization against their definitions, in NumPy, and published numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from augserve.errors import ConfigurationError, InputError
from augserve.norms.baselines import ONI, Form, normalize_weights, ocnn_penalty, ocnn_penalty_of, oni
from tests.shared import shared_folder
from tests.tolerances import GOLDEN

Array = NDArray[np.float64]

# float64 against the same sums in NumPy, in another order.
EXACT = 1e-12

# Largest singular value over 1, by rounding of the iteration; 3e-7 was seen.
ROUNDING = 2e-6


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def golden(name: str) -> dict[str, Tensor]:
    arrays = dict(np.load(shared_folder("golden") / f"{name}_f64.npz"))
    return {key: torch.from_numpy(np.asarray(array)) for key, array in arrays.items()}


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=GOLDEN[torch.float64], atol=GOLDEN[torch.float64])


def singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().flatten(1).double())


def gradient(function: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(function(weight), weight)[0]


# ONI


@pytest.mark.parametrize("num_steps", [3, 5, 12])
def test_oni_by_rows_is_the_published_one(num_steps: int) -> None:
    # The column case col_T5_small is left out: its largest singular value is 1.47 and its smallest 0.
    arrays = {
        k.split("_", 2)[2]: v for k, v in golden("oni_weightnorm").items() if k.startswith(f"row_T{num_steps}_")
    }
    close(oni(arrays["w"], num_steps), arrays["y"])
    grad_w = gradient(lambda w: (oni(w, num_steps) * arrays["grad_out"]).sum(), arrays["w"])
    close(grad_w, arrays["grad_w"])


def oni_by_singular_values(v: Array, num_steps: int, eps: float) -> Array:
    """Apply the scalar iteration b <- (3 b - b^3 s) / 2 to every singular direction of V."""
    left, sigma, right = np.linalg.svd(v, full_matrices=False)
    size = np.sqrt(np.sum((sigma**2 + eps) ** 2))
    b = np.ones_like(sigma)
    for _ in range(num_steps):
        b = (3 * b - b**3 * (sigma**2 + eps) / size) / 2
    return np.asarray(left * (b * sigma / np.sqrt(size)) @ right)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
@pytest.mark.parametrize(
    ("shape", "form"), [((4, 9), "row"), ((9, 4), "column"), ((6, 6), "column"), ((4, 9), "auto")]
)
def test_oni_is_the_scalar_iteration_on_every_singular_value(
    shape: tuple[int, int], form: Form, num_steps: int
) -> None:
    weight = normal(*shape)
    v = weight.numpy() if form == "column" else weight.numpy() - weight.numpy().mean(axis=1, keepdims=True)
    wide = v.T if form == "column" else v
    expected = oni_by_singular_values(wide, num_steps, 1e-5)
    ours = oni(weight, num_steps, form=form).numpy()
    np.testing.assert_allclose(ours, expected.T if form == "column" else expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "form", "enough"),
    [((6, 3, 3, 3), "row", 12), ((40, 2, 3), "column", 12), ((8, 8), "column", 30)],  # the last is ill-conditioned
)
def test_oni_tends_to_orthonormal(shape: tuple[int, ...], form: Form, enough: int) -> None:
    weight = normal(*shape)

    def error(num_steps: int) -> float:
        y = oni(weight, num_steps, form=form, eps=1e-12).flatten(1)
        gram = y @ y.T if form == "row" else y.T @ y
        return float((gram - torch.eye(len(gram), dtype=gram.dtype)).norm())

    errors = [error(num_steps) for num_steps in (1, 2, 3, 5)]
    assert errors == sorted(errors, reverse=True)
    assert error(enough) < 1e-8


def test_oni_rows_have_mean_zero_and_a_square_weight_loses_that_direction() -> None:
    y = oni(normal(5, 5), 40)
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(5, dtype=y.dtype), rtol=0, atol=EXACT)
    values = singular_values(y)
    assert values[-2] > 0.99
    assert values[-1] < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (64, 64), (32, 34), (50, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_oni_never_exceeds_one_and_never_diverges(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> None:
    for num_steps in (1, 2, 3, 5, 9, 15, 30, 60):
        assert singular_values(oni(scale * normal(*shape, dtype=dtype), num_steps))[0] <= 1 + ROUNDING


@pytest.mark.parametrize("form", ["row", "column"])
def test_oni_gradient_is_the_derivative(form: Form) -> None:
    weight = normal(3, 2, 2).requires_grad_() if form == "row" else normal(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: oni(w, 4, form=form), weight)
    assert torch.autograd.gradgradcheck(lambda w: oni(w, 2, form=form), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (512, 9)])
def test_oni_of_zero_and_of_deficient_rank_is_finite(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for weight in (torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)):
        y = oni(weight, 12)
        assert y.dtype == dtype
        assert y.isfinite().all()
        assert (
            gradient(lambda w: oni(w, 12).float().square().sum() + oni(w, 12).float().sum(), weight)
            .isfinite()
            .all()
        )


def test_oni_in_half_precision_and_under_autocast_computes_in_float32() -> None:
    weight = normal(8, 30, dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        half = weight.to(dtype)
        assert torch.equal(oni(half), oni(half.float()).to(dtype))
    kernel = weight[:, :27].reshape(8, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, penalty = oni(weight), ocnn_penalty(kernel)
    assert torch.equal(mixed, oni(weight))
    assert torch.equal(penalty, ocnn_penalty(kernel))


def test_shapes_are_known_without_data() -> None:
    assert oni(torch.empty(4, 3, 3, 3, device="meta")).shape == (4, 3, 3, 3)
    assert ocnn_penalty(torch.empty(4, 3, 3, 3, device="meta")).shape == ()


# Networks


def small_network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return nn.Sequential(*layers).to(dtype)


def test_spectral_makes_the_largest_singular_value_one() -> None:
    network = nn.Sequential(small_network(), nn.Conv1d(3, 4, 3), nn.Conv3d(2, 9, 2))
    assert normalize_weights(network, "spectral", n_power_iterations=100) == ("0.0", "0.5", "1", "2")
    for name in ("0.0", "0.5", "1", "2"):
        values = singular_values(network.get_submodule(name).weight)
        assert values[0].item() == pytest.approx(1, abs=1e-4)


def test_oni_replaces_the_weights() -> None:
    network, plain = small_network(), small_network()
    assert normalize_weights(network, "oni", num_steps=7, form="row") == ("0", "5")
    for name in ("0", "5"):
        assert torch.equal(network.get_submodule(name).weight, oni(plain.get_submodule(name).weight, 7, form="row"))
    assert "num_steps=7" in repr(network)


@pytest.mark.parametrize("kind", ["spectral", "oni"])
def test_a_normalized_network_trains_and_comes_back_from_its_state(kind: str) -> None:
    network, x = small_network(), normal(6, 3, 8, 8, dtype=torch.float32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)  # made before: its parameters remain those in use
    normalize_weights(network, kind)
    before = [p.detach().clone() for p in network.parameters()]
    loss = nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2, 3, 0, 1])) + ocnn_penalty_of(network)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    changed = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(changed) >= len(changed) - 1  # the bias before a BatchNorm has gradient 0, but for rounding
    other = small_network()
    normalize_weights(other, kind)
    other.load_state_dict(network.state_dict())
    copied = copy.deepcopy(network)
    with torch.no_grad():
        expected = network.eval()(x)
        assert torch.equal(other.eval()(x), expected)
        assert torch.equal(copied.eval()(x), expected)


def test_a_layer_alone_is_normalized_too() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 4)
    assert normalize_weights(layer, "oni", num_steps=20) == ("",)
    assert singular_values(layer.weight)[-1] > 0.99


# Errors


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("batch", {}, "unknown weight normalization 'batch'; choose one of: oni, spectral"),
        ("oni", {"n_power_iterations": 2}, "unknown option of 'oni'.*: eps, form, num_steps"),
        ("spectral", {"num_steps": 2}, "unknown option of 'spectral'.*: eps, n_power_iterations"),
        ("spectral", {"n_power_iterations": 0}, "n_power_iterations must be at least 1; got 0"),
        ("spectral", {"eps": 0.0}, "eps must be positive"),
        ("oni", {"num_steps": 0}, "num_steps must be at least 1; got 0"),
        ("oni", {"form": "diagonal"}, "unknown form 'diagonal'; choose one of: auto, column, row"),
        ("oni", {"eps": float("nan")}, "eps must be positive"),
    ],
)
def test_impossible_normalizations_are_refused(kind: str, options: dict[str, object], message: str) -> None:
    network = small_network()
    with pytest.raises(ConfigurationError, match=message):
        normalize_weights(network, kind, **options)
    assert list(network.state_dict()) == list(small_network().state_dict())


@pytest.mark.parametrize("exclude", ["1", ("nope",), ("0", "nope")])
def test_exclusions_that_name_no_layer_are_refused(exclude: object) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ConfigurationError, match="expected exclude as names out of 0, 1"):
        normalize_weights(network, "oni", exclude=exclude)
    assert normalize_weights(network, "oni", exclude=("1",)) == ("0",)


def test_what_is_parametrized_already_or_not_there_is_refused_and_nothing_changed() -> None:
    network = small_network()
    normalize_weights(network[5], "spectral")
    names = list(network.state_dict())
    with pytest.raises(ConfigurationError, match="layer '5': its weight is parametrized already"):
        normalize_weights(network, "oni")
    assert list(network.state_dict()) == names
    with pytest.raises(ConfigurationError, match=r"layer '1'.*not initialized"):
        normalize_weights(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), "spectral")
    with pytest.raises(ConfigurationError, match=r"found no nn.Conv1d"):
        normalize_weights(nn.ReLU(), "oni")
    with pytest.raises(ConfigurationError, match=r"found no nn.Conv2d"):
        ocnn_penalty_of(nn.Linear(2, 2))


def test_impossible_weights_and_options_are_refused() -> None:
    kernel = normal(4, 3, 3, 3)
    with pytest.raises(InputError, match=r"two or more dimensions; got torch.float32 of shape"):
        oni(torch.ones(3))
    with pytest.raises(InputError, match="floating point weight of two"):
        oni(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="num_steps"):
        ONI(num_steps=0)
    with pytest.raises(InputError, match="four dimensions"):
        ocnn_penalty(torch.ones(3, 3))
    with pytest.raises(ConfigurationError, match="stride must be at least 1"):
        ocnn_penalty(kernel, (1, 0))
    with pytest.raises(ConfigurationError, match="groups must divide the 4 output channels; got 3"):
        ocnn_penalty(kernel, groups=3)
    with pytest.raises(ConfigurationError, match="unknown form"):
        ocnn_penalty(kernel, form="both")  # type: ignore[arg-type]
    for form, padding in (("auto", 1), ("row", -1)):
        with pytest.raises(ConfigurationError, match="padding needs form='row'"):
            ocnn_penalty(kernel, form=form, padding=padding)
