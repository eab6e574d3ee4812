"""The server of a soak: a child process, ended by SIGTERM and started again on the same port, and weighed."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from augserve.bench.server_process import HOST, free_port

READY_S, STOP_S = 60.0, 90.0
FLOOR_S = 30.0  # what requests in progress hold comes and goes; what leaks is in the lowest weight of every while


class Weight(NamedTuple):
    """Resident memory of one life of the server at a time, in seconds since that life began."""

    life: int
    seconds: float
    kib: int


class Growth(NamedTuple):
    """A straight line through the floors of one life's memory: its slope, the slope's standard error, the ends."""

    life: int
    seconds: float
    kib_per_min: float
    error: float
    first_mib: float
    last_mib: float


class Server:
    """`augserve serve FOLDER` on a port of its own.

    Args:
        folder: the model repository.
        log: takes what the server writes.
        settings: AUGSERVE_* variables, by field.
    """

    def __init__(self, folder: Path, log: Path, settings: Mapping[str, object]) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.life = -1
        self.bad_ends: list[str] = []
        self.weights: list[Weight] = []
        self._log = log
        self._command = [sys.executable, "-m", "augserve", "serve", str(folder), "--host", HOST]
        self._command += ["--port", str(self.port)]
        given = {f"AUGSERVE_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **given}
        self._process: subprocess.Popen[bytes] | None = None
        self._born = 0.0

    async def start(self) -> None:
        """Start it and wait until it takes requests.

        Raises:
            SystemExit: it does not.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        self._born = time.monotonic()
        async with httpx.AsyncClient(trust_env=False) as http:
            while self._process.poll() is None and time.monotonic() < self._born + READY_S:
                try:
                    if (await http.get(f"{self.url}/readyz")).status_code == httpx.codes.OK:
                        self.life += 1
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise SystemExit(f"the server was not ready: {self.log()[-500:]}")

    async def stop(self) -> None:
        """End it by SIGTERM; note where it fails to, or says that it failed."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if process.poll() is None:
            process.kill()
            self.bad_ends.append(f"life {self.life} did not end within {STOP_S:g} s of SIGTERM")
        elif process.returncode != 0:
            self.bad_ends.append(f"life {self.life} ended with status {process.returncode}")
        process.wait()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def weigh(self) -> None:
        """Note how much memory it holds now; without /proc, nothing."""
        process = self._process
        if process is None:
            return
        if process.poll() is not None:
            self.bad_ends.append(f"life {self.life} ended by itself with status {process.returncode}")
            self._process = None
            return
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                self.weights.append(Weight(self.life, time.monotonic() - self._born, int(line.split()[1])))

    def log(self) -> str:
        """Return everything that it wrote, in all its lives."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""


def growths(weights: Sequence[Weight], warm_up_s: float) -> list[Growth]:
    """Return how memory grew in each life after its warm-up; lives of few samples are left out.

    The line is that of least squares through the lowest weight of every FLOOR_S.

    Example:
        >>> growths([Weight(0, 60.0 * k, 1000 + 10 * k) for k in range(9)], warm_up_s=0)[0].kib_per_min
        10.0
    """
    found = []
    for life in sorted({one.life for one in weights}):
        after = _floors([one for one in weights if one.life == life and one.seconds >= warm_up_s])
        if len(after) < 5:
            continue
        x = np.array([one.seconds / 60 for one in after])
        y = np.array([one.kib for one in after], float)
        off = x - x.mean()
        slope = float(off @ y / (off @ off))
        rest = y - y.mean() - slope * off
        error = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(off @ off))
        seconds = after[-1].seconds - after[0].seconds
        found.append(Growth(life, seconds, round(slope, 6), error, after[0].kib / 1024, after[-1].kib / 1024))
    return found


def _floors(weights: Sequence[Weight]) -> list[Weight]:
    """Return the lowest weight of each whole span of FLOOR_S of a life."""
    lowest: dict[int, Weight] = {}
    for one in weights:
        span = int(one.seconds // FLOOR_S)
        if span not in lowest or one.kib < lowest[span].kib:
            lowest[span] = one
    return list(lowest.values())[:-1]  # the last span was cut short by the end
