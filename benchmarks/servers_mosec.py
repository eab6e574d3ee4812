"""mosec with a .onnx file: bodies are parsed by orjson, in a process before the model's or in the model's own."""

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


if __name__ == "__main__":
    server = Server()
    if os.environ.get("BENCH_STAGES") == "2":
        server.append_worker(Parse, num=1)
    server.append_worker(Infer, num=1, max_batch_size=MAX_BATCH, max_wait_time=round(1e3 * WAIT_S))
    server.run()
