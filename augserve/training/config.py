"""Everything that decides a training run, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from augserve.data import list_datasets
from augserve.errors import ConfigurationError, RunError, unknown_choice
from augserve.models import list_models
from augserve.norms import norm_factory

SCHEDULES = ("cosine", "step")
DEVICES = ("auto", "cpu", "cuda")

_LEARNING_RATES = {"digits": 0.1}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run.

    Args:
        data: name of the data set.
        data_dir: folder of the data set; None for sets that are built in.
        model: name of the network.
        norm: name of the norm.
        phi: AugNorm's exponent in [1, inf]; None takes the norm's default (1.5).
        p: RobustNorm's power; None takes the norm's default (0.2).
        conv_norm: whether every convolution is a ConvNorm2d as well.
        epochs: passes over the training part.
        batch_size: rows in a step.
        learning_rate: of SGD at its highest; None takes the data set's (0.1 for digits, whose epochs are few
            steps, else 0.2).
        momentum: of SGD.
        weight_decay: of SGD, on every parameter but a learned phi.
        schedule: "cosine" (a linear warm-up over the first fifth of the steps, then half a cosine to 0) or
            "step" (a tenth after half of the steps, a hundredth after three quarters).
        seed: of the initial weights, the order of the data and its augmentation.
        device: "cpu", "cuda" or "auto" (CUDA where there is one).

    Raises:
        ConfigurationError: an unknown name or a value out of range.

    Example:
        >>> TrainConfig(norm="aug", phi=1.25).norm_options
        {'phi': 1.25}
    """

    data: str = "digits"
    data_dir: str | None = None
    model: str = "resnet20"
    norm: str = "aug"
    phi: float | None = None
    p: float | None = None
    conv_norm: bool = False
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("data set", self.data, list_datasets()),
            ("model", self.model, list_models()),
            ("schedule", self.schedule, SCHEDULES),
            ("device", self.device, DEVICES),
        ):
            if value not in choices:
                raise unknown_choice(what, value, choices)
        norm_factory(self.norm, self.norm_options)
        for name, lowest in (("epochs", 1), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise ConfigurationError(f"{name} must be at least {lowest}; got {getattr(self, name)}")
        for name, rate in (("momentum", self.momentum), ("weight_decay", self.weight_decay)):
            if not (rate >= 0 and math.isfinite(rate)):
                raise ConfigurationError(f"{name} must be a finite number >= 0; got {rate}")
        if not (self.peak_learning_rate > 0 and math.isfinite(self.peak_learning_rate)):
            raise ConfigurationError(f"learning_rate must be a finite number > 0; got {self.learning_rate}")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate as given, or the data set's own."""
        return _LEARNING_RATES.get(self.data, 0.2) if self.learning_rate is None else self.learning_rate

    @property
    def norm_options(self) -> dict[str, float]:
        """The options of the norm that were given."""
        return {name: value for name in ("phi", "p") if (value := getattr(self, name)) is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; an infinite phi becomes the string "inf"."""
        values = asdict(self)
        if self.phi is not None and math.isinf(self.phi):
            values["phi"] = "inf"
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Read what `to_json` wrote; settings that this version does not know are an error."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise RunError(f"settings of a newer augserve: {', '.join(sorted(unknown))}; upgrade augserve")
        if values.get("phi") == "inf":
            values = {**values, "phi": math.inf}
        return cls(**values)
