"""What an operator may choose: models, one address, and the limits that keep strangers' requests harmless.

Each setting is a flag of `augserve serve`, a field here, an environment variable AUGSERVE_<NAME>, and a key of the
TOML file that `config` names; what stands first in this list wins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from augserve.errors import ConfigurationError
from augserve.runtime import DEFAULT_PROVIDERS
from augserve.service.model.placement import usable_cores

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same, for Python 3.10

DEFAULT_PORT = 8000
CPU = "CPUExecutionProvider"
PREFERRED_ON_CPU = 64
DEFAULT_MAX_IMAGE_PIXELS = 16 * 2**20
PILLOW_MAX_PIXELS = 89_478_485  # above it Pillow itself warns of a decompression bomb


class Settings(BaseSettings):
    """The settings of one server; `read_settings` builds it with readable errors.

    Args:
        model: .onnx files and repository folders (see `service.repository`), in one text parted by colons.
        host: the address to listen on.
        port: the TCP port; 0 lets the system choose one.
        max_body_bytes: the largest request body.
        max_rows: the most rows in one request.
        max_image_pixels: the most pixels (width x height) of an encoded image, checked before it is decoded.
        queue_limit: requests that may wait while `workers` runs are in progress; one more is answered 429.
        max_batch_size: the most rows in one run, of all requests in it together; also of one statistics group.
        preferred_batch_size: rows that fill a run: no more are collected. Left out: 64 on a CPU, for the sake of
            its caches, else max_batch_size.
        batch_timeout_s: seconds that a request waits for others to share its run, unless the server is idle.
        workers: runs in progress at a time, each with all `threads`. Left out: 1; on a CPU of two cores 2, while
            several requests wait, with a core each.
        threads: threads inside one operator of ONNX Runtime; 0 means one a core.
        providers: ONNX Runtime execution providers in order of preference, separated by commas.
        provider_fallback: whether a provider that does not start leaves the model to the next one.
        fold_tracked: whether requests with tracked statistics run on a graph of their own, norms folded away.
        warmup_sizes: rows of the runs before the first request, by commas; left out: 1 on a CPU, else 1, 2, 4 ..
            max_batch_size.
        request_timeout_s: seconds that a request may wait, from its first byte to the start of its run.
        repository_poll_s: seconds between two looks at the folders for models that came, changed or went; 0: never.
        repository_control: whether the Open Inference Protocol may load and unload models.
        api_keys_file: a file of keys, KEY or NAME:KEY in a line; where there are any, here or by commas in the
            environment's AUGSERVE_API_KEYS, requests must show one.
        metrics_open: whether /metrics asks for no key.
        access_log: whether each request is a line of JSON on stderr.

    Example:
        >>> Settings(model="model.onnx", port=9000).queue_limit
        128
    """

    model_config = SettingsConfigDict(env_prefix="AUGSERVE_", extra="forbid", frozen=True, env_ignore_empty=True)

    model: Annotated[tuple[Path, ...], NoDecode, Field(min_length=1)]
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    max_body_bytes: Annotated[int, Field(ge=1)] = 32 * 2**20
    max_rows: Annotated[int, Field(ge=1)] = 4096
    max_image_pixels: Annotated[int, Field(ge=1, le=PILLOW_MAX_PIXELS)] = DEFAULT_MAX_IMAGE_PIXELS
    queue_limit: Annotated[int, Field(ge=0)] = 128
    max_batch_size: Annotated[int, Field(ge=1)] = 256
    preferred_batch_size: Annotated[int, Field(ge=1)] | None = None
    batch_timeout_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    threads: Annotated[int, Field(ge=0)] = 0
    providers: Annotated[tuple[str, ...], NoDecode, Field(min_length=1)] = DEFAULT_PROVIDERS
    provider_fallback: bool = False
    fold_tracked: bool = True
    warmup_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, NoDecode] = None
    request_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    repository_poll_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    repository_control: bool = False
    api_keys_file: Path | None = None
    metrics_open: bool = False
    access_log: bool = False

    @field_validator("model", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            value = [value] if os.path.exists(value) else [part for part in value.split(os.pathsep) if part]
        return (value,) if isinstance(value, Path) else value

    @field_validator("warmup_sizes", mode="before")
    @classmethod
    def _split_sizes(cls, value: object) -> object:
        return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    def rows_of_a_run(self) -> int:
        """Return the rows that fill a run."""
        usual = PREFERRED_ON_CPU if self.providers[0] == CPU else self.max_batch_size
        return min(self.preferred_batch_size or usual, self.max_batch_size)

    def runs_at_a_time(self) -> int:
        """Return the most runs in progress at a time."""
        return self.workers or (2 if self.threads_beside() else 1)

    def threads_beside(self) -> int:
        """Return the threads of a run beside another one; 0 where it takes as many as one that is alone."""
        two = len(usable_cores()) == 2 and self.threads in (0, 2)
        return 1 if two and not self.workers and self.providers[0] == CPU else 0

    def warmup_rows(self) -> list[int]:
        """Return the numbers of rows to run before the first request."""
        if self.warmup_sizes is not None:
            return [min(size, self.max_batch_size) for size in self.warmup_sizes]
        if self.providers[0] == CPU:
            return [1]
        sizes = [1 << power for power in range(self.max_batch_size.bit_length())]
        return [*sizes, self.max_batch_size] if sizes[-1] != self.max_batch_size else sizes

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


def read_settings(config: str | Path | None = None, **given: Any) -> Settings:
    """Build the settings from what is given, then the environment, then the file, then the defaults.

    Args:
        config: a TOML file of settings; None means the file that AUGSERVE_CONFIG names, if any.
        **given: fields of `Settings`; a field that is None counts as not given.

    Returns:
        The settings, checked.

    Raises:
        ConfigurationError: a missing model, a value outside its range, an unknown name, or a file that cannot be
            read.

    Example:
        >>> read_settings(model="model.onnx", port=None).port
        8000
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    config = config or os.environ.get("AUGSERVE_CONFIG")
    try:
        return Settings(**{**(_read_file(config) if config else {}), **chosen})
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


def _read_file(config: str | Path) -> dict[str, Any]:
    """Return the settings of a TOML file that the environment does not set."""
    if not os.path.isfile(config):
        raise ConfigurationError(f"{config}: expected a TOML file of settings, found nothing")
    try:
        values = tomllib.loads(Path(config).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"{config}: expected a TOML file of settings ({error})") from None
    set_outside = {name.upper() for name, value in os.environ.items() if value}
    return {name: value for name, value in values.items() if f"AUGSERVE_{name.upper()}" not in set_outside}
