#!/usr/bin/env python3
"""Mutated bodies on raw keep-alive connections: whatever comes, the server answers 200 or refuses, and lives.

    python -m benchmarks.soak_fuzz http://127.0.0.1:8000 --model m --shape 3,32,32 --count 50000

A seed is a good request (JSON, a form, .npy, gzip, Open Inference Protocol in JSON and binary); one to three
mutations of its body, and sometimes one of its headers, make a case. Exit status 1 where an answer is 500 or above,
a request has no answer, or the server answers a good request no longer.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import random
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import orjson
from PIL import Image

from augserve.bench.wire import address_of

TIMEOUT_S = 30.0
GONE, LATE = "gone without an answer", "no answer in time"
_NUMBERS = (b"1e999", b"-1e400", b"1e308", b"9" * 400, b"-0", b"18446744073709551616", b"1e-400", b"NaN", b"null")
_WORDS = (
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b'"\\u0000"',
    b'"\\ud800"',
    b'{"b64":"AAAA"}',
    b"[[[[[]]]]]",
    b"-1",
)
_LENGTHS = ("0", "1", "-1", "99999999999999999999", "1e3", "0x10", " 7", "", "\xb2", "7, 7")
_TYPES = ("application/json", "application/octet-stream", "multipart/form-data; boundary=x", "text/plain", "")
_QUERIES = ("tracking=maybe", "batch_size=-1", "batch_size=1e9", "prior=nan", "tracked_weight=inf", "return=",
            "return=logits&return=", "model=%00", "top_k=99999999999999999999", "blend={}", "blend=[[[", "%ff=%fe",
            "tracking", "batch_size=1&batch_size=2", "compare=x", "a" * 2000)  # fmt: skip


class Request(NamedTuple):
    """What is sent: the address, headers but for the length, the body."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def seeds(model: str, shape: Sequence[int]) -> list[Request]:
    """Return good requests of every kind, for a model of that row shape."""
    rows = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    numbers = {"instances": rows.round(2).tolist(), "batch_size": 1, "tracking": False, "top_k": 2}
    wanted = {"return": ["label", "logits"], "remainder": "merge", "compare": True, "model": model}
    png, npy = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(png, "PNG")
    np.save(npy, rows)
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    )
    form += png.getvalue() + b'\r\n--x\r\nContent-Disposition: form-data; name="batch_size"\r\n\r\n1\r\n--x--\r\n'
    tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP32"}
    parameters = {"parameters": {"prior": 2, "batch_size": 2, "remainder": "own"}}
    outputs = {"outputs": [{"name": "logits"}, {"name": "labels", "parameters": {"binary_data": True}}]}
    v2 = {"id": "7", "inputs": [{**tensor, "data": rows.ravel().round(2).tolist()}], **parameters, **outputs}
    head = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": rows.nbytes}}], **parameters})
    json, infer = (("Content-Type", "application/json"),), f"/v2/models/{model}/infer"
    array = (("Content-Type", "application/octet-stream"),)
    body = orjson.dumps({**numbers, **wanted})
    blend = orjson.dumps({"instances": numbers["instances"], "blend": {"tracked_weight": 0.5}})
    return [
        Request("/predict", json, body),
        Request("/predict", json, blend),
        Request("/predict", (*json, ("Content-Encoding", "gzip")), gzip.compress(body, mtime=0)),
        Request("/predict", (("Content-Type", "multipart/form-data; boundary=x"),), form),
        Request("/predict?tracking=false&batch_size=2&return=logits", array, npy.getvalue()),
        Request("/predict?prior=3", (*array, ("Content-Encoding", "gzip")), gzip.compress(npy.getvalue(), mtime=0)),
        Request(infer, json, orjson.dumps(v2)),
        Request(infer, (("Inference-Header-Content-Length", str(len(head))),), head + rows.tobytes()),
        Request("/v2/repository/index", json, b'{"ready":true}'),
    ]


def _flip(body: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 2, 8))):
        if body:
            body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)


def _cut(body: bytearray, dice: random.Random) -> None:
    del body[dice.randrange(len(body) + 1) :]


def _drop(body: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(body) + 1)
    del body[at : at + dice.choice((1, 4, 40))]


def _repeat(body: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(body) + 1)
    body[at:at] = body[at : at + dice.choice((1, 10, 200))] * dice.choice((1, 2, 20))


