"""LitServe with a .onnx file: bodies are parsed by orjson in its HTTP process, rows go to its worker as arrays."""

import sys
from typing import Annotated, Any

import litserve as ls
import numpy as np
from fastapi import Depends, Request
from servers_model import MAX_BATCH, WAIT_S, Model, parse


async def _row(body: Request) -> np.ndarray:
    return parse(await body.body())


class Api(ls.LitAPI):
    """One row a request."""

    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: Annotated[Any, Depends(_row)]) -> np.ndarray:
        return request

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs

    def predict(self, x: list[np.ndarray]) -> list[dict[str, Any]]:
        return self.model.predict(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue="fast" in sys.argv[2:])
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
