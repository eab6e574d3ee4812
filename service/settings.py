"""What an operator may choose: one model, one address, and the limits that keep strangers' requests harmless.

Each setting is a flag of `augserve serve`, a field here and an environment variable AUGSERVE_<NAME>.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from augserve.errors import ConfigurationError
from augserve.runtime import DEFAULT_PROVIDERS

DEFAULT_PORT = 8000
DEFAULT_MAX_IMAGE_PIXELS = 16 * 2**20
PILLOW_MAX_PIXELS = 89_478_485  # above it Pillow itself warns of a decompression bomb


class Settings(BaseSettings):
    """The settings of one server; `read_settings` builds it with readable errors.

    Args:
        model: the .onnx file to serve; its stem is the model's name.
        host: the address to listen on.
        port: the TCP port; 0 lets the system choose one.
        max_body_bytes: the largest request body.
        max_rows: the most rows in one request.
        max_image_pixels: the most pixels (width x height) of an encoded image, checked before it is decoded.
        queue_limit: requests that may wait while `workers` others run; one more is answered 429.
        workers: threads that run the model, one request each.
        threads: threads inside one operator of ONNX Runtime; 0 means one a core.
        providers: ONNX Runtime execution providers in order of preference, separated by commas.
        request_timeout_s: seconds that a request may wait, from its first byte to the start of its run.

    Example:
        >>> Settings(model="model.onnx", port=9000).queue_limit
        64
    """

    model_config = SettingsConfigDict(env_prefix="AUGSERVE_", extra="forbid", frozen=True, env_ignore_empty=True)

    model: Path
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    max_body_bytes: Annotated[int, Field(ge=1)] = 32 * 2**20
    max_rows: Annotated[int, Field(ge=1)] = 4096
    max_image_pixels: Annotated[int, Field(ge=1, le=PILLOW_MAX_PIXELS)] = DEFAULT_MAX_IMAGE_PIXELS
    queue_limit: Annotated[int, Field(ge=0)] = 64
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    threads: Annotated[int, Field(ge=0)] = 0
    providers: Annotated[tuple[str, ...], NoDecode, Field(min_length=1)] = DEFAULT_PROVIDERS
    request_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0

    @field_validator("providers", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: object) -> object:
        # Kubernetes sets AUGSERVE_PORT=tcp://... in every pod beside a Service named "augserve".
        return DEFAULT_PORT if isinstance(value, str) and value.startswith("tcp://") else value


def read_settings(**given: Any) -> Settings:
    """Build the settings from what is given, then the environment, then the defaults.

    Args:
        **given: fields of `Settings`; a field that is None counts as not given.

    Returns:
        The settings, checked.

    Raises:
        ConfigurationError: a missing model, a value outside its range, or an unknown name.

    Example:
        >>> read_settings(model="model.onnx", port=None).port
        8000
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "missing":
            message = f"no {name} given; name one, or set AUGSERVE_{name.upper()}"
        elif first["type"] == "extra_forbidden":
            message = f"unknown setting {name!r}; choose from: {', '.join(sorted(Settings.model_fields))}"
        else:
            message = f"setting {name} (AUGSERVE_{name.upper()}): {first['msg']}; got {first['input']!r}"
        raise ConfigurationError(message) from None