def _number(body: bytearray, dice: random.Random) -> None:
    """Put another number in the place of one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", body))
    if found:
        one = dice.choice(found)
        body[one.start() : one.end()] = dice.choice(_NUMBERS)


def _word(body: bytearray, dice: random.Random) -> None:
    """Put another value in the place of a text, a true or false, or a row."""
    found = list(re.finditer(rb'"[^"]{0,40}"|true|false|\[[^\[\]]{0,400}\]', body))
    if found:
        one = dice.choice(found)
        body[one.start() : one.end()] = dice.choice(_WORDS)


def _nest(body: bytearray, dice: random.Random) -> None:
    depth = dice.choice((3, 200, 2000, 20000))
    opening, closing = dice.choice(((b"[", b"]"), (b'{"instances":', b"}"), (b'{"b64":', b"}")))
    at = dice.choice((0, max(0, body.find(b"["))))
    body[at:at] = opening * depth
    if dice.random() < 0.5:
        body += closing * depth


def _insert(body: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(body) + 1)
    body[at:at] = dice.randbytes(dice.choice((1, 3, 64)))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _cut, _drop, _repeat, _number, _number, _word, _word, _nest, _insert,
)  # fmt: skip


def cases(model: str, shape: Sequence[int], count: int, seed: int = 0) -> Iterator[bytes]:
    """Return whole requests; their framing is right but where `_framed` says otherwise."""
    good, dice = seeds(model, shape), random.Random(seed)
    for _ in range(count):
        path, headers, content = dice.choice(good)
        body = bytearray(content)
        encoded = any(name == "Content-Encoding" for name, _ in headers)
        inside = encoded and dice.random() < 0.5
        if inside:
            body = bytearray(gzip.decompress(content))
        for _ in range(dice.choice((1, 1, 2, 3))):
            dice.choice(MUTATIONS)(body, dice)
        if inside:
            body = bytearray(gzip.compress(bytes(body), 1))
        if dice.random() < 0.2:
            path, headers = _elsewhere(path, dict(headers), dice)
        yield _framed(path, headers, bytes(body), dice)


def _elsewhere(path: str, headers: dict[str, str], dice: random.Random) -> tuple[str, tuple[tuple[str, str], ...]]:
    what = dice.randrange(4)
    if what == 0:
        path = path.partition("?")[0] + "?" + dice.choice(_QUERIES)
    elif what == 1:
        headers["Inference-Header-Content-Length"] = dice.choice(_LENGTHS)
    elif what == 2:
        headers["Content-Type"] = dice.choice(_TYPES)
    else:
        headers["Content-Encoding"] = dice.choice(("gzip", "deflate", "br", "gzip, gzip", "identity", "\xe9"))
    return path, tuple(headers.items())


def _framed(path: str, headers: Sequence[tuple[str, str]], body: bytes, dice: random.Random) -> bytes:
    """Return the bytes of a request: with its length, in chunks, or (1 in 50) in chunks that end wrongly."""
    lines = [f"POST {path} HTTP/1.1", "Host: fuzz", *(f"{name}: {value}" for name, value in headers)]
    kind = dice.randrange(50)
    if kind >= 10:
        lines.append(f"Content-Length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
    lines.append("Transfer-Encoding: chunked")
    size = dice.choice((1, 7, 1000, 65536)) if len(body) < 5000 else dice.choice((1000, 65536))
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    end = b"0\r\n\r\n" if kind else dice.choice((b"zz\r\n\r\n", b"-1\r\n\r\n", b"0;" + b"x" * 100 + b"\r\n\r\n"))
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + chunks + end


def fuzz(url: str, model: str, shape: Sequence[int], count: int, seed: int = 0) -> dict[str, int]:
    """Send mutated requests, one after the other.

    Returns:
        How often what came: statuses, GONE, LATE; and "not served any more" where a good request fails at the end.
    """
    found: Counter[str] = Counter()
    line = _Line(url)
    for request in cases(model, shape, count, seed):
        status = line.ask(request)
        found[status] += 1
        if status[:1] == "5" or status in (GONE, LATE):
            print(f"fuzz: {status} for {request[:300]!r}", file=sys.stderr)
    good = seeds(model, shape)[0]
    if count and line.ask(_framed(good.path, good.headers, good.body, random.Random(3))) != "200":
        found["not served any more"] += 1
    line.close()
    return dict(found)


class _Line:
    """A connection that is opened again when the server closed it."""

    def __init__(self, url: str) -> None:
        self._address = address_of(url)
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> str:
        """Return the status of the answer, or what came in its place."""
        fresh = self._socket is None
        status = self._try(request)
        return self._try(request) if status == GONE and not fresh else status

    def _try(self, request: bytes) -> str:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, TIMEOUT_S)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused early: it may have answered
                self._socket.sendall(request)
            status, keeps = self._read(self._socket)
        except TimeoutError:
            status, keeps = LATE, False
        except (OSError, EOFError):
            status, keeps = GONE, False
        if not keeps:
            self.close()
        return status

    @staticmethod
    def _read(line: socket.socket) -> tuple[str, bool]:
        came = b""
        while (end := came.find(b"\r\n\r\n")) < 0:
            chunk = line.recv(65536)
            if not chunk:
                raise EOFError
            came += chunk
        length = re.search(rb"\r\ncontent-length: *(\d+)", came[:end], re.IGNORECASE)
        while length and len(came) < end + 4 + int(length[1]):
            chunk = line.recv(65536)
            if not chunk:
                raise EOFError
            came += chunk
        return came[9:12].decode("latin-1"), bool(length) and b"connection: close" not in came[:end].lower()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def main() -> int:
    """Fuzz a running server as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--shape", default="3,32,32")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = fuzz(asked.url, asked.model, [int(size) for size in asked.shape.split(",")], asked.count, asked.seed)
    print(", ".join(f"{what}: {count}" for what, count in sorted(found.items())))
    return 0 if all(what.startswith(("2", "4")) for what in found) else 1


if __name__ == "__main__":
    sys.exit(main())
