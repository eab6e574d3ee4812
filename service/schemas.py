"""What a request may say and what an answer holds: settings, and the JSON that comes back.

The settings are checked once, here, for JSON bodies, form fields and callers in the same process alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import NotRequired, TypedDict

from augserve.errors import ConfigurationError
from augserve.statistics import Remainder

Part = Literal["label", "probabilities", "logits"]


class Blend(BaseModel):
    """A mixture of both statistics: lambda itself, or the rows that the tracked statistics count for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tracked_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    prior: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class PredictSettings(BaseModel):
    """How the rows of one request are to be normalised, and what is wanted back.

    Args:
        model: the model's name; None means the one that is served.
        batch_size: rows in a statistics group, taken in order; None puts all rows into one group.
        remainder: what becomes of the last rows that fill no group: own, merge, drop or error.
        tracking: True for tracked statistics, False for the group's own, None for the model's default.
        blend: instead of tracking, a mixture of both.
        top_k: also the k most probable classes of each row (all of them when there are fewer).
        returns: parts of each prediction ("return" in a request): label, probabilities, logits.
        compare: also the prediction of each row with tracked statistics, and how often the two differ.

    Example:
        >>> PredictSettings(batch_size=32, tracking=False).remainder
        'own'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    model: str | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    remainder: Remainder = "own"
    tracking: bool | None = None
    blend: Blend | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    returns: Annotated[list[Part], Field(min_length=1, alias="return")] = ["label", "probabilities"]
    compare: bool = False


FIELDS = tuple(field.alias or name for name, field in PredictSettings.model_fields.items())


def parse_settings(data: Mapping[str, Any], *, known: tuple[str, ...] = FIELDS, strict: bool) -> PredictSettings:
    """Check the settings of one request.

    Args:
        data: the request's fields without its rows.
        known: the names to list when one is unknown.
        strict: True for JSON, whose values carry their type; False for form fields, which are text.

    Returns:
        The settings.

    Raises:
        ConfigurationError: an unknown field, a value of the wrong type or range, or two settings at odds.
    """
    for name in data:
        if name not in FIELDS:
            raise ConfigurationError(f"unknown field {shorten(name)}; the fields are: {', '.join(known)}")
    try:
        settings = PredictSettings.model_validate(data, strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = ", ".join(Blend.model_fields)
            raise ConfigurationError(f"unknown field {shorten(where)}; blend takes one of: {hint}") from None
        raise ConfigurationError(f"{where}: {first['msg']}; got {shorten(first['input'])}") from None
    if settings.tracking is not None and settings.blend is not None:
        raise ConfigurationError("expected tracking or blend; got both: leave one of them out")
    return settings


def shorten(value: object, limit: int = 80) -> str:
    """Return repr(value), cut to `limit` characters, so that an error never repeats a whole body."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:limit] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class TopClass(TypedDict):
    """One of the most probable classes of a row."""

    index: int
    label: str
    probability: float


class Prediction(TypedDict, total=False):
    """What was predicted for one row; only the parts that were asked for."""

    index: int
    label: str
    probability: float
    probabilities: list[float]
    logits: list[float]
    top_k: list[TopClass]
    tracked: TopClass


class StatisticsUsed(TypedDict):
    """How the rows were normalised: tracked_weight and size of each group; `dropped` holds row indices."""

    mode: str
    tracked_weight: list[float]
    groups: list[int]
    remainder: str
    dropped: list[int]


class Comparison(TypedDict):
    """Predictions beside those of tracked statistics.

    disagreement: share of the rows whose most probable class differs; rows: which they are; max_difference: the
    largest difference of a probability.
    """

    disagreement: float
    rows: list[int]
    max_difference: float


class Timing(TypedDict):
    """Milliseconds: waiting for a thread to run in, running the model, everything."""

    queue: float
    run: float
    total: float


class Answer(TypedDict):
    """The answer to one request; predictions are in the order of its rows."""

    comparison: NotRequired[Comparison]
    predictions: list[Prediction]
    model: str
    model_version: str
    statistics: StatisticsUsed
    warnings: list[str]
    timing_ms: Timing


class ErrorBody(TypedDict):
    """Every error: what was expected and what came, and a name for programs."""

    error: str
    code: str
