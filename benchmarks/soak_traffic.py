"""The good requests of a soak: what they are, what they must be answered, and a patient caller of little cost.

Every answer is compared with the logits of the same rows run alone in this process, with the file that the server
then had: an answer that holds a stranger's rows, or one file's statistics and another's weights, matches nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from augserve.bench.traffic import WEIGHTS, Traffic
from augserve.bench.wire import request_bytes
from augserve.client import AsyncClient
from augserve.errors import RemoteError
from augserve.runtime import open_session, read_manifest, run_rows

TOLERANCE = 1e-4  # of the largest logit, or 1e-4 if that is less: merged runs and folded forms round otherwise
PATIENCE_S = 120.0  # until a request without an answer is lost
LINES = 64  # connections at a time
STALE_S = 30.0  # a connection that was idle for longer may be closed by the server under a request
WRONG = -1

Logits = npt.NDArray[np.float32]


class GoneError(Exception):
    """The connection ended before an answer began: the request may be sent again."""


class BrokenOffError(Exception):
    """The connection ended within an answer."""


class Answer(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Case:
    """A request, and its logits with each of the files."""

    name: str
    path: str
    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...]
    rows: npt.NDArray[np.float32]
    weight: float
    expected: tuple[Logits, ...]

    def file_of(self, body: bytes) -> int:
        """Return which of the files an answer is of; WRONG where it is of none."""
        answer = orjson.loads(body)
        if "predictions" in answer:
            logits = np.array([one["logits"] for one in answer["predictions"]])
        else:
            (output,) = answer["outputs"]
            logits = np.array(output["data"]).reshape(output["shape"])
        return self.match(logits)

    def match(self, logits: npt.NDArray[Any]) -> int:
        """Return the number of the file that gives these logits, or WRONG."""
        for index, expected in enumerate(self.expected):
            limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
            if logits.shape == expected.shape and float(np.abs(logits - expected).max()) <= limit:
                return index
        return WRONG


def make_cases(files: Sequence[Path], name: str, rows_of: Sequence[int] = (1, 2, 8), seed: int = 0) -> list[Case]:
    """Return requests of every mode, size and form of body, for a model served as `name`.

    Raises:
        SystemExit: files whose answers cannot be told apart.
    """
    sessions = [open_session(file, threads=1) for file in files]
    shape = read_manifest(sessions[0], files[0]).shape
    cases = []
    kinds = itertools.product(WEIGHTS, rows_of, ("json", "npy", "v2"))
    for number, (mode, count, body) in enumerate(kinds):
        rows = np.random.default_rng([seed, number]).standard_normal((count, *shape), dtype=np.float32)
        group, weight = np.zeros(count, np.int64), np.full(count, WEIGHTS[mode], np.float32)
        expected = tuple(run_rows(session, rows, group, weight) for session in sessions)
        sent = _v2(rows, name, WEIGHTS[mode]) if body == "v2" else _predict(rows, mode, body)
        case = Case(f"{body} {mode} x{count}", *sent, rows, WEIGHTS[mode], expected)
        if [case.match(one) for one in expected] != list(range(len(files))):
            raise SystemExit(f"{case.name}: expected files whose logits differ; these are alike")
        cases.append(case)
    return cases


def _predict(rows: Logits, mode: str, body: str) -> tuple[str, str, bytes, tuple[tuple[str, str], ...]]:
    one = Traffic(modes=[mode], rows=len(rows), body=body)._request(rows, mode)
    if body == "npy":
        return f"{one.path}&return=logits", one.content_type, one.body, ()
    return one.path, one.content_type, one.body[:-1] + b',"return":["logits"]}', ()


def _v2(rows: Logits, name: str, weight: float) -> tuple[str, str, bytes, tuple[tuple[str, str], ...]]:
    tail = rows.tobytes()
    tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": len(tail)}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"tracked_weight": weight}})
    headers = (("Inference-Header-Content-Length", str(len(head))),)
    return f"/v2/models/{name}/infer", "application/octet-stream", head + tail, headers


@dataclass
class Tally:
    """What came of a load.

    Args:
        statuses: answers by status, of every try.
        retried: tries that ended without an answer, and were repeated.
        strays: those among them that no restart explains.
        lost: requests without an answer, with the reason.
        wrong: answers with other logits than those of the rows alone.
        latencies: seconds from when a request was due until its 200, by what was going on.
        held_back: requests that were not sent, because too many were on their way.
        changes: how often an answer was of another file than the one before it.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    retried: int = 0
    strays: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    held_back: int = 0
    changes: int = 0
    last_file: int | None = None

    def seen(self, case: Case, body: bytes, *, counts: bool = True) -> None:
        """Note a 200 and compare it."""
        file = case.file_of(body)
        if file == WRONG:
            self.wrong[case.name] += 1
        elif counts:
            self.changes += self.last_file not in (None, file)
            self.last_file = file


