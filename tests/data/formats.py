"""Writers of every official format, from arrays; they share no code with the readers."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


class CifarParts(NamedTuple):
    """images: uint8 (6, N, 3, 32, 32); labels: (6, N); the last of the six is the test batch."""

    images: np.ndarray
    labels: np.ndarray


def python_version(parts: CifarParts, write: Any = None) -> dict[str, bytes]:
    """Return the files of the Python version by name; `write` pickles one dict (default: as Python 2 did)."""
    write = write or python2_pickle
    files = {
        name: write(
            {
                b"batch_label": name.encode(),
                b"labels": [int(label) for label in labels],
                b"data": images.reshape(len(images), -1),
                b"filenames": [f"image_{i}.png".encode() for i in range(len(images))],
            }
        )
        for name, images, labels in zip(BATCHES, *parts, strict=True)
    }
    files["batches.meta"] = write({b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072})
    return files


def binary_version(parts: CifarParts) -> dict[str, bytes]:
    """Return the files of the binary version by name."""
    files = {
        f"{name}.bin": b"".join(
            bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
        )
        for name, images, labels in zip(BATCHES, *parts, strict=True)
    }
    files["batches.meta.txt"] = ("\n".join(NAMES) + "\n\n").encode()
    return files


def text_keys(protocol: int) -> Any:
    """Return a pickler of today: keys and names as text, as after loading with encoding='latin1'."""

    def write(value: dict[bytes, Any]) -> bytes:
        def text(one: Any) -> Any:
            return one.decode() if isinstance(one, bytes) else one

        return pickle.dumps(
            {text(k): [text(e) for e in v] if isinstance(v, list) else text(v) for k, v in value.items()},
            protocol=protocol,
        )

    return write


def python2_pickle(value: Any) -> bytes:
    """Pickle as Python 2 did under protocol 2: byte strings as STRING opcodes, NumPy 1's names."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, bytes):
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items()) + b"u"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"".join(_opcodes(size) for size in value.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return made + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            add_member(tar, f"{folder}/{name}", content)
    return path


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_strips(
    path: Path, images: np.ndarray, labels: np.ndarray, rows: int = 8, replace: dict[str, Any] | None = None
) -> Path:
    """Write images (N, H, W) or (N, H, W, 3), `rows` a strip; `replace` changes arrays, None drops one."""
    strips = []
    for begin in range(0, len(images), rows):
        stacked = images[begin : begin + rows].reshape(-1, *images.shape[2:])
        buffer = io.BytesIO()
        Image.fromarray(stacked).convert("RGB").save(buffer, "WEBP", lossless=True, exact=True, method=0)
        strips.append(buffer.getvalue())
    arrays: dict[str, Any] = {
        "webp": np.frombuffer(b"".join(strips), np.uint8),
        "offsets": np.cumsum([0, *map(len, strips)]),
        "labels": labels.astype(np.uint8),
        "shape": np.array(images.shape),
    }
    arrays |= replace or {}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def idx(array: np.ndarray, code: int = 8) -> bytes:
    """Return an array of bytes in the idx format."""
    header = bytes((0, 0, code, array.ndim)) + b"".join(struct.pack(">I", size) for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def fashion_files(parts: dict[str, tuple[np.ndarray, np.ndarray]], *, compress: bool) -> dict[str, bytes]:
    """Return Fashion-MNIST's four files by name."""
    files = {}
    for part, (images, labels) in parts.items():
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(labels)
    return {f"{k}.gz": gzip.compress(v, 1) for k, v in files.items()} if compress else files
