"""The native operators in a process: sessions share them, its floating-point mode stays, old runtimes are told."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.export.operators.native_operator_cases import LIBRARY, NEEDS_LIBRARY, feed, one_node, run

pytestmark = NEEDS_LIBRARY


def test_sessions_share_options_and_outlive_them() -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(LIBRARY))
    model = one_node("AugNorm")
    first, second = ort.InferenceSession(model, options), ort.InferenceSession(model, options)
    del options
    values = feed(7)
    expected = run(first, values)
    del first
    np.testing.assert_array_equal(run(second, values), expected)


def test_registration_leaves_denormals_alone_and_the_process_ends_well(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(one_node("AugNorm"))
    values: dict[str, Any] = feed(19, channels=24, positions=(12, 13))
    np.savez(tmp_path / "feed.npz", **values)
    script = """
import sys
import numpy as np
import onnxruntime as ort
folder, library = sys.argv[1:]
values = dict(np.load(folder + "/feed.npz"))
for _ in range(3):
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    session = ort.InferenceSession(folder + "/m.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, {node.name: values[node.name] for node in session.get_inputs()})
single = np.float32("1e-40")  # the smallest normal one is 1.2e-38
print(np.float32(0.5) * single, (np.full(64, single) * np.float32(0.5)).min())
"""
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path), str(LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert (done.returncode, done.stdout.split()) == (0, ["5e-41", "5e-41"]), done.stderr


def test_a_runtime_that_is_too_old_is_told() -> None:
    """A runtime without API version 18, whose version 1 has the first slot of the table alone."""
    told: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, text: bytes) -> int:
        told.append(text)
        return code

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p).value)

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version: int) -> int | None:
        return ctypes.addressof(table) if version == 1 else None

    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p).value, None)
    register = ctypes.CDLL(str(LIBRARY)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1
    assert told == [b"augserve's operators need ONNX Runtime 1.18 or newer"]