async def read_answer(reader: asyncio.StreamReader, slowly: float | None = None) -> Answer:
    """Read an answer, byte by byte with pauses of `slowly` seconds every so often where that is given."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise (BrokenOffError if error.partial else GoneError) from None
    except OSError:
        raise GoneError from None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", -1))
    try:
        if slowly is not None:
            body = b""
            while len(body) < length:
                body += await reader.readexactly(1)
                if len(body) % 256 == 0:
                    await asyncio.sleep(slowly)
        else:
            body = await (reader.readexactly(length) if length >= 0 else reader.read())
    except (asyncio.IncompleteReadError, OSError):
        raise BrokenOffError from None
    return Answer(int(first.split()[1]), headers, body)


class Caller:
    """Keep-alive connections that send a request until it is answered, as `augserve.client` would.

    Args:
        url: of the server.
        tally: where everything is counted.
        restarting: tells whether connections may break now.
    """

    def __init__(self, url: str, tally: Tally, restarting: asyncio.Event) -> None:
        self.url = url
        self.host, self.port = url.removeprefix("http://").rsplit(":", 1)
        self.tally = tally
        self.restarting = restarting
        self.restart_began = -1e9  # on the clock of time.perf_counter
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._lines = asyncio.Semaphore(LINES)

    def payload(self, case: Case) -> bytes:
        """Return the bytes of a request."""
        return request_bytes(self.url, case.path, case.body, case.kind, case.headers)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a new connection.

        Raises:
            GoneError: nobody listens.
        """
        try:
            return await asyncio.open_connection(self.host, int(self.port))
        except OSError:
            raise GoneError from None

    async def once(self, payload: bytes) -> Answer:
        """Send a request once."""
        async with self._lines:
            if self._idle and self._idle[-1][0] < time.perf_counter() - STALE_S:
                self.close()  # the others are older still
            reader, writer = self._idle.pop()[1:] if self._idle else await self.open()
            try:
                if writer.is_closing():
                    raise GoneError  # noqa: TRY301
                writer.write(payload)
                answer = await read_answer(reader)
            except BaseException:
                writer.close()
                raise
            if answer.headers.get("connection") == "close" or "content-length" not in answer.headers:
                writer.close()
            else:
                self._idle.append((time.perf_counter(), reader, writer))
            return answer

    async def ask(self, case: Case, due: float) -> None:
        """Send a request until it is answered, and compare the answer; nothing is raised, all is counted."""
        try:
            await self._ask(case, due)
        except Exception as error:
            self.tally.lost[f"not sent or not read: {error!r}"[:160]] += 1

    async def _ask(self, case: Case, due: float) -> None:
        payload, tally, end = self.payload(case), self.tally, due + PATIENCE_S
        for tries in itertools.count():
            try:
                answer = await asyncio.wait_for(self.once(payload), end - time.perf_counter())
            except (TimeoutError, asyncio.TimeoutError):
                tally.lost["no answer in time"] += 1
                return
            except BrokenOffError:
                tally.lost["broken off"] += 1
                return
            except GoneError:
                tally.retried += 1
                if not self.restarting.is_set():
                    tally.strays["connection ended"] += 1
                wait = 0.0
            else:
                tally.statuses[answer.status] += 1
                if answer.status == 200:
                    tally.seen(case, answer.body)
                    tally.latencies.append(time.perf_counter() - due)
                    return
                if answer.status == 503 and not self.restarting.is_set():
                    tally.strays["503"] += 1
                if answer.status not in (429, 503):
                    tally.lost[f"answered {answer.status}: {answer.body[:80]!r}"] += 1
                    return
                wait = float(answer.headers.get("retry-after", 0))
            await asyncio.sleep(wait + random.uniform(0, min(2.0, 0.1 * 2**tries)))

    def close(self) -> None:
        """Close the connections that carry no request."""
        for *_, writer in self._idle:
            writer.close()
        self._idle.clear()


async def ask_as_a_user(url: str, cases: Sequence[Case], tally: Tally) -> None:
    """Ask one request after the other through `AsyncClient`, which must never fail."""
    async with AsyncClient(url, retries=30) as client:
        for case in itertools.cycle(cases):
            try:
                answer = await client.predict(case.rows, blend={"tracked_weight": case.weight}, returns=["logits"])
            except RemoteError as error:
                tally.lost[f"AsyncClient: {error}"[:160]] += 1
            else:
                tally.statuses[200] += 1
                tally.seen(case, orjson.dumps(answer), counts=False)
            await asyncio.sleep(0.05)
