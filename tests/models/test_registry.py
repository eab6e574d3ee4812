"""One contract for every model of the registry, with every norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from augserve.errors import ConfigurationError
from augserve.models import build_model, list_models
from augserve.norms import ConvNorm2d, list_norms

pytestmark = pytest.mark.slow

SMALL = ("resnet20", "resnet38", "resnet50-cifar")  # ONI of the others' weights takes seconds
CASES = [(name, norm) for name in list_models() for norm in list_norms() if norm != "oni" or name in SMALL]
BARE = ("none", "oni", "spectral")  # no activation is normalized: in deep networks gradients may come to 0


def step(model: nn.Module, may_vanish: bool = False) -> None:
    """One training step of a model for one channel and seven classes; every parameter has its part in it."""
    logits = model(torch.randn(4, 1, 16, 16))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        if parameter.numel() and not (may_vanish or name.endswith("conv.bias")):  # a norm takes that bias away
            assert bool(parameter.grad.any()), name
    torch.optim.SGD(model.parameters(), 1e-3).step()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_every_model_takes_a_training_step_with_every_norm(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model, twin = (build_model(name, 7, 1, norm) for _ in range(2))
    step(model, may_vanish=norm in BARE)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        logits = model.eval()(x)
        assert bool(torch.isfinite(logits).all())
        assert torch.equal(twin.eval()(x), logits)


@pytest.mark.parametrize("name", list_models())
def test_conv_norm_reaches_every_convolution(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 7, 1, conv_norm=True)
    assert all(type(m) is ConvNorm2d for m in model.modules() if isinstance(m, nn.Conv2d))
    step(model)


@pytest.mark.parametrize("name", [name for name in list_models() if name not in SMALL])
def test_large_models_run_with_oni(name: str) -> None:
    with torch.no_grad():
        logits = build_model(name, 7, 1, "oni", {"num_steps": 1})(torch.randn(4, 1, 16, 16))
    assert logits.shape == (4, 7)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", list_models())
def test_every_model_learns_eight_rows_by_heart(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=4, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    rows, labels = torch.randn(8, 1, 16, 16), torch.arange(8) % 4
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(model(rows), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", list_models())
def test_sizes_that_images_have(name: str) -> None:
    model = build_model(name).eval()
    for size in [(32, 32), (28, 28), (16, 16), (8, 8), (64, 48), (33, 17), (1, 5)]:
        with torch.no_grad():
            logits = model(torch.randn(2, 3, *size))
        assert logits.shape == (2, 10), size
        assert bool(torch.isfinite(logits).all()), size


@pytest.mark.parametrize("name", list_models())
def test_an_image_has_no_say_in_another_ones_logits(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name).eval().double()  # in float32 torch's convolutions round by the number of rows
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize("name", list_models())
def test_the_same_seed_draws_the_same_network_and_the_same_training(name: str) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        model = build_model(name, num_classes=2, in_channels=1)
        drawn.append(model(torch.ones(3, 1, 8, 8) * torch.arange(3.0)[:, None, None, None]))
    assert torch.equal(*drawn)


def test_unknown_names_and_numbers_below_one_are_refused() -> None:
    choices = ", ".join(sorted(list_models()))
    with pytest.raises(ConfigurationError, match=f"unknown model 'resnet21'; choose one of: {choices}$"):
        build_model("resnet21")
    with pytest.raises(ConfigurationError, match="unknown norm"):
        build_model("resnet20", norm="nope")
    with pytest.raises(ConfigurationError, match="num_classes must be at least 1; got 0"):
        build_model("resnet20", num_classes=0)
    with pytest.raises(ConfigurationError, match="in_channels must be at least 1; got -1"):
        build_model("resnet20", in_channels=-1)
