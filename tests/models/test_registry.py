"""One contract for every model of the registry, with every norm."""

from __future__ import annotations

import pytest
import torch

from augserve.errors import ConfigurationError
from augserve.models import build_model, list_models
from augserve.norms import list_norms

PARAMETERS = {"resnet20": 269_722}  # He et al. 2016: 0.27 million; 10 classes, shortcuts without parameters


@pytest.mark.parametrize("norm", list_norms())
@pytest.mark.parametrize("name", list_models())
def test_every_model_trains_a_step_with_every_norm(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=7, in_channels=1, norm=norm)
    before = [p.clone() for p in model.parameters()]
    logits = model(torch.randn(4, 1, 16, 16))
    assert logits.shape == (4, 7)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert all(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True) if old.numel()
    )
    twin = build_model(name, num_classes=7, in_channels=1, norm=norm)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(twin.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", list_models())
def test_parameter_counts_are_the_papers(name: str) -> None:
    assert sum(p.numel() for p in build_model(name).parameters()) == PARAMETERS[name]


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(ConfigurationError, match="unknown model 'resnet21'; choose one of: resnet20"):
        build_model("resnet21")
    with pytest.raises(ConfigurationError, match="unknown norm"):
        build_model("resnet20", norm="nope")


def test_depth_has_to_be_6n_plus_2() -> None:
    from augserve.models.resnet_cifar import ResNetCifar

    with pytest.raises(ConfigurationError, match="6n"):
        ResNetCifar(21, 10, 3, torch.nn.BatchNorm2d)
