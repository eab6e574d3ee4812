"""The settings of a run: whatever cannot be is refused before anything is loaded, with the choices listed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augserve.errors import ConfigurationError, RunError
from augserve.training import SCHEDULES, TrainConfig


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("data", "imagenet", "unknown data set 'imagenet'; choose one of: cifar10, digits, fashion-mnist"),
        ("model", "resnet9", "unknown model 'resnet9'; choose one of: .*resnet20"),
        ("norm", "foo", "unknown norm 'foo'; choose one of: aug, aug-learned, batch, .*none, oni, robust"),
        ("schedule", "linear", "unknown schedule 'linear'; choose one of: cosine, step"),
        ("device", "tpu", "unknown device 'tpu'; choose one of: auto, cpu, cuda"),
        ("data", "", "unknown data set ''"),
        ("norm", "Batch", "unknown norm 'Batch'"),
        ("epochs", 0, "epochs must be at least 1; got 0"),
        ("epochs", -1, "epochs must be at least 1; got -1"),
        ("batch_size", 1, "batch_size must be at least 2; got 1"),
        ("seed", -1, "seed must be at least 0; got -1"),
        ("learning_rate", 0.0, "learning_rate must be a finite number > 0; got 0"),
        ("learning_rate", -0.1, "learning_rate must be a finite number > 0; got -0.1"),
        ("learning_rate", math.inf, "learning_rate must be a finite number > 0; got inf"),
        ("learning_rate", math.nan, "learning_rate must be a finite number > 0; got nan"),
        ("momentum", -0.1, "momentum must be"),
        ("momentum", math.inf, "momentum must be"),
        ("weight_decay", -1e-4, "weight_decay must be"),
        ("weight_decay", math.nan, "weight_decay must be"),
        ("phi", 0.9, "phi"),
        ("phi", -math.inf, "phi"),
        ("phi", math.nan, "phi"),
    ],
)
def test_impossible_settings_are_refused(name: str, value: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("norm", "option", "words"),
    [
        ("batch", {"phi": 1.5}, "norm 'batch' does not take 'phi'; it takes"),
        ("none", {"phi": 1.5}, "norm 'none' does not take 'phi'; it takes no option"),
        ("median", {"phi": 1.5}, "norm 'median' does not take 'phi'"),
        ("aug", {"p": 0.2}, "norm 'aug' does not take 'p'; it takes phi"),
        ("robust", {"p": -1.0}, "p"),
        ("robust", {"p": math.nan}, "p"),
    ],
)
def test_options_belong_to_their_norm(norm: str, option: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        TrainConfig(norm=norm, **option)


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.0, "weight_decay": 0.0},
        {"epochs": 1, "batch_size": 2, "seed": 0},
        {"phi": 1.0},
        {"phi": math.inf},
        {"norm": "robust", "p": 0.1},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(settings: dict[str, object]) -> None:
    assert asdict(TrainConfig(**settings)).items() >= settings.items()


def test_only_given_options_reach_the_norm() -> None:
    assert TrainConfig(norm="aug").norm_options == {}
    assert TrainConfig(norm="aug", phi=1.25).norm_options == {"phi": 1.25}
    assert TrainConfig(norm="robust", p=0.1).norm_options == {"p": 0.1}


@given(
    st.builds(
        TrainConfig,
        data_dir=st.none() | st.text(),
        phi=st.none() | st.floats(1, 100) | st.just(math.inf),
        epochs=st.integers(1, 10**6),
        learning_rate=st.floats(1e-300, 1e300),
        schedule=st.sampled_from(SCHEDULES),
        seed=st.integers(0, 2**63 - 1),
    )
)
def test_json_round_trip_keeps_every_setting(config: TrainConfig) -> None:
    text = json.dumps(config.to_json(), allow_nan=False)
    assert TrainConfig.from_json(json.loads(text)) == config


def test_settings_of_a_newer_version_are_named() -> None:
    with pytest.raises(RunError, match="settings of a newer augserve: mixup, warp; upgrade"):
        TrainConfig.from_json({**TrainConfig().to_json(), "warp": 1, "mixup": 0.2})
