"""What the requests of a load are: their statistics modes, rows and bodies, as bytes made beforehand."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import orjson

from augserve.errors import ConfigurationError, unknown_choice

MIXED = "mixed"
WEIGHTS = {"tracked": 1.0, "batch": 0.0, "blend": 0.5}  # of the tracked statistics
MODES = (*WEIGHTS, MIXED)
BODIES = {"json": "application/json", "npy": "application/octet-stream"}
DIFFERENT = 12  # requests of each mode, sent in turn


class Request(NamedTuple):
    """A request before it is bytes."""

    path: str
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Traffic:
    """What is sent, and for how long.

    Args:
        modes: of tracked, batch, blend (half of each) and mixed (the three in turn); they take turns.
        rows: of each request.
        batch_size: rows in a statistics group; None: all of the request.
        body: "json" or "npy".
        seconds: of a turn that count.
        rounds: turns of each mode.
        warm_up_s: seconds at the start of a turn that do not count.
        timeout_s: seconds after the end of a turn until a missing answer is an error.
        headers: of every request.
        seed: of rows and arrivals.

    Raises:
        ConfigurationError: an unknown mode or body, or an impossible number.

    Example:
        >>> Traffic(modes=["tracked", "batch"], rows=8).requests("batch", [3, 32, 32])[0].path
        '/predict'
    """

    modes: Sequence[str] = ("tracked",)
    rows: int = 1
    batch_size: int | None = None
    body: str = "json"
    seconds: float = 5.0
    rounds: int = 3
    warm_up_s: float = 1.0
    timeout_s: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise unknown_choice("mode of a load", mode, MODES)
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise ConfigurationError(f"expected modes, each once; got {', '.join(self.modes) or 'none'}")
        if self.body not in BODIES:
            raise unknown_choice("body", self.body, BODIES)
        for name, least in (("rows", 1), ("batch_size", 1), ("rounds", 1), ("warm_up_s", 0), ("timeout_s", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigurationError(f"expected {name} of at least {least}; got {value:g}")
        if not 0 < self.seconds < float("inf"):
            raise ConfigurationError(f"expected seconds above 0; got {self.seconds:g}")

    def requests(self, mode: str, shape: Sequence[int]) -> list[Request]:
        """Return requests of one mode with different rows of `shape`."""
        size = (DIFFERENT, self.rows, *shape)
        rows = np.random.default_rng(self.seed).standard_normal(size, dtype=np.float32)
        return [self._request(one, kind) for one, kind in zip(rows, kinds_of(mode, DIFFERENT), strict=True)]

    def _request(self, rows: npt.NDArray[np.float32], kind: str) -> Request:
        settings: dict[str, Any] = {} if self.batch_size is None else {"batch_size": self.batch_size}
        if kind == "blend":
            blend = {"tracked_weight": WEIGHTS[kind]}
            settings |= {"blend": blend} if self.body == "json" else blend
        else:
            settings["tracking"] = kind == "tracked"
        if self.body == "json":
            body = orjson.dumps({"instances": rows, **settings}, option=orjson.OPT_SERIALIZE_NUMPY)
            return Request("/predict", BODIES["json"], body)
        fields = {name: orjson.dumps(value).decode() for name, value in settings.items()}
        file = io.BytesIO()
        np.save(file, rows)
        return Request(f"/predict?{urlencode(fields)}", BODIES["npy"], file.getvalue())

    def groups(self, mode: str, requests: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return group and tracked weight of each row when `requests` requests of a mode are one run."""
        within = np.arange(self.rows) // (self.batch_size or self.rows)
        group = (np.arange(requests)[:, None] * (within[-1] + 1) + within).ravel()
        weight = np.repeat([WEIGHTS[kind] for kind in kinds_of(mode, requests)], self.rows)
        return group.astype(np.int64), weight.astype(np.float32)


def kinds_of(mode: str, count: int) -> list[str]:
    """Return the statistics mode of each of `count` requests in turn."""
    kinds = list(WEIGHTS) if mode == MIXED else [mode]
    return [kinds[k % len(kinds)] for k in range(count)]
