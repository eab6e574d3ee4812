"""SimBA against the published code's numbers, the paper's algorithm in NumPy, and its own properties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from augserve.attacks import SimbaResult, simba
from augserve.errors import ConfigurationError, InputError
from tests.shared import shared_folder
from tests.tolerances import GOLDEN

# A probability by our log-odds against NumPy's softmax, both float64.
PROBABILITY = 1e-12

Model = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    path: Path = shared_folder("golden") / "simba_pixel_linear_f32.npz"
    return {key: torch.from_numpy(array) for key, array in np.load(path).items()}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Linear(16, 4, bias=False)).double()


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).uniform(size=(12, 3, 3, 3)))


def attack_golden(golden: dict[str, Tensor], **options: Any) -> SimbaResult:
    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ golden["W"].T + golden["b"]

    options = {"epsilon": float(golden["eps"]), "max_steps": 48, "order": golden["perm"], **options}
    return simba(model, golden["x"], golden["y"], **options)


def close(ours: Tensor, published: Tensor) -> None:
    rtol = GOLDEN[torch.float32]
    torch.testing.assert_close(ours.to(published.dtype), published, rtol=rtol, atol=rtol)


def test_the_better_direction_is_the_published_code_for_batches(golden: dict[str, Tensor]) -> None:
    result = attack_golden(golden, direction="better")
    close(result.adversarial, golden["batch_adv"])
    close(result.probabilities, golden["batch_probs"])
    close(result.successes, golden["batch_succs"])
    close(result.queries, golden["batch_queries"])
    # Once every image is misclassified the published code leaves zeros in its norms; ours keep their last value.
    columns = int(golden["batch_queries"].any(0).sum()) + 1
    assert not golden["batch_l2"][:, columns:].any()
    close(result.l2[:, :columns], golden["batch_l2"][:, :columns])
    close(result.linf[:, :columns], golden["batch_linf"][:, :columns])
    assert (result.l2[:, columns:] == result.l2[:, columns - 1 : columns]).all()


def test_the_first_direction_without_a_stop_is_the_published_code_for_one_image(golden: dict[str, Tensor]) -> None:
    close(attack_golden(golden, stop_when_misclassified=False).adversarial, golden["single_adv"])


def test_the_two_directions_differ_only_where_both_lower_the_probability(golden: dict[str, Tensor]) -> None:
    first, better = attack_golden(golden), attack_golden(golden, direction="better")
    assert torch.equal(first.adversarial[:5], better.adversarial[:5])
    step = int((first.probabilities[5] - better.probabilities[5]).abs().gt(1e-6).int().argmax())
    assert better.probabilities[5, step] < first.probabilities[5, step] < first.probabilities[5, step - 1]


def algorithm_1(
    model: Model, image: Tensor, label: int, order: Tensor, epsilon: float
) -> tuple[np.ndarray, list[float], int]:
    """The paper's algorithm for one image, word for word; with what it gave after each step, and its queries."""
    x, queries, history = image.numpy().copy(), 0, []

    def scores(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            powers = np.exp(model(torch.from_numpy(x)[None])[0].numpy())
        return np.asarray(powers / powers.sum())

    p = scores(x)
    for k in order.tolist():
        for alpha in (-epsilon, epsilon) if p.argmax() == label else ():
            tried = x.copy()
            tried.reshape(-1)[k] = np.clip(tried.reshape(-1)[k] + alpha, 0, 1)
            q, queries = scores(tried), queries + 1
            if q[label] < p[label]:
                x, p = tried, q
                break
        history.append(float(p[label]))
    return x, history, queries


def test_each_image_is_attacked_as_by_the_papers_algorithm(network: nn.Module, images: Tensor) -> None:
    labels = network(images).argmax(1)
    order = torch.randperm(27, generator=torch.Generator().manual_seed(3))
    result = simba(network, images, labels, epsilon=0.1, max_steps=27, order=order)
    assert 0 < result.success.sum() < len(images)
    for n, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        x, history, queries = algorithm_1(network, image, label, order, 0.1)
        np.testing.assert_array_equal(result.adversarial[n].numpy(), x)
        np.testing.assert_allclose(result.probabilities[n].numpy(), history, rtol=0, atol=PROBABILITY)
        assert result.num_queries[n] == queries


@pytest.mark.parametrize("direction", ["first", "better"])
@pytest.mark.parametrize("stop", [True, False])
def test_an_image_is_attacked_alike_alone_and_in_a_batch(
    network: nn.Module, images: Tensor, direction: str, stop: bool
) -> None:
    labels = network(images).argmax(1)
    options: dict[str, Any] = {"epsilon": 0.3, "max_steps": 20, "order": torch.arange(27).flip(0)}
    options |= {"direction": direction, "stop_when_misclassified": stop}
    batch = simba(network, images, labels, **options)
    for n in range(len(images)):
        alone = simba(network, images[n : n + 1], labels[n : n + 1], **options)
        assert torch.equal(batch.adversarial[n], alone.adversarial[0])
        for name in ("successes", "queries", "l2", "linf"):
            assert torch.equal(getattr(batch, name)[n], getattr(alone, name)[0]), name


def test_the_histories_are_consistent(network: nn.Module, images: Tensor) -> None:
    labels = network(images).argmax(1)
    original = images.clone()
    result = simba(network, images, labels, epsilon=0.3, max_steps=20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, original)
    assert (result.probabilities.diff(dim=1) <= 0).all()
    logits = network(result.adversarial).detach()
    final = logits.softmax(1)[torch.arange(len(images)), labels]
    torch.testing.assert_close(result.probabilities[:, -1], final, rtol=0, atol=PROBABILITY)
    assert torch.equal(result.success, logits.argmax(1) != labels)
    assert (result.queries[result.successes.roll(1, dims=1) & result.successes] == 0).all()
    change = (result.adversarial - images).flatten(1)
    assert (change.norm(dim=1) <= 0.3 * 20**0.5 + 1e-12).all()
    assert (change.abs() <= 0.3 + 1e-12).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1


def test_queries_are_the_rows_that_the_model_saw(network: nn.Module, images: Tensor) -> None:
    seen = []

    def count(x: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.as_tensor(network(x))

    labels = network(images).argmax(1)
    result = simba(count, images, labels, epsilon=0.3, max_steps=20)
    assert result.num_queries.sum() == sum(seen[1:])
    assert seen[0] == len(images)


def test_an_image_that_is_misclassified_already_is_left_alone(network: nn.Module, images: Tensor) -> None:
    labels = (network(images).argmax(1) + 1) % 4
    result = simba(network, images, labels, epsilon=0.3, max_steps=5)
    assert torch.equal(result.adversarial, images)
    assert result.successes.all()
    assert not result.queries.any()


def test_the_order_is_drawn_by_the_generator_and_each_coordinate_once(network: nn.Module, images: Tensor) -> None:
    labels = network(images).argmax(1)

    def attack(seed: int) -> SimbaResult:
        generator = torch.Generator().manual_seed(seed)
        return simba(network, images, labels, epsilon=0.05, max_steps=1000, generator=generator)

    assert torch.equal(attack(0).adversarial, attack(0).adversarial)
    assert not torch.equal(attack(0).probabilities, attack(1).probabilities)
    assert attack(0).queries.shape == (12, 27)
    assert (attack(0).adversarial - images).abs().max() <= 0.05 + 1e-12


def test_a_model_that_is_sure_to_the_last_digit_is_attacked(images: Tensor) -> None:
    weight = torch.ones(27, 2) * torch.tensor([1.0, -1.0])
    few = images.float()
    assert ((few.flatten(1) @ weight).softmax(1)[:, 0] == 1).all()
    result = simba(lambda x: x.flatten(1) @ weight, few, torch.zeros(12).long(), epsilon=0.2, max_steps=27)
    assert (result.adversarial < few).flatten(1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_pixels_of_any_range_and_dtype(dtype: torch.dtype) -> None:
    images = torch.tensor([[-1.0, 0.0], [1.0, -0.5]], dtype=dtype)
    weight = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=dtype)
    labels, order = torch.tensor([1, 0]), torch.arange(2)
    options: dict[str, Any] = {"epsilon": 1.5, "max_steps": 2, "order": order, "pixel_range": (-1.0, 1.0)}
    result = simba(lambda x: x @ weight + 9, images, labels, **options)
    assert result.adversarial.dtype == dtype
    assert result.adversarial.tolist() == [[0.5, 0.0], [-0.5, -0.5]]
    assert result.num_queries.tolist() == [2, 1]


GOOD: dict[str, Any] = {
    "model_fn": lambda x: x.flatten(1)[:, :2],
    "images": torch.full((3, 1, 2, 2), 0.5),
    "labels": torch.tensor([0, 1, 0]),
    "epsilon": 0.1,
    "max_steps": 2,
}
SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"epsilon": 0.0}, r"epsilon must be in \(0, 1\], in the units of the pixels; got 0.0"),
    ({"epsilon": 8}, r"epsilon must be in \(0, 1\]"),
    ({"epsilon": float("nan")}, "got nan"),
    ({"max_steps": 0}, "max_steps must be at least 1; got 0"),
    ({"pixel_range": (1.0, 0.0)}, r"pixel_range must be \(least, largest\)"),
    ({"direction": "worse"}, "'worse'; choose one of: better, first"),
    ({"order": torch.tensor([0, 0])}, "distinct integers from 0 to 3"),
    ({"order": torch.tensor([4])}, "distinct integers from 0 to 3"),
    ({"order": torch.tensor([-1])}, "distinct integers from 0 to 3"),
    ({"order": torch.tensor([0.0])}, "distinct integers from 0 to 3"),
    ({"order": torch.zeros(0).long()}, "distinct integers from 0 to 3"),
    ({"order": torch.arange(4)[None]}, r"shape \(1, 4\)"),
]
INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"images": torch.ones(3, 1, 2, 2).byte()}, "floating dtype"),
    ({"images": torch.zeros(0, 1, 2, 2)}, "at least one"),
    ({"images": torch.zeros(3)}, r"images \(N, \*pixels\)"),
    ({"images": torch.full((3, 1, 2, 2), 255.0)}, "pixels from 0 to 1; got 255 to 255: rescale them"),
    ({"images": torch.full((3, 1, 2, 2), torch.nan)}, "pixels from 0 to 1; got nan"),
    ({"labels": torch.tensor([0, 1])}, r"labels \(3,\) of int64"),
    ({"labels": torch.tensor([0.0, 1.0, 0.0])}, r"labels \(3,\) of int64"),
    ({"labels": torch.tensor([0, -1, 0])}, "none negative"),
    ({"labels": torch.tensor([0, 2, 0])}, "labels below 2, the model's classes; got 2"),
    ({"model_fn": lambda x: x.flatten(1)[:, :1]}, r"logits \(3, K\) with K >= 2"),
    ({"model_fn": lambda x: x.flatten(1)[:1]}, r"logits \(3, K\) with K >= 2"),
    ({"model_fn": lambda x: x.flatten(1) * torch.nan}, "got NaN"),
]


@pytest.mark.parametrize(("change", "message"), SETTINGS)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        simba(**(GOOD | change))


@pytest.mark.parametrize(("change", "message"), INPUTS)
def test_impossible_inputs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simba(**(GOOD | change))
