"""How many parameters a network has, how deep it is, and what its state dict calls them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from augserve.models import build_model, list_models
from augserve.models.resnet import ProjectionBlock
from tests.models.counts import COUNTS

PARAMETERS = {  # CIFAR form, 10 classes
    "resnet20": 269_722,
    "resnet38": 561_370,
    "resnet50-cifar": 755_802,
    "resnet18": 11_173_962,
    "vgg11": 9_231_114,
    "vgg16": 14_728_266,
    "vgg19": 20_040_522,
    "mobilenet-v2": 2_236_682,
    "densenet121": 6_956_298,
    "efficientnet-b0": 4_020_358,
}
PUBLISHED = {  # classes, millions as published, decimals
    "resnet20": (10, 0.27, 2),  # He et al. 2016, table 6
    "resnet18": (1000, 11.689512, 6),
    "vgg11": (1000, 133, 0),  # Simonyan and Zisserman 2015, table 2
    "vgg16": (1000, 138, 0),
    "vgg19": (1000, 144, 0),
    "mobilenet-v2": (1000, 3.504872, 6),
    "densenet121": (1000, 7.978856, 6),
    "efficientnet-b0": (1000, 5.288548, 6),  # Tan and Le 2019, table 2: 5.3
}
# Of the names and shapes, with norm batch and 10 classes: checkpoints are loaded by them. A new one here means that
# old checkpoints no longer load.
NAMES = {
    "resnet20": "f4efbea34c583d90",
    "resnet38": "cd770bcb581e7062",
    "resnet50-cifar": "e0ebda1eadc7bc65",
    "resnet18": "9b4e894212ceda96",
    "vgg11": "1a260da5817a840c",
    "vgg16": "08dfe27c0935ecfa",
    "vgg19": "de958bdd8e388442",
    "mobilenet-v2": "15e7b3d917309b3d",
    "densenet121": "d921cab757d9f6af",
    "efficientnet-b0": "f333ae8ed1ff75ec",
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "models.md"


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_counted() -> None:
    assert set(COUNTS) == set(PARAMETERS) == set(NAMES) == set(list_models())


@pytest.mark.parametrize("name", list_models())
def test_parameters_are_those_of_the_papers_tables(name: str) -> None:
    assert parameters(build_model(name)) == COUNTS[name](10, False) == PARAMETERS[name]
    assert parameters(build_model(name, num_classes=1000)) == COUNTS[name](1000, False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tables_give_the_published_numbers(name: str) -> None:
    classes, millions, decimals = PUBLISHED[name]
    assert round(COUNTS[name](classes, True) / 1e6, decimals) == millions


@pytest.mark.parametrize("name", list_models())
def test_in_channels_change_the_stem_alone(name: str) -> None:
    grey, colour = (build_model(name, in_channels=c).state_dict() for c in (1, 3))
    changed = [key for key in colour if grey[key].shape != colour[key].shape]
    assert changed == [next(iter(colour))]
    assert colour[changed[0]].shape[1] == 3


@pytest.mark.parametrize("name", [n for n in list_models() if re.search(r"\d\d", n)])
def test_depth_is_what_the_name_says(name: str) -> None:
    model = build_model(name)
    aside = {id(m) for b in model.modules() if isinstance(b, ProjectionBlock) for m in b.projection.modules()}
    deep = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and id(m) not in aside]
    left_out = 2 if name.startswith("vgg") else 0  # of three linear layers, the first two
    assert len(deep) + left_out == int(re.findall(r"\d\d+", name)[0])


@pytest.mark.parametrize("name", list_models())
def test_state_dict_names_and_shapes_stay(name: str) -> None:
    told = "\n".join(f"{key} {tuple(value.shape)}" for key, value in build_model(name).state_dict().items())
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == NAMES[name], told


@pytest.mark.parametrize("name", list_models())
def test_documented_numbers_are_right(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, whose interpreter is chosen later

    cells = re.search(rf"^\| `{name}` \|(.*)\|$", DOCUMENT.read_text(), re.MULTILINE)
    assert cells is not None
    parameters_told, work_told = (cell.strip() for cell in cells[1].split("|")[2:4])
    assert int(parameters_told.replace(",", "")) == PARAMETERS[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(name).eval()(torch.zeros(1, 3, 32, 32))
    assert float(work_told) == pytest.approx(counter.get_total_flops() / 2e6, abs=0.5)
