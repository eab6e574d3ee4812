"""What an augserve .onnx file says about itself.

Stored as one JSON document under the key ``augserve`` of the file's metadata_props, written by the exporter and
read by everything that opens the file. A change of meaning raises FORMAT_VERSION.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from augserve.errors import ModelFileError

METADATA_KEY = "augserve"
FORMAT_VERSION = 1
UNSEALED = "0" * 64
MAX_CHARACTERS = 2**24  # of the document; one with 21,000 classes has half a million

FileMode = Literal["tracked", "batch", "adaptive"]
Precision = Literal["float32", "float16", "int8"]
FILE_MODES: tuple[str, ...] = ("adaptive", "batch", "tracked")
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    @field_validator("*")
    @classmethod
    def _printable(cls, value: object) -> object:
        """Refuse names that would write over other lines of a terminal, or steer it."""
        for text in _texts(value):
            if found := _STEERING.search(text):
                raise ValueError(f"expected text of one line without control characters; got {found.group()!r}")
        return value


class NormLayer(_Schema):
    """One normalization layer of the network.

    positions is L, the values that one row gives to one channel at the exported input size: a group of one row
    has statistics of its own only where L > 1.
    """

    name: str
    kind: str
    num_features: Annotated[int, Field(ge=1)]
    positions: Annotated[int, Field(ge=1)]
    options: dict[str, str | int | float] = {}


class Preprocessing(_Schema):
    """How an image becomes a row: resize to height x width, divide by 255, subtract mean, divide by std."""

    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    color: Literal["RGB", "L"]
    mean: list[FiniteFloat]
    std: list[Annotated[FiniteFloat, Field(gt=0)]]

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Preprocessing:
        channels = len(self.color) if self.color == "RGB" else 1
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"color {self.color} takes {channels} means and standard deviations")
        return self


class ParityCheck(_Schema):
    """torch against ONNX Runtime on one batch of real rows; differences are of the logits.

    native tells whether the native operators took part; max_relative_difference is of the largest logit.
    """

    name: str
    rows: int
    native: bool = False
    max_abs_difference: float
    max_relative_difference: float = 0.0
    top1_agreement: float
    repeats_identical: bool


class Accuracy(_Schema):
    """Shares of right answers on validation rows, tracked: this file's, and the same network's in float32."""

    rows: Annotated[int, Field(ge=1)]
    file: float
    float32: float


class TensorSpec(_Schema):
    """An input or output of a converted file; dtype is NumPy's name.

    shape leaves out the axis of the rows, and has null where any size is taken. An input without rows is an option
    of the whole run.
    """

    name: str
    dtype: str
    shape: list[Annotated[int, Field(ge=0)] | None]
    rows: bool = True


class Source(_Schema):
    """The file that a converted one was made of."""

    file: str
    sha256: str
    producer: str
    opset: int


class Manifest(_Schema):
    """The whole document.

    shape is that of one row, without the batch dimension (C, H, W); sizes are all (H, W) that a file of several
    image sizes takes, shape's first. default_mode is what an adaptive file is asked for when a request says
    nothing; the other files have one mode only.

    inputs, outputs and source are those of a converted file, which keeps the names that it came with; an exported
    one has none of them. A converted file has a shape where its one input is float32 of fixed size, and classes
    where its one output is float32 (N, K).
    """

    format_version: int = FORMAT_VERSION
    mode: FileMode
    default_mode: Literal["tracked", "batch"] = "tracked"
    architecture: str
    classes: list[str]
    shape: list[Annotated[int, Field(ge=1)]]
    sizes: list[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]] = []
    preprocessing: Preprocessing | None = None
    norms: list[NormLayer] = []
    opset: int
    versions: dict[str, str] = {}
    checkpoint_sha256: str | None = None
    content_sha256: str = UNSEALED
    data: str | None = None
    precision: Precision = "float32"
    accuracy: Accuracy | None = None
    parity: list[ParityCheck] = []
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    source: Source | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """The statistics modes that a request may ask this file for."""
        return ("tracked", "batch", "blend") if self.mode == "adaptive" else (self.mode,)

    @property
    def shapes(self) -> list[list[int]]:
        """The shapes that a row may have."""
        return [[self.shape[0], *size] for size in self.sizes] if self.sizes else [self.shape]

    @property
    def min_positions(self) -> int:
        """The smallest L of any norm layer; a network without norm layers has no such limit (returns 2)."""
        return min((layer.positions for layer in self.norms), default=2)


def parse_manifest(text: str, path: object) -> Manifest:
    """Read the JSON document of the file at `path`; the path is only named in errors.

    Raises:
        ModelFileError: not valid, too long, or of a newer format.
    """
    if len(text) > MAX_CHARACTERS:
        raise ModelFileError(f"{path}: expected a manifest of at most {MAX_CHARACTERS} characters; got {len(text)}")
    _refuse_newer(text, path)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ModelFileError(
            f"{path}: its manifest is damaged ({where}: {first['msg']}); export the file again"
        ) from None


def _texts(value: object) -> Iterator[str]:
    """Yield the texts of a field: its value, or those in its list or table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.items():
            yield from _texts(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _texts(entry)


def _refuse_newer(text: str, path: object) -> None:
    """Look at the version before the rest, which may mean something else in a newer format."""
    try:
        version = json.loads(text)["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # what is wrong with it, the schema says better
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: manifest format {version} is newer than {FORMAT_VERSION}, the newest that is read "
            "here; upgrade augserve"
        )
