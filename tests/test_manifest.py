"""The manifest survives a round trip; whatever is wrong with one is a ModelFileError that names the file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from augserve.errors import ModelFileError
from augserve.manifest import FILE_MODES, FORMAT_VERSION, Manifest, NormLayer, ParityCheck, Preprocessing
from augserve.manifest import parse_manifest as parse

SMALLEST = {"mode": "tracked", "architecture": "tiny", "classes": ["a", "b"], "shape": [3, 8, 8], "opset": 18}
FULL = Manifest(
    mode="adaptive",
    default_mode="batch",
    architecture="resnet20",
    classes=["Katze", "犬"],
    shape=[3, 32, 32],
    preprocessing=Preprocessing(height=32, width=32, color="RGB", mean=[0.1, 0.2, 0.3], std=[1.0, 0.5, 1e-3]),
    norms=[NormLayer(name="norm1", kind="AugNorm2d", num_features=16, positions=9, options={"phi": 1.5})],
    opset=18,
    versions={"augserve": "0.1.0"},
    checkpoint_sha256="0" * 64,
    data="digits",
    parity=[ParityCheck(name="batch", rows=2, max_abs_difference=1e-7, top1_agreement=1.0, repeats_identical=True)],
)


def changed(**fields: object) -> str:
    return json.dumps({**SMALLEST, **fields})


def test_round_trip_keeps_every_field() -> None:
    assert parse(FULL.model_dump_json(), "a.onnx") == FULL


def test_what_is_left_out_has_a_default() -> None:
    manifest = parse(json.dumps(SMALLEST), "a.onnx")
    assert manifest.format_version == FORMAT_VERSION
    assert (manifest.default_mode, manifest.preprocessing, manifest.norms) == ("tracked", None, [])
    assert (manifest.checkpoint_sha256, manifest.data, manifest.parity) == (None, None, [])


def test_unknown_fields_of_the_same_format_are_ignored() -> None:
    assert parse(changed(remark="hello"), "a.onnx") == parse(json.dumps(SMALLEST), "a.onnx")


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FULL.mode = "batch"


def test_only_an_adaptive_file_serves_several_modes() -> None:
    served = {mode: parse(changed(mode=mode), "a.onnx").modes for mode in FILE_MODES}
    assert served == {"adaptive": ("tracked", "batch", "blend"), "batch": ("batch",), "tracked": ("tracked",)}


def test_min_positions_is_the_smallest_of_any_layer() -> None:
    layer = {"name": "norm", "kind": "batch", "num_features": 4}
    norms = [{**layer, "positions": positions} for positions in (64, 1, 16)]
    assert parse(changed(norms=norms), "a.onnx").min_positions == 1
    assert parse(changed(norms=norms[:1]), "a.onnx").min_positions == 64
    assert parse(changed(), "a.onnx").min_positions == 2


PREPROCESSING = {"height": 8, "width": 8, "color": "RGB", "mean": [0, 0, 0], "std": [1, 1, 1]}
LAYER = {"name": "norm", "kind": "batch", "num_features": 4, "positions": 4}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "document"),
        ("{", "document"),
        ("null", "document"),
        ("[]", "document"),
        ('"text"', "document"),
        ("[" * 10_000, "document"),
        ("\x00", "document"),
        ("{}", "mode"),
        (changed(mode="blend"), "mode"),
        (changed(mode=None), "mode"),
        (changed(default_mode="blend"), "default_mode"),
        (changed(classes="ab"), "classes"),
        (changed(classes=[1, 2]), "classes.0"),
        (changed(shape=[3, 0, 8]), "shape.1"),
        (changed(shape=[3, "x", 8]), "shape.1"),
        (changed(opset="new"), "opset"),
        (changed(format_version="two"), "format_version"),
        (changed(preprocessing={}), "preprocessing.height"),
        (changed(preprocessing={**PREPROCESSING, "height": 0}), "preprocessing.height"),
        (changed(preprocessing={**PREPROCESSING, "color": "CMYK"}), "preprocessing.color"),
        (changed(preprocessing={**PREPROCESSING, "color": "L"}), "color L takes 1"),
        (changed(preprocessing={**PREPROCESSING, "mean": [0]}), "color RGB takes 3"),
        (changed(preprocessing={**PREPROCESSING, "std": [1, 0, 1]}), "preprocessing.std.1"),
        (changed(preprocessing={**PREPROCESSING, "std": [1, float("nan"), 1]}), "preprocessing.std.1"),
        (changed(preprocessing={**PREPROCESSING, "std": [1, float("inf"), 1]}), "preprocessing.std.1"),
        (changed(preprocessing={**PREPROCESSING, "mean": [0, 0, float("nan")]}), "preprocessing.mean.2"),
        (changed(norms=[{**LAYER, "positions": 0}]), "norms.0.positions"),
        (changed(norms=[{**LAYER, "num_features": 0}]), "norms.0.num_features"),
        (changed(norms=[{"name": "norm"}]), "norms.0.kind"),
        (changed(parity=[{}]), "parity.0.name"),
    ],
)
def test_damage_names_the_file_and_the_place(text: str, where: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        parse(text, "folder/a.onnx")
    message = str(caught.value)
    assert message.startswith("folder/a.onnx: its manifest is damaged (")
    assert where in message
    assert message.endswith("export the file again")


@pytest.mark.parametrize("fields", [{}, {"mode": "streaming"}, {"shape": {"input": [3, 8, 8]}}])
def test_a_newer_format_is_told_from_damage(fields: dict[str, object]) -> None:
    """A newer format may well not fit this version's schema: upgrading helps, exporting again does not."""
    text = changed(format_version=FORMAT_VERSION + 1, **fields)
    with pytest.raises(ModelFileError, match=f"a.onnx: .*{FORMAT_VERSION + 1} is newer than {FORMAT_VERSION}"):
        parse(text, "a.onnx")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(Manifest.model_fields)), JSON, max_size=3))
def test_any_change_of_a_field_is_read_or_refused(fields: dict[str, object]) -> None:
    try:
        manifest = parse(json.dumps({**FULL.model_dump(), **fields}), "a.onnx")
    except ModelFileError:
        return
    assert manifest.mode in FILE_MODES


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match=r"^a\.onnx: "):
        parse(text, "a.onnx")
