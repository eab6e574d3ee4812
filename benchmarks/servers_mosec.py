"""mosec with a .onnx file: bodies are parsed by orjson, in a process before the model's or in the model's own.

BENCH_STAGES=2 parts the two; BENCH_JSON=own leaves both ways of the text to mosec, as its documentation shows.
"""

import os
from typing import Any

import numpy as np
import orjson
from mosec import Server, Worker
from servers_model import MAX_BATCH, WAIT_S, Model, parse


class Parse(Worker):
    """The stage before the model."""

    def deserialize(self, data: bytes) -> np.ndarray:
        return parse(data)

    def forward(self, data: np.ndarray) -> np.ndarray:
        return data


class Infer(Worker):
    """The model's stage."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def deserialize(self, data: bytes) -> np.ndarray:
        return parse(data)

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        return self.model.predict(data)

    def serialize(self, data: dict[str, Any]) -> bytes:
        return orjson.dumps(data)


class Plain(Worker):
    """The model's stage with mosec's own reading and writing of JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.model.predict([np.asarray(one["input"], np.float32) for one in data])


if __name__ == "__main__":
    server = Server()
    if os.environ.get("BENCH_STAGES") == "2":
        server.append_worker(Parse, num=1)
    kind = Plain if os.environ.get("BENCH_JSON") == "own" else Infer
    server.append_worker(kind, num=1, max_batch_size=MAX_BATCH, max_wait_time=round(1e3 * WAIT_S))
    server.run()
