"""`augserve convert`: what it writes, prints and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from augserve.cli import main
from augserve.runtime import open_session, read_manifest
from tests.export.foreign.files import paddle, write

Told = tuple[int, str, str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "in.onnx", paddle())
    return tmp_path / "in.onnx"


def convert(capsys: pytest.CaptureFixture[str], *arguments: object) -> Told:
    with pytest.raises(SystemExit) as caught:
        main(["convert", *(str(argument) for argument in arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_a_file_is_converted_and_the_report_is_shown(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, rows = source.with_name("out.onnx"), source.with_name("rows.npz")
    np.savez(rows, x=np.random.default_rng(0).normal(size=(3, 3, 9, 9)).astype(np.float32))
    status, out, err = convert(capsys, source, target, "--norm", "aug", "--phi", "1", "--example", rows)
    assert (status, err) == (0, "")
    assert "definition" in out
    assert f"wrote {target}" in out
    manifest = read_manifest(open_session(target))
    assert {layer.options["operator"] for layer in manifest.norms} == {"MedianNorm"}
    assert manifest.norms[0].positions == 81
    status, _, err = convert(capsys, source, target, "--shape", "x=3x12x12", "--native", "off")
    assert (status, err) == (0, "")
    manifest = read_manifest(open_session(target))
    assert (manifest.norms[0].options["operator"], manifest.norms[0].positions) == ("BatchNorm", 144)
    assert not any(check.native for check in manifest.parity)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--norm", "robust"], 2, "choose one of: aug, batch"),
        (["--phi", "1.5"], 2, "norm 'batch' does not take 'phi'"),
        (["--norm", "aug", "--phi", "0.5"], 2, "phi"),
        (["--shape", "3x64x64"], 1, "expected shapes of x"),
        (["--shape", "x=axb"], 2, "expected a shape such as"),
        (["--shape", "x=4x8x8"], 1, "expected a row of x as 3xanyxany"),
        (["--example", "missing.npz"], 1, "expected a .npz file"),
        (["--native", "maybe"], 2, "choose one of: auto, off, on"),
    ],
)
def test_wrong_settings_are_told_in_one_line(
    arguments: list[str], status: int, words: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    came, out, err = convert(capsys, source, source.with_name("out.onnx"), *arguments)
    assert (came, out) == (status, "")
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not source.with_name("out.onnx").exists()
