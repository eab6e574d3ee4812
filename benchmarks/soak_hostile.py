"""Those who make a soak hard: uploads that stop, bodies too large or no bodies, slow senders and slow readers.

Each has the statuses that it may be answered; around a restart it may also be refused, or lose its connection.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from augserve.bench.traffic import Traffic
from benchmarks.soak_traffic import Answer, BrokenOffError, Caller, Case, GoneError, read_answer

PIECES = 20
ACCEPTED_S = 0.5  # by then the server has seen a request's first bytes


class Strangers:
    """Everyone who misbehaves; `counts` holds what became of them, `wrong` what may not be.

    Args:
        caller: gives connections, and counts what is compared.
        cases: good requests, for those who are merely slow.
        max_body_bytes: the server's limit.
    """

    def __init__(self, caller: Caller, cases: Sequence[Case], max_body_bytes: int) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self._caller = caller
        self._cases = cases
        self._limit = max_body_bytes
        self._shape = cases[0].rows.shape[1:]

    async def run(self, pause_s: float, slowly_s: float) -> None:
        """Misbehave until cancelled, all kinds at a time; each waits `pause_s` after each time."""
        kinds = [
            self._forever(name, status, self._plain(payload), pause_s) for name, status, payload in self._refused()
        ]
        kinds += [
            self._forever("too large, in chunks", 413, self._flood, pause_s),
            self._forever("upload aborted", 0, self._abort, pause_s),
            self._forever("left before the answer", 0, self._leave, pause_s),
            self._forever("slow sender", 200, lambda: self._slow_sender(slowly_s), pause_s),
            self._forever("slow reader", 200, lambda: self._slow_reader(slowly_s), pause_s),
        ]
        await asyncio.gather(*kinds)

    def _refused(self) -> list[tuple[str, int, bytes]]:
        good = self._cases[0]
        json = "application/json"

        def post(body: bytes, kind: str = json, path: str = "/predict", length: int | None = None) -> bytes:
            told = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            return (told + f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body

        return [
            ("cut off JSON", 400, post(good.body[:-9])),
            ("not JSON", 400, post(b"\xff\xfe{}")),
            ("deep JSON", 400, post(b'{"instances":' + b"[" * 100_000)),
            ("damaged .npy", 400, post(b"\x93NUMPY\x01\x00\xff\xff", "application/octet-stream")),
            ("not a form", 400, post(b"--y\r\n", "multipart/form-data; boundary=x")),
            ("not HTTP", 400, b"\x16\x03\x01 nothing of the kind\r\n\r\n"),
            ("wrong type", 415, post(b"<rows/>", "application/xml")),
            ("wrong shape", 422, post(b'{"instances":[[[1,2],[3,4]]]}')),
            ("text for numbers", 422, post(b'{"instances":[["a","b"]]}')),
            ("unknown setting", 422, post(good.body[:-1] + b',"colour":1}')),
            ("unknown model", 404, post(good.body[:-1] + b',"model":"nobody"}')),
            ("no such path", 404, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("wrong method", 405, b"PUT /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
            ("too large, as announced", 413, post(b"", length=self._limit + 1)),
        ]

    async def _forever(
        self, name: str, expected: int, act: Callable[[], Awaitable[Answer | None]], pause_s: float
    ) -> None:
        caller = self._caller
        while True:
            began, excused = time.perf_counter(), caller.restarting.is_set()
            try:
                answer = await asyncio.wait_for(act(), 100)
            except GoneError:
                what = "gone"
            except BrokenOffError:
                what = "broken off"
            except (TimeoutError, asyncio.TimeoutError):
                what = "no answer"
            else:
                what = "" if answer is None else str(answer.status)
            # A slow sender that came well before the signal was accepted, and is answered.
            excused |= caller.restarting.is_set() and (expected != 200 or began > caller.restart_began - ACCEPTED_S)
            self.counts[f"{name}: {what or 'done'}"] += 1
            if what and what not in {str(expected), "429"} and not (excused and what in {"gone", "503"}):
                self.wrong[f"{name}: expected {expected or 'nothing'}, got {what}"] += 1
            await asyncio.sleep(pause_s)

    def _plain(self, payload: bytes) -> Callable[[], Awaitable[Answer]]:
        async def send() -> Answer:
            reader, writer = await self._caller.open()
            try:
                writer.write(payload)
                return await read_answer(reader)
            finally:
                writer.close()

        return send

    async def _flood(self) -> Answer | None:
        """Send chunks until the server has had enough."""
        reader, writer = await self._caller.open()
        try:
            writer.write(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(4 + self._limit // 65536):
                if writer.is_closing():
                    break
                writer.write(b"10000\r\n" + b"[" * 65536 + b"\r\n")
                await writer.drain()
            return await read_answer(reader)
        except (GoneError, OSError):  # it closes while we still send: its answer may be lost with that
            return None
        finally:
            writer.close()

    async def _abort(self) -> None:
        _, writer = await self._caller.open()
        payload = self._caller.payload(self._cases[-1])
        try:
            writer.write(payload[: len(payload) // 2])
            await asyncio.sleep(0.05)
        finally:
            writer.transport.abort()

    async def _leave(self) -> None:
        _, writer = await self._caller.open()
        try:
            writer.write(self._caller.payload(self._cases[-1]))
            await asyncio.sleep(0.002)
        finally:
            writer.transport.abort()

    async def _slow_sender(self, slowly_s: float) -> Answer:
        """Send a good request in pieces; once accepted it is answered, even by a server that is told to end."""
        case = self._cases[self.counts.total() % len(self._cases)]
        payload = self._caller.payload(case)
        reader, writer = await self._caller.open()
        try:
            size = -(-len(payload) // PIECES)
            for at in range(0, len(payload), size):
                if writer.is_closing():  # it was refused, and may have been told so
                    break
                writer.write(payload[at : at + size])
                await asyncio.sleep(slowly_s / PIECES)
            answer = await read_answer(reader)
        finally:
            writer.close()
        if answer.status == 200:
            self._caller.tally.seen(case, answer.body, counts=False)
        return answer

    async def _slow_reader(self, slowly_s: float) -> Answer:
        """Read a long answer byte by byte, with little room in between."""
        rows = np.zeros((64, *self._shape), np.float32)
        body = Traffic(modes=["tracked"], rows=64, body="npy")._request(rows, "tracked")
        head = f"POST {body.path}&return=logits,probabilities,label HTTP/1.1\r\nHost: x\r\nContent-Type: "
        head += f"{body.content_type}\r\nContent-Length: {len(body.body)}\r\n\r\n"
        reader, writer = await self._caller.open()
        try:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            writer.write(head.encode() + body.body)
            return await read_answer(reader, slowly=slowly_s / 40)
        finally:
            writer.close()
