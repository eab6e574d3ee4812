"""Which file is taken for the native library, what becomes of bad ones, and what loading it does to a process."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import augserve
from augserve import native
from augserve.errors import ConfigurationError

HEADER = Path(__file__).resolve().parents[1] / "native" / "include" / "augserve.h"
COMPILER = shutil.which("c++")
BUILT = native.find_library()

needs_library = pytest.mark.skipif(BUILT is None, reason="this augserve was installed without its native library")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.CHOICE_VARIABLE, raising=False)
    monkeypatch.delenv(native.LIBRARY_VARIABLE, raising=False)
    native._load.cache_clear()


def compiled(folder: Path, source: str) -> Path:
    """A shared library of this C++ source."""
    assert COMPILER is not None
    path = folder / native.LIBRARY_NAME
    command = [COMPILER, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
    return path


def python(script: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def nowhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Path, Path]:
    """Let augserve be a package without a library; return where one beside it, and where pip's, would be."""

    class Distribution:
        def locate_file(self, path: str) -> Path:
            return folder / "site-packages" / path

        def read_text(self, _: str) -> str | None:
            return None

    monkeypatch.setattr(augserve, "__file__", str(folder / "augserve" / "__init__.py"))
    monkeypatch.setattr(native, "_distribution", Distribution)
    places = [folder / "augserve" / "lib", folder / "site-packages" / "augserve" / "lib"]
    for place in places:
        place.mkdir(parents=True)
    return places[0] / native.LIBRARY_NAME, places[1] / native.LIBRARY_NAME


# --- which file ------------------------------------------------------------------------------------------


def test_argument_then_variable_then_package_then_what_pip_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, installed = nowhere(monkeypatch, tmp_path)
    named, given = tmp_path / "named", tmp_path / "given"
    assert native.find_library() is None
    for path in (installed, beside, named):
        path.write_text("")
        if path == named:
            monkeypatch.setenv(native.LIBRARY_VARIABLE, str(named))
        assert native.find_library() == path
    given.write_text("")
    assert native.find_library(given) == given
    assert native.find_library(str(given)) == given


def test_an_empty_variable_counts_as_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere(monkeypatch, tmp_path)
    monkeypatch.setenv(native.LIBRARY_VARIABLE, "")
    monkeypatch.setenv(native.CHOICE_VARIABLE, "")
    assert native.load_library() is None


def test_a_bare_name_is_a_file_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("libc.so.6").write_text("")
    assert native.find_library("libc.so.6") == tmp_path / "libc.so.6"


def test_without_a_distribution_the_package_alone_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, _ = nowhere(monkeypatch, tmp_path)
    monkeypatch.setattr(native, "_distribution", lambda: None)
    assert native.find_library() is None
    beside.write_text("")
    assert native.find_library() == beside
    assert "pip install" in native.how_to_get_it()


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_a_named_file_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setenv(native.CHOICE_VARIABLE, choice)
    with pytest.raises(
        ConfigurationError, match=r"^expected the native library at .*/none, found nothing; name the"
    ):
        native.load_library(tmp_path / "none")
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"^AUGSERVE_NATIVE_LIBRARY: .*found a folder; .*unset"):
        native.load_library()
    status = native.describe()
    assert (status.state, status.path) == ("unusable", tmp_path)
    assert "found a folder" in status.reason


# --- whether it is used ----------------------------------------------------------------------------------


def test_without_a_library_auto_goes_on_and_on_tells_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere(monkeypatch, tmp_path)
    for choice in ("auto", "off"):
        monkeypatch.setenv(native.CHOICE_VARIABLE, choice)
        assert native.load_library() is None
    assert caplog.records == []
    monkeypatch.setenv(native.CHOICE_VARIABLE, "on")
    with pytest.raises(
        ConfigurationError, match=r"there is no native library; install a C\+\+ compiler .*pip install"
    ):
        native.load_library()
    status = native.describe()
    assert (status.state, status.path, status.abi) == ("missing", None, None)
    assert "install a C++ compiler" in status.reason


def test_another_choice_lists_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CHOICE_VARIABLE, "yes")
    for function in (native.load_library, native.describe):
        with pytest.raises(ConfigurationError, match="AUGSERVE_NATIVE 'yes'; choose one of: auto, off, on"):
            function()


@needs_library
@pytest.mark.parametrize("choice", ["auto", "on"])
def test_the_library_is_loaded_once(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv(native.CHOICE_VARIABLE, choice)
    library = native.load_library()
    assert library is not None
    assert library is native.load_library()
    assert library.augserve_abi() == native.ABI
    status = native.describe()
    assert (status.state, status.path, status.abi, status.reason) == ("loaded", BUILT, native.ABI, "")
    assert status.instruction_set in ("avx512", "avx2", "baseline")


@needs_library
def test_off_is_heard_after_the_library_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.load_library() is not None
    monkeypatch.setenv(native.CHOICE_VARIABLE, "off")
    assert native.load_library() is None
    status = native.describe()
    assert (status.state, status.path, status.abi) == ("off", BUILT, None)
    assert "AUGSERVE_NATIVE=off" in status.reason


@pytest.mark.skipif(not HEADER.is_file(), reason="the header is in the repository")
def test_the_interface_is_that_of_the_header() -> None:
    assert re.findall(r"^#define AUGSERVE_ABI (\d+)$", HEADER.read_text(), re.MULTILINE) == [str(native.ABI)]


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ('{"dir_info": {"editable": true}, "url": "file:///a%20b/c"}', "--no-deps --editable '/a b/c'"),
        ('{"dir_info": {}, "url": "file:///c"}', "--no-deps /c"),
        ('{"archive_info": {}, "url": "file:///c.whl"}', "--no-deps . (in the folder of augserve's source)"),
        (None, "--no-deps . (in the folder of augserve's source)"),
        ("damaged", "--no-deps . (in the folder of augserve's source)"),
    ],
)
def test_the_advice_fits_how_augserve_was_installed(
    monkeypatch: pytest.MonkeyPatch, origin: str | None, command: str
) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return origin

    monkeypatch.setattr(native, "_distribution", Distribution)
    assert native.how_to_get_it().endswith(f" -m pip install --force-reinstall {command}")


