"""Hostile files: what is opened answers as it was written to, anything else is one line that names the file.

A digest is no signature: whoever edits a file can give it a new one (`save_sealed`). Such files must not crash,
read other files or grow without bound either.
"""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from augserve.errors import ModelFileError
from augserve.export import export_onnx
from augserve.manifest import MAX_CHARACTERS, METADATA_KEY
from augserve.norms import AugNorm2d
from augserve.runtime import open_session, read_manifest, run_rows
from augserve.runtime.contents import MAX_NODES
from augserve.runtime.promises import MAX_ROW_VALUES
from augserve.runtime.seal import seal
from augserve.service import Predictor
from tests.export.conftest import small_network
from tests.service.tiny import save_sealed

PREPROCESSING = {"height": 8, "width": 8, "color": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3}
ROWS = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
GROUP = np.array([0, 1, 0, 2, 1, 2])
WEIGHT = np.array([0, 0.5, 0, 1, 0.5, 1], np.float32)
Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("whole")
    example = torch.from_numpy(ROWS)
    for mode in ("adaptive", "tracked"):
        manifest = {"preprocessing": PREPROCESSING}
        export_onnx(
            small_network(AugNorm2d), folder / f"{mode}.onnx", example=example, mode=mode, manifest=manifest
        )
    return {mode: folder / f"{mode}.onnx" for mode in ("adaptive", "tracked")}


def answer(path: Path) -> np.ndarray:
    session = open_session(path, native="off", threads=1)
    return run_rows(session, ROWS, GROUP, WEIGHT)


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        Predictor.open(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


def manifest_of(model: onnx.ModelProto) -> dict[str, object]:
    return json.loads(next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY))


