"""How fast exported files are on ONNX Runtime, in every statistics mode beside the folded file.

With the native operators, without, and with a solver that is written out with Pow. Every contestant takes its turn
in every round of one process; times are medians over the rounds, ratios medians of the ratios within a round.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch

from augserve.bench.written_out import write_out
from augserve.errors import ConfigurationError, unknown_choice
from augserve.export import export_onnx, open_session
from augserve.manifest import UNSEALED, FileMode
from augserve.models import build_model, list_models
from augserve.native import find_library
from augserve.runtime import run_rows
from augserve.runtime.kernels import Native
from augserve.runtime.seal import seal

IMAGE = (3, 32, 32)
FOLDED, UNROLLED = "folded", "batch, written out"
LOAD = 0  # the number of rows in the rows that tell of loading


@dataclass(frozen=True)
class FileRow:
    """One file in one mode.

    Args:
        contestant: the file's mode and what runs its norms.
        rows: rows of a run; LOAD: opening the file.
        ms: median time.
        ratio: of the time, within a round, to that of the folded file.
    """

    contestant: str
    rows: int
    ms: float
    ratio: float


def measure_files(
    model: str = "resnet20",
    *,
    norm: str = "aug",
    rows: Sequence[int] = (32, 128),
    rounds: int = 9,
    threads: int = 0,
    seed: int = 0,
) -> list[FileRow]:
    """Export a network with random weights, folded and adaptive, and time its files.

    Args:
        model: one of `augserve.models.list_models`.
        norm: one with statistics modes, such as "aug", "batch", "robust".
        rows: rows of a run.
        rounds: how often every contestant takes its turn, after one round that is not counted.
        threads: of ONNX Runtime; 0: one a core.
        seed: of weights and data.

    Raises:
        ConfigurationError: an unknown model, or impossible rows or rounds.

    Example:
        >>> {row.contestant for row in measure_files(rows=[2], rounds=1)} >= {"folded", "tracked, standard"}
        True
    """
    if model not in list_models():
        raise unknown_choice("model", model, list_models())
    if rounds < 1 or not rows or min(rows) < 2:
        raise ConfigurationError(f"expected rounds >= 1 and rows >= 2; got {rounds} and {list(rows)}")
    torch.manual_seed(seed)
    network = build_model(model, norm=norm)
    with torch.no_grad():
        for _ in range(10):  # running statistics of its own values
            network(torch.randn(16, *IMAGE))
    example = torch.randn(4, *IMAGE)
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str, Path] = {}
        modes: tuple[FileMode, ...] = ("tracked", "adaptive")
        for mode in modes:
            paths[mode] = Path(folder) / f"{mode}.onnx"
            export_onnx(network.eval(), paths[mode], example=example, mode=mode)
        paths["written out"] = _written_out(paths["adaptive"])
        opened, table = _open(paths, rounds, threads)
    for count in rows:
        images = np.random.default_rng(seed).standard_normal((count, *IMAGE), dtype=np.float32)
        tasks = {name: _task(session, images, weight) for name, (session, weight) in opened.items()}
        table += _race(tasks, count, rounds)
    return table


def _open(
    paths: dict[str, Path], rounds: int, threads: int
) -> tuple[dict[str, tuple[ort.InferenceSession, float]], list[FileRow]]:
    """Return the sessions with their tracked weight, and how long opening them takes."""
    kinds: dict[str, tuple[str, Native]] = {FOLDED: ("tracked", "off"), "native": ("adaptive", "on")}
    if find_library() is None:
        del kinds["native"]
    kinds["standard"] = ("adaptive", "off")
    if not onnx.load(paths["adaptive"]).functions:
        raise ConfigurationError("expected a norm with statistics modes, such as aug, batch, robust")
    opens = {
        name: partial(open_session, paths[file], native=native, threads=threads)
        for name, (file, native) in kinds.items()
    }
    table = _race(dict(opens), LOAD, rounds)
    sessions = {name: task() for name, task in opens.items()}
    opened = {FOLDED: (sessions[FOLDED], 1.0)}
    for kind in list(sessions)[1:]:
        opened |= {
            f"{mode}, {kind}": (sessions[kind], weight) for mode, weight in (("tracked", 1.0), ("batch", 0.0))
        }
    opened[UNROLLED] = (open_session(paths["written out"], native="off", threads=threads), 0.0)
    return opened, table


def _written_out(path: Path) -> Path:
    """Write the adaptive file once more with AugNorm's function as one writes it first."""
    model = onnx.load(path)
    write_out(model)
    (entry,) = model.metadata_props
    entry.value = _SEAL.sub(f'"content_sha256":"{UNSEALED}"', entry.value)
    written = path.with_name("written-out.onnx")
    written.write_bytes(seal(model.SerializeToString()))
    return written


_SEAL = re.compile(r'"content_sha256": ?"[0-9a-f]{64}"')


def _task(session: ort.InferenceSession, images: npt.NDArray[np.float32], weight: float) -> Callable[[], object]:
    weights = np.full(len(images), weight, np.float32)
    return lambda: run_rows(session, images, None, weights)


def _race(tasks: dict[str, Callable[[], object]], rows: int, rounds: int) -> list[FileRow]:
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            task()  # not counted: the caches hold what the session before left
            start = time.perf_counter()
            task()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return [
        FileRow(
            name,
            rows,
            1e3 * statistics.median(taken),
            statistics.median(a / b for a, b in zip(taken, seconds[FOLDED], strict=True)),
        )
        for name, taken in seconds.items()
    ]