# --- files that are not it -------------------------------------------------------------------------------


def refused(path: Path, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """See that auto goes on with one warning, that on is an error, and that both tell why and what to do."""
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(path))
    do = "name another file, or unset AUGSERVE_NATIVE_LIBRARY"
    with caplog.at_level(logging.WARNING):
        assert [native.load_library(), native.load_library()] == [None, None]
    (warning,) = caplog.messages
    status = native.describe()
    assert (status.state, status.path, status.instruction_set) == ("unusable", path, None)
    monkeypatch.setenv(native.CHOICE_VARIABLE, "on")
    with pytest.raises(ConfigurationError) as caught:
        native.load_library()
    for told in (warning, status.reason, str(caught.value)):
        assert str(path) in told
        assert why in told
        assert do in told


def test_a_text_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / native.LIBRARY_NAME
    path.write_text("not a library\n" * 10)
    refused(path, "cannot be loaded", monkeypatch, caplog)


@needs_compiler
@pytest.mark.parametrize(
    ("functions", "why"),
    [
        ("", "is not augserve's native library"),
        ("long long augserve_abi() { return 1; }", "is not augserve's native library"),
        (
            'long long augserve_abi() { return 4096; } const char *augserve_instruction_set() { return "avx2"; }',
            f"has interface 4096, this augserve {augserve.__version__} needs {native.ABI}",
        ),
    ],
)
def test_another_library_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    functions: str,
    why: str,
) -> None:
    refused(compiled(tmp_path, f'extern "C" {{ {functions} }}'), why, monkeypatch, caplog)


def test_an_installed_library_that_cannot_be_used_is_to_be_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beside, _ = nowhere(monkeypatch, tmp_path)
    beside.write_text("not a library")
    assert native.load_library() is None
    assert re.search(r"; rebuild it \(.* -m pip install .*\) or set AUGSERVE_NATIVE=off$", caplog.text.strip())


@needs_library
def test_a_library_that_was_cut_short_is_refused_and_does_not_kill_the_process(tmp_path: Path) -> None:
    assert BUILT is not None
    whole = BUILT.read_bytes()
    sizes = sorted(
        {0, 3, 63, 64, 100, 4096, len(whole) // 3, len(whole) // 2, len(whole) - 1} & set(range(len(whole)))
    )
    for size in sizes:
        (tmp_path / f"{size}.so").write_bytes(whole[:size])
    script = "import sys; from augserve.native import load_library; print([load_library(p) for p in sys.argv[1:]])"
    told = python(script, *(tmp_path / f"{size}.so" for size in sizes))
    assert told.strip() == str([None] * len(sizes))


# --- what loading it does to the process -----------------------------------------------------------------


@needs_library
def test_denormals_survive_loading_it() -> None:
    script = """
import numpy as np
from augserve.native import load_library
double, single = float("1e-310"), np.float32("1e-40")  # the smallest normal ones are 2.2e-308 and 1.2e-38
assert load_library() is not None
print(double / 2, np.float32(0.5) * single, (np.full(64, single) * np.float32(0.5)).min())
"""
    assert python(script, AUGSERVE_NATIVE="on").split() == ["5e-311", "5e-41", "5e-41"]


@needs_library
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("nm"), reason="needs nm")
def test_it_exports_its_interface_alone_and_needs_no_cpp_runtime() -> None:
    def nm(*flags: str) -> set[str]:
        command = ["nm", "--dynamic", "--format=posix", *flags, str(BUILT)]
        return {line.split()[0] for line in subprocess.check_output(command, text=True).splitlines()}

    exported = nm("--defined-only")
    assert {"augserve_abi", "augserve_message", "augserve_instruction_set"} <= exported
    assert {name for name in exported if not name.startswith("augserve_")} <= {"RegisterCustomOps"}
    assert not [name for name in nm("--undefined-only") if "GLIBCXX" in name or "GOMP" in name]


@needs_library
def test_finding_and_loading_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'onnx', 'onnxruntime', 'pydantic', 'fastapi'}"
    script = f"import sys, augserve.native as n; n.load_library(); print(sorted({heavy} & set(sys.modules)))"
    assert python(script).strip() == "[]"


@needs_library
def test_it_says_what_an_error_is() -> None:
    library = native.load_library()
    assert library is not None
    library.augserve_message.restype = ctypes.c_char_p
    assert library.augserve_message(-1)
