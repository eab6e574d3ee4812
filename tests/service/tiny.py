"""A network small enough to compute by hand, and a server around it on a free port.

logits = (m - (lambda t + (1 - lambda) g)) W + m V, with m the mean of each channel of a row, g the mean of m
over the row's group and t the tracked mean.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnx.checker
import onnx.parser
import uvicorn

from augserve.manifest import UNSEALED
from augserve.runtime.seal import seal
from augserve.service import create_app, read_settings
from augserve.service.server import KEEP_ALIVE_S

CLASSES = ["ant", "bee", "cow", "dog"]
SHAPE = [3, 8, 8]
TRACKED = np.array([0.25, -0.5, 1.0], np.float32)
W = np.array([[1, -2, 0.5, 0], [0, 1, -1, 2], [3, 0, 1, -1]], np.float32)
V = np.array([[0.1, 0.2, -0.3, 0], [0, -0.1, 0.2, 0.1], [0.2, 0, 0.1, -0.2]], np.float32)
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.5, 0.2]

_GRAPHS = {
    "adaptive": (
        "float[N,3,8,8] input, int64[N] group, float[N] tracked_weight",
        """
        ids = Unsqueeze(group, one)
        wide = Expand(ids, size)
        zeros = ConstantOfShape(size)
        ones = Exp(zeros)
        sums = ScatterElements<axis=0, reduction="add">(zeros, wide, m)
        counts = ScatterElements<axis=0, reduction="add">(zeros, wide, ones)
        group_sum = Gather<axis=0>(sums, group)
        group_count = Gather<axis=0>(counts, group)
        own = Div(group_sum, group_count)
        weight = Unsqueeze(tracked_weight, one)
        kept = Mul(weight, tracked)
        unit = Exp(weightless)
        rest = Sub(unit, weight)
        fresh = Mul(rest, own)
        center = Add(kept, fresh)
        """,
    ),
    "batch": ("float[N,3,8,8] input", "center = ReduceMean<keepdims=1>(m, batch_axis)"),
    "tracked": ("float[N,3,8,8] input", "center = Identity(tracked)"),
}


def write_model(path: Path, mode: str = "adaptive", *, manifest: bool = True, **changes: object) -> Path:
    """Write the network with its manifest; `changes` replace fields of the manifest."""
    inputs, center = _GRAPHS[mode]

    def table(values: np.ndarray) -> str:
        return "{" + ", ".join(repr(float(value)) for value in values.ravel()) + "}"

    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 18]>
        tiny ({inputs}) => (float[N,4] logits)
        <float[3] tracked = {table(TRACKED)}, float[3,4] w = {table(W)}, float[3,4] v = {table(V)},
         int64[2] axes = {{2, 3}}, int64[1] one = {{1}}, int64[1] batch_axis = {{0}},
         float[1] weightless = {{0.0}}>
        {{
            m = ReduceMean<keepdims=0>(input, axes)
            size = Shape(m)
            {center}
            off = Sub(m, center)
            left = MatMul(off, w)
            right = MatMul(m, v)
            logits = Add(left, right)
        }}
        """
    )
    onnx.checker.check_model(model)
    if manifest:
        document = {
            "mode": mode,
            "architecture": "tiny",
            "classes": CLASSES,
            "shape": SHAPE,
            "opset": 18,
            "preprocessing": {"height": 8, "width": 8, "color": "RGB", "mean": MEAN, "std": STD},
            "norms": [{"name": "norm", "kind": "batch", "num_features": 3, "positions": 64}],
            **changes,
        }
        save_sealed(model, path, document)
    else:
        onnx.save(model, path)
    return path


def save_sealed(model: onnx.ModelProto, path: Path, document: dict[str, object] | None = None) -> None:
    """Write an edited model as a lying exporter would: with this manifest or its own, and a digest that holds."""
    if document is None:
        document = json.loads(model.metadata_props[0].value)
    onnx.helper.set_model_props(model, {"augserve": json.dumps({**document, "content_sha256": UNSEALED})})
    path.write_bytes(seal(model.SerializeToString()))


def expected_logits(rows: np.ndarray, groups: list[list[int]], weights: list[float]) -> np.ndarray:
    """The same network in float64 NumPy; rows outside every group come out as NaN."""
    m = rows.astype(np.float64).mean(axis=(2, 3))
    logits = np.full((len(rows), 4), np.nan)
    for members, weight in zip(groups, weights, strict=True):
        center = weight * TRACKED + (1 - weight) * m[members].mean(axis=0)
        logits[members] = (m[members] - center) @ W + m[members] @ V
    return logits


def some_rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)


@contextmanager
def running(model: Path, *, wait: bool = True, **settings: object) -> Iterator[httpx.Client]:
    """Serve a model from a thread; yields an HTTP client whose base address is the server's."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # as augserve.service.server
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = create_app(read_settings(model=model, threads=1, **settings))
    config = uvicorn.Config(app, log_level="critical", lifespan="on", timeout_keep_alive=KEEP_ALIVE_S)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            client.service = app.state.service  # for tests that look at its state
            wait_until(lambda: server.started)
            if wait:
                wait_until(lambda: client.get("/readyz").status_code == 200)
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


def wait_until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
