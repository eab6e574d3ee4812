"""What tritonclient[http] sees of a server: run by a Python that has it, prints every answer as one JSON object.

Arguments: host:port, and an .npz file with arrays FP32, FP16 and UINT8.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

NAMES = ["logits", "probabilities", "labels"]


def tensor(rows: np.ndarray, datatype: str, *, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput("input", list(rows.shape), datatype)
    given.set_data_from_numpy(rows, binary_data=binary)
    return given


def seen(result: triton.InferResult) -> dict[str, Any]:
    arrays = {name: result.as_numpy(name) for name in NAMES}
    texts = {name: values.astype(np.str_) if values.dtype == object else values for name, values in found(arrays)}
    return {"response": result.get_response(), **{name: values.tolist() for name, values in texts.items()}}


def found(arrays: dict[str, np.ndarray | None]) -> list[tuple[str, np.ndarray]]:
    return [(name, values) for name, values in arrays.items() if values is not None]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except InferenceServerException as error:
        return {"error": error.message(), "status": error.status()}


def main(address: str, file: str) -> dict[str, Any]:
    arrays = dict(np.load(file))
    rows = arrays["FP32"]
    with triton.InferenceServerClient(address, concurrency=4) as client:

        def infer(*inputs: triton.InferInput, model: str = "tiny", **how: Any) -> Any:
            return outcome(lambda: seen(client.infer(model, list(inputs), **how)))

        plain = tensor(rows, "FP32")
        several = [
            triton.InferRequestedOutput("labels"),
            triton.InferRequestedOutput("logits", binary_data=False),
            triton.InferRequestedOutput("probabilities"),
        ]
        best = [triton.InferRequestedOutput("logits", class_count=2)]
        wrong = tensor(rows[:, :2].copy(), "FP32")
        waiting = [client.async_infer("tiny", [plain], parameters={"batch_size": k + 1}) for k in range(4)]
        together = [seen(one.get_result()) for one in waiting]  # an answer that nobody reads keeps its connection
        seen_now = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": [client.is_model_ready("tiny"), client.is_model_ready("tiny", "1")],
            "not_ready": [client.is_model_ready("other"), client.is_model_ready("tiny", "9")],
            "server": client.get_server_metadata(),
            "model": client.get_model_metadata("tiny"),
            "FP32": infer(plain, request_id="seven"),
            "FP16": infer(tensor(arrays["FP16"], "FP16")),
            "UINT8": infer(tensor(arrays["UINT8"], "UINT8")),
            "json": infer(tensor(rows, "FP32", binary=False), outputs=several),
            "version": infer(plain, model_version="1"),
            "batch": infer(plain, parameters={"tracking": False, "batch_size": 4, "remainder": "merge"}),
            "prior": infer(plain, parameters={"prior": 10}),
            "blend": infer(plain, parameters={"tracked_weight": 0.25, "batch_size": 5}),
            "classification": infer(plain, outputs=best),
            "gzip": infer(plain, request_compression_algorithm="gzip", response_compression_algorithm="gzip"),
            "deflate": infer(plain, request_compression_algorithm="deflate"),
            "async": together,
            "aio": asyncio.run(asked(address, rows)),
            "unknown_model": infer(plain, model="other"),
            "unknown_version": infer(plain, model_version="9"),
            "wrong_shape": infer(wrong),
            "bad_parameter": infer(plain, parameters={"batchsize": 2}),
            "bad_value": infer(plain, parameters={"tracking": "no"}),
            "bad_output": infer(plain, outputs=[triton.InferRequestedOutput("scores")]),
            "index": client.get_model_repository_index(),
        }
        client.unload_model("tiny")
        seen_now["unloaded"] = [client.is_model_ready("tiny"), client.get_model_repository_index(), infer(plain)]
        client.load_model("tiny")
        seen_now["loaded"] = [client.is_model_ready("tiny"), infer(plain)]
        seen_now["load_unknown"] = outcome(lambda: client.load_model("other"))
        seen_now["load_config"] = outcome(lambda: client.load_model("tiny", config="{}"))
    return seen_now


async def asked(address: str, rows: np.ndarray) -> dict[str, Any]:
    async with triton_aio.InferenceServerClient(address) as client:
        return seen(await client.infer("tiny", [tensor(rows, "FP32")], parameters={"tracking": False}))


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
