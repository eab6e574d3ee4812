"""The served file for the servers that `servers.py` starts: NumPy and ONNX Runtime alone.

Their settings come from the environment, since both servers read the command line themselves.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson

MAX_BATCH, WAIT_S = 32, 0.005


class Model:
    """A session in tracked mode."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "0"))
        self._session = ort.InferenceSession(os.environ["BENCH_FILE"], options, providers=["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_inputs()]

    def predict(self, rows: list[np.ndarray]) -> list[dict[str, Any]]:
        """Return the most probable class and all probabilities of each row, float32 (C, H, W)."""
        batch = np.stack(rows)
        feed = {self._names[0]: batch}
        if "tracked_weight" in self._names:
            feed |= {"group": np.zeros(len(batch), np.int64), "tracked_weight": np.ones(len(batch), np.float32)}
        logits = self._session.run(None, feed)[0].astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        return [{"index": int(row.argmax()), "probabilities": row.tolist()} for row in probabilities]


def parse(body: bytes) -> np.ndarray:
    """Return the row of a body {"input": nested numbers}."""
    return np.array(orjson.loads(body)["input"], np.float32)
