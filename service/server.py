"""The application behind uvicorn: bind, load, serve, drain.

Whatever can fail does so before uvicorn starts, with one clear error. On SIGTERM the server first refuses new
requests (503) while the accepted ones finish, and only then closes its listener.
"""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from augserve.errors import ConfigurationError
from augserve.service.app import build_app
from augserve.service.http.transport import GatheringProtocol
from augserve.service.lifecycle import Service
from augserve.service.queue.memory import share_one_heap
from augserve.service.settings import Settings
from augserve.service.watch.logs import access_log

DRAIN_MARGIN_S = 30
SWITCH_S = 1e-5  # for which a thread that has run waits before the event loop hands it Python: see ADR 0011
KEEP_ALIVE_S = 75  # longer than load balancers keep a connection: they close it, not we under their request


class _Stopped(BaseException):
    """SIGTERM outside uvicorn's own handling."""


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve models until SIGTERM or SIGINT; returns once every accepted request is answered.

    Args:
        settings: the operator's choices.
        on_ready: called with the server's URL when it takes requests.

    Raises:
        ModelFileError: a model that cannot be loaded or fails its self-check.
        ConfigurationError: an address that cannot be listened on, or an unknown provider.

    Example:
        >>> serve(read_settings(model="model.onnx", port=9000), on_ready=print)
    """
    share_one_heap()  # before there are threads
    with contextlib.suppress(_Stopped, KeyboardInterrupt), _stop_on_sigterm(), _bind(settings) as listener:
        service = Service(settings)
        app = build_app(service)
        service.load()
        _allow_connections()
        gc.collect()
        gc.freeze()  # what is there now stays: collections need not look at it under load
        config = uvicorn.Config(
            app,
            http=GatheringProtocol,
            log_level="error",  # a stranger who sends nonsense writes no line of his own
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + DRAIN_MARGIN_S,
        )
        with access_log(settings.access_log), _switching(SWITCH_S):
            _Server(config, service, on_ready).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that answers 503 while it drains, in place of refusing to connect."""

    def __init__(
        self, config: uvicorn.Config, service: Service, on_ready: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None and self.started and sockets:
            self._on_ready(_url(sockets[0]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        await self._service.drained(lambda: self.force_exit)
        await super().shutdown(sockets)


def _bind(settings: Settings) -> socket.socket:
    """Return a bound socket, not yet listening."""
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {where}: {error.strerror}; choose another host") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)  # asyncio disables Nagle's delay where it sees TCP here
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {where}: {error.strerror}; stop what listens there or choose another port"
        ) from None
    return listener


def _allow_connections() -> None:
    """Raise the process's limit of open files to what the system allows: each connection is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows; not always allowed
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _switching(seconds: float) -> Iterator[None]:
    """Change for how long a thread waits for Python before it asks for it, in all of the process."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Turn a SIGTERM before uvicorn takes over, or handed on at its end, into a return of `serve`.

    Process 1 of a container ignores a signal without a handler, so that a slow load could not be stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(sig: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
