"""A server as a process of its own, on a free loopback port: started, waited for, weighed, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from augserve.errors import ConfigurationError, RemoteError

HOST = "127.0.0.1"
_STOP_S = 60


class ServerProcess:
    """A server for as long as the context lasts; SIGTERM ends it, and what ignores that is killed.

    Args:
        command: what starts it; "{port}" in an argument becomes its port.
        ready: the path that answers 200 once it takes requests.
        ready_s: seconds to wait for that.
        environment: variables of the process; None: those of this one.

    Raises:
        ConfigurationError: it stopped before it was ready, with the end of what it wrote.
        RemoteError: it was not ready in time.

    Example:
        >>> with ServerProcess(["augserve", "serve", "m.onnx", "--port", "{port}"]) as server:  # doctest: +SKIP
        ...     answer = httpx.get(server.url + "/readyz")
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: str = "/readyz",
        ready_s: float = 120.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
            [part.replace("{port}", str(port)) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            self._wait(f"{self.url}{ready}", ready_s)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.perf_counter() - started

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def _wait(self, url: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        with httpx.Client(trust_env=False, timeout=5) as http:  # a proxy of the environment is for other machines
            while True:
                if self._process.poll() is not None:
                    raise ConfigurationError(f"the server stopped before it was ready: {self._last_words()}")
                try:
                    if http.get(url).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass  # it does not listen yet
                if time.monotonic() > end:
                    raise RemoteError(f"{url} did not answer 200 within {seconds:g} s: {self._last_words()}")
                time.sleep(0.02)

    def _last_words(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:500] if lines else "it wrote nothing"

    def peak_mib(self) -> float | None:
        """Return the most memory that the process and its children have held, summed; None without /proc."""
        peaks = [peak for pid in family(self._process.pid) if (peak := _peak_kib(pid)) is not None]
        return sum(peaks) / 1024 if peaks else None

    def stop(self) -> None:
        """End the process, and those of its children that outlive it."""
        children = family(self._process.pid)[1:] if self._process.poll() is None else []
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._output.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[int]:
    """Return a process and all its descendants; without /proc, the process alone."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for one in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _peak_kib(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), None)
