"""Bare runs: `session.run` on the rows of so many requests, with nothing of a server around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from augserve.bench.traffic import Traffic, kinds_of
from augserve.manifest import Manifest
from augserve.runtime import open_session, read_manifest, run_rows


class BareRuns:
    """The runs that a server is compared with.

    Args:
        file: the .onnx file.
        threads: of ONNX Runtime; None: its default.

    Raises:
        ModelFileError: a file that cannot be opened.

    Example:
        >>> BareRuns("model.onnx").loop(Traffic(), "tracked", rows_per_run=32, shape=[3, 32, 32])  # doctest: +SKIP
    """

    def __init__(self, file: str | Path, threads: int | None = None) -> None:
        self._session = open_session(file, threads=threads or 0)
        self.manifest: Manifest = read_manifest(self._session, file)

    def run(self, traffic: Traffic, mode: str, requests: int, shape: Sequence[int]) -> Callable[[], object] | None:
        """Return one run of the rows of so many requests; None where the file does not have the mode."""
        if not set(kinds_of(mode, requests)) <= set(self.manifest.modes):
            return None
        group, weight = traffic.groups(mode, requests)
        size = (len(group), *shape)
        rows = np.random.default_rng(traffic.seed).standard_normal(size, dtype=np.float32)
        return lambda: run_rows(self._session, rows, group, weight)

    def loop(self, traffic: Traffic, mode: str, rows_per_run: float, shape: Sequence[int]) -> float | None:
        """Return the rows a second of runs one after the other for a turn's time; None as for `run`."""
        requests = max(1, round(rows_per_run / traffic.rows))
        run = self.run(traffic, mode, requests, shape)
        if run is None:
            return None
        speed = 0.0
        for seconds in (traffic.warm_up_s, traffic.seconds):
            began, runs = time.perf_counter(), 0
            while runs == 0 or time.perf_counter() - began < seconds:
                run()
                runs += 1
            speed = runs * requests * traffic.rows / (time.perf_counter() - began)
        return speed
