"""The same file and the same library on the oldest ONNX Runtime that augserve takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from augserve.export import export_onnx, open_session
from augserve.native import find_library
from augserve.norms import AugNorm2d
from augserve.runtime import run_rows
from tests.export.conftest import small_network

OLDEST = "onnxruntime==1.20.1"
PROGRAM = """
import sys
import numpy as np
import onnxruntime as ort
folder, library = sys.argv[1:]
assert ort.__version__ == "1.20.1", ort.__version__
values = dict(np.load(folder + "/feed.npz"))
for name in ("native", "standard") if library else ("standard",):
    options = ort.SessionOptions()
    if name == "native":
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(folder + "/m.onnx", options, providers=["CPUExecutionProvider"])
    np.save(folder + f"/{name}.npy", session.run(["logits"], values)[0])
"""

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there is no such onnxruntime for this Python")
def test_file_and_library_on_the_oldest_runtime(rows: Tensor, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), OLDEST]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    export_onnx(small_network(AugNorm2d), tmp_path / "m.onnx", example=rows, native="off")
    group = np.random.default_rng(0).integers(0, 3, len(rows))
    weight = np.array([0, 1, 0.4], np.float32)[group]
    np.savez(tmp_path / "feed.npz", input=rows.numpy(), group=group, tracked_weight=weight)
    library = find_library()
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(library or "")],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    for name, native in (("standard", "off"), ("native", "on")):
        if library or native == "off":
            expected = run_rows(open_session(tmp_path / "m.onnx", native=native), rows.numpy(), group, weight)
            np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, atol=1e-5)