@pytest.mark.parametrize("mode", ["adaptive", "tracked"])
def test_a_file_that_was_cut_is_refused_at_every_percent(files: Files, mode: str, tmp_path: Path) -> None:
    whole = files[mode].read_bytes()
    path = tmp_path / "cut.onnx"
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        refusal(path)
    path.write_bytes(whole + b"\0")
    refusal(path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(answer(path), answer(files[mode]))


@pytest.mark.parametrize("mode", ["adaptive", "tracked"])
def test_a_file_with_a_flipped_bit_is_refused(files: Files, mode: str, tmp_path: Path) -> None:
    whole = files[mode].read_bytes()
    path = tmp_path / "flipped.onnx"
    rng = np.random.default_rng(0)
    around = whole.index(b'"format_version"') * 8  # what these say decides how the rest is read
    places = [*rng.integers(0, 8 * len(whole), 300), *range(around, around + 8 * 22)]
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        refusal(path)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.onnx", b"\0" * 100)
    return stream.getvalue()


@pytest.mark.parametrize("content", [b"", png(), zipped(), b"\x08\x0a" * 50, b"    ORTM" + bytes(100)])
def test_files_of_other_kinds_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    assert "no whole augserve manifest" in refusal(path)


def test_a_foreign_model_is_refused(files: Files, tmp_path: Path) -> None:
    model = onnx.load(files["tracked"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    assert "without an augserve manifest" in refusal(tmp_path / "foreign.onnx")


@pytest.mark.parametrize(
    ("mode", "lie", "words"),
    [
        ("adaptive", {"mode": "tracked"}, "promises mode tracked with inputs input; the graph has input, group"),
        ("tracked", {"mode": "adaptive"}, "promises mode adaptive"),
        ("adaptive", {"shape": [3, 8, 9]}, "any N; the graph has"),
        ("tracked", {"shape": [3, 8]}, "any N; the graph has"),
        ("tracked", {"shape": [10**30] * 3}, f"expected rows of at most {MAX_ROW_VALUES} values"),
        ("tracked", {"classes": ["a", "b", "c"]}, "promises logits as tensor(float) (N, 3)"),
        ("tracked", {"classes": ["a", "b", "c", "d\x1b[2J"]}, "without control characters"),
        ("tracked", {"architecture": "a\nb"}, "without control characters"),
        ("tracked", {"norms": [{"name": "n", "kind": "\u202ek", "num_features": 1, "positions": 1}]}, "control"),
        ("tracked", {"preprocessing": {**PREPROCESSING, "height": 10**9}}, "does not make rows of shape"),
        ("tracked", {"format_version": 2}, "manifest format 2 is newer than 1"),
        ("tracked", {"format_version": 10**9}, "manifest format 1000000000 is newer than 1"),
        ("tracked", {"opset": "x"}, "damaged (opset"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    files: Files, mode: str, lie: dict[str, object], words: str, tmp_path: Path
) -> None:
    model = onnx.load(files[mode])
    path = tmp_path / "lie.onnx"
    document = {**manifest_of(model), **lie}
    save_sealed(model, path, document)
    assert words in refusal(path)
    helper.set_model_props(model, {METADATA_KEY: json.dumps(document)})  # the digest of what it was
    onnx.save(model, path)
    refusal(path)


def test_a_newer_format_named_elsewhere_excuses_no_damage(files: Files, tmp_path: Path) -> None:
    """The digest is looked at first: a text in the graph cannot switch it off."""
    model = onnx.load(files["tracked"])
    path = tmp_path / "m.onnx"
    model.doc_string = '"format_version": 9'
    save_sealed(model, path)
    np.testing.assert_array_equal(answer(path), answer(files["tracked"]))
    numbers = next(tensor for tensor in model.graph.initializer if tensor.raw_data).raw_data[:16]
    path.write_bytes(path.read_bytes().replace(numbers, bytes(16)))
    refusal(path)


@pytest.mark.parametrize(
    "location",
    ["secret.bin", "../../secret.bin", "/etc/passwd", "a/../secret.bin", "*/_ORT_MEM_ADDR_/*", "", None],
)
def test_tensors_in_other_files_are_refused(
    files: Files, location: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would look for them from the working folder, or at an address in memory."""
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    monkeypatch.chdir(tmp_path)
    model = onnx.load(files["tracked"])
    places = {
        "initializer": model.graph.initializer[0],
        "constant": model.graph.node.add(op_type="Constant", output=["unused"])
        .attribute.add(name="value", type=4)
        .t,
        "sparse": model.graph.sparse_initializer.add().values,
    }
    for place, tensor in places.items():
        changed = copy.deepcopy(tensor)
        tensor.CopyFrom(TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[6]))
        tensor.data_location = TensorProto.EXTERNAL
        if location is not None:
            tensor.external_data.add(key="location", value=location)
            tensor.external_data.add(key="offset", value="4096")
        save_sealed(model, tmp_path / "m.onnx")
        assert "the values of one lie in another file" in refusal(tmp_path / "m.onnx"), place
        tensor.CopyFrom(changed)


def calling(model: onnx.ModelProto, calls: dict[str, list[str]]) -> None:
    """Give the model functions of one input and output, each of which calls others in turn, and call the first."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    for name, called in calls.items():
        values = ["x", *(f"v{i}" for i in range(1, len(called))), "y"]
        nodes = [
            helper.make_node(other, [a], [b], domain="own" if other in calls else "")
            for other, a, b in zip(called, values[:-1], values[1:], strict=True)
        ]
        model.functions.append(helper.make_function("own", name, ["x"], ["y"], nodes, imports))
    model.opset_import.append(imports[1])
    for node in model.graph.node:
        node.input[:] = ["called" if name == "input" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node(next(iter(calls)), ["input"], ["called"], domain="own"))


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ({"f": ["f"]}, "function 'own.f' calls itself"),
        ({"f": ["Neg", "g"], "g": ["h"], "h": ["Neg", "g"]}, "calls itself"),
        ({f"f{i}": [f"f{i + 1}"] * 2 for i in range(40)} | {"f40": ["Neg"]}, f"at most {MAX_NODES} nodes"),
    ],
    ids=["itself", "circle", "doubling"],
)
def test_functions_that_never_end_are_refused(
    files: Files, calls: dict[str, list[str]], words: str, tmp_path: Path
) -> None:
    model = onnx.load(files["tracked"])
    calling(model, calls)
    save_sealed(model, tmp_path / "m.onnx")
    assert words in refusal(tmp_path / "m.onnx")


def test_functions_that_share_functions_are_opened(files: Files, tmp_path: Path) -> None:
    model = onnx.load(files["tracked"])
    calling(model, {"f": ["g", "h", "g"], "g": ["Neg", "h"], "h": ["Neg", "Neg"]})
    save_sealed(model, tmp_path / "m.onnx")
    np.testing.assert_array_equal(answer(tmp_path / "m.onnx"), answer(files["tracked"]))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"classes":', '"classes": [' + '"a",' * (MAX_CHARACTERS // 4) + '"a"], "was":'),
        lambda text: text.replace('"data":', '"more": ' + "[" * 1_000_000 + "]" * 1_000_000 + ', "data":'),
        lambda text: text.replace('"opset":', '"opset": ' + "9" * 1_000_000 + ', "was":'),
        lambda text: text.replace('"opset":', '"opset": 1e999999999, "was":'),
        lambda text: text.replace('"architecture":', '"architecture": "\\ud800", "was":'),
    ],
    ids=["long", "deep", "digits", "exponent", "surrogate"],
)
def test_a_manifest_of_the_worst_kind_is_refused(files: Files, edit: Callable[[str], str], tmp_path: Path) -> None:
    model = onnx.load(files["tracked"])
    save_sealed(model, tmp_path / "m.onnx")
    text = json.dumps({**manifest_of(model), "content_sha256": "0" * 64})
    changed = edit(text)
    assert changed != text
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=changed)
    (tmp_path / "m.onnx").write_bytes(seal(model.SerializeToString()))
    refusal(tmp_path / "m.onnx")


def test_a_file_that_no_message_can_be_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # a hole: it takes no room
    assert "expected at most 2147483647 bytes" in refusal(path)


@pytest.mark.parametrize("name", [b"input", b"logits"])
def test_names_that_are_no_utf8_are_refused_without_a_word_more(
    files: Files, name: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(files["tracked"])
    save_sealed(model, tmp_path / "m.onnx")
    whole = model.SerializeToString()  # not sealed yet
    field = bytes([len(name)]) + name
    assert field in whole
    (tmp_path / "m.onnx").write_bytes(seal(whole.replace(field, bytes([len(name)]) + name[:-1] + b"\xff")))
    refusal(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_parameters_of_other_sizes_crash_no_kernel(files: Files, tmp_path: Path) -> None:
    """Sealed files whose norm nodes the native kernels must not believe: refused, or an error of the run."""
    model = onnx.load(files["adaptive"])
    node = next(node for node in model.graph.node if node.domain == "augserve")
    edits: list[Callable[[onnx.NodeProto, onnx.GraphProto], object]] = []
    for index in range(1, 7):

        def short(node: onnx.NodeProto, graph: onnx.GraphProto, index: int = index) -> None:
            values = np.ones(1, np.int64 if index == 5 else np.float32)
            graph.initializer.append(numpy_helper.from_array(values, "short"))
            node.input[index] = "short"

        edits.append(short)
    edits.append(lambda node, _: node.input.pop())
    edits.append(lambda node, _: node.attribute.pop())
    edits.append(lambda node, _: setattr(next(a for a in node.attribute if a.name == "max_steps"), "i", 2**62))
    edits.append(lambda node, _: setattr(next(a for a in node.attribute if a.name == "phi"), "f", float("nan")))
    place = list(model.graph.node).index(node)
    for number, edit in enumerate(edits):
        changed = copy.deepcopy(model)
        edit(changed.graph.node[place], changed.graph)
        save_sealed(changed, tmp_path / f"{number}.onnx")
    program = (
        "import sys\nimport numpy as np\nfrom augserve.runtime import open_session, run_rows\n"
        "for path in sys.argv[2:]:\n"
        "    try:\n        run_rows(open_session(path, threads=1), np.load(sys.argv[1]), np.zeros(6, np.int64),"
        " np.zeros(6, np.float32))\n"
        "    except Exception as error:\n        print(type(error).__name__)\n"
        "    else:\n        print('answered')\n"
    )
    np.save(tmp_path / "rows.npy", ROWS)
    paths = [str(tmp_path / f"{number}.onnx") for number in range(len(edits))]
    command = [sys.executable, "-c", program, str(tmp_path / "rows.npy"), *paths]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(edits)


def test_commands_refuse_in_one_line_and_live(files: Files, tmp_path: Path) -> None:
    """A sample in processes of their own: status 1, one line, no signal, no traceback."""
    whole = files["adaptive"].read_bytes()
    samples = {
        "cut": whole[:-7],
        "flipped": whole.replace(b'"adaptive"', b'"adaptivf"'),
        "empty": b"",
        "png": png(),
    }
    (tmp_path / "image.png").write_bytes(png())
    for name, content in samples.items():
        (tmp_path / name).write_bytes(content)
    model = onnx.load(files["adaptive"])
    calling(model, {"f": ["f"]})
    save_sealed(model, tmp_path / "endless")
    image = str(tmp_path / "image.png")
    commands = {
        "info": lambda path: ["info", path],
        "predict": lambda path: ["predict", image, "--model", path],
        "serve": lambda path: ["serve", path, "--port", "0"],
    }
    for name, kind in (
        ("cut", "info"),
        ("flipped", "predict"),
        ("empty", "serve"),
        ("png", "info"),
        ("endless", "predict"),
    ):
        path = str(tmp_path / name)
        command = [sys.executable, "-m", "augserve", *commands[kind](path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, (name, kind, done)
        assert done.stderr.startswith("error: ") or kind == "serve", done.stderr
        assert "Traceback" not in done.stderr
        assert "error: " + path in done.stderr.replace("\n", ""), done.stderr
    command = [sys.executable, "-m", "augserve", "predict", image, "--model", str(files["adaptive"])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_what_opens_says_what_it_is(files: Files) -> None:
    for mode, path in files.items():
        assert read_manifest(open_session(path)).mode == mode
