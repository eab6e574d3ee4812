"""Where the lines of the access log go: a stream, written by a thread of its own.

A reader of the stream that falls behind holds up no request: lines wait in memory, and beyond a limit they are
dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import orjson
from typing_extensions import override

access_logger = logging.getLogger("augserve.access")

GATHER_S = 0.02  # lines that come within it are written together
MAX_WAITING = 20_000  # lines
CLOSE_S = 2.0  # a stream that is stuck does not hold up the end of the process


@contextmanager
def access_log(enabled: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Write the access log, one JSON object a line, while the block lasts.

    Handlers that the application around has given to the logger "augserve.access" are left in charge.

    Args:
        enabled: False changes nothing.
        stream: where to; standard error when None.

    Example:
        >>> with access_log(settings.access_log):
        ...     server.run()
    """
    if not enabled or access_logger.handlers:
        yield
        return
    handler = LineHandler(sys.stderr if stream is None else stream)
    level, propagate = access_logger.level, access_logger.propagate
    access_logger.addHandler(handler)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = False
    try:
        yield
    finally:
        access_logger.removeHandler(handler)
        access_logger.setLevel(level)
        access_logger.propagate = propagate
        handler.close()


class LineHandler(logging.Handler):
    """Hands the text of records to a thread that writes them to a stream.

    Args:
        stream: where to.
        max_waiting: lines in memory; more are dropped, and a line {"dropped": N} follows the next ones.
    """

    def __init__(self, stream: TextIO, max_waiting: int = MAX_WAITING) -> None:
        super().__init__()
        self._stream = stream
        self._max_waiting = max_waiting
        self._dropped = 0
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="augserve-access-log", daemon=True)
        self._thread.start()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() < self._max_waiting:
            self._lines.put(record.getMessage())
        else:
            self._dropped += 1

    @override
    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._lines.put(None)
            self._thread.join(CLOSE_S)
        super().close()

    def _write(self) -> None:
        more = True
        while more:
            lines = [self._lines.get()]
            self._closing.wait(GATHER_S)
            while not self._lines.empty():
                lines.append(self._lines.get())
            more = None not in lines
            texts = [line for line in lines if line is not None]
            self.acquire()  # `emit` counts under the same lock
            dropped, self._dropped = self._dropped, 0
            self.release()
            if dropped:
                texts.append(orjson.dumps({"dropped": dropped}).decode())
            if texts:
                self._put(texts)

    def _put(self, texts: list[str]) -> None:
        try:
            self._stream.write("".join(f"{text}\n" for text in texts))
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more: the service goes on
            pass
