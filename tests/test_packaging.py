"""What is installed is what the map in pyproject.toml says, and each part imports no more than it may."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import augserve
from augserve.native import LIBRARY_NAME, find_library

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
MAPPED = ("export", "models", "service")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def packages(project: dict[str, Any]) -> dict[str, str]:
    return project["tool"]["scikit-build"]["wheel"]["packages"]


def folders() -> Iterator[tuple[Path, list[str]]]:
    """Each real folder of the repository, relative to it, with its files; neither hidden nor built ones."""
    for folder, inside, files in os.walk(REPOSITORY):
        inside[:] = [name for name in inside if not name.startswith(".") and name not in ("build", "dist", "runs")]
        inside[:] = [name for name in inside if name != "__pycache__" and not (Path(folder) / name).is_symlink()]
        yield Path(folder).relative_to(REPOSITORY), files


def sources(packages: dict[str, str]) -> Iterator[Path]:
    """Each Python file that is installed."""
    for root in packages.values():
        for folder, files in folders():
            if folder.parts[:1] == (root,):
                yield from (REPOSITORY / folder / name for name in files if name.endswith(".py"))


def python(script: str) -> str:
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_declared_packages_are_those_on_disk(packages: dict[str, str]) -> None:
    on_disk = {
        folder.parts[0]
        for folder, files in folders()
        if len(folder.parts) == 1 and "__init__.py" in files and folder.parts[0] != "tests"
    }
    assert set(packages.values()) == on_disk
    assert packages == {"augserve": "augserve"} | {f"augserve/{name}": name for name in MAPPED}


def test_every_folder_with_python_in_it_is_a_package(packages: dict[str, str]) -> None:
    for folder, files in folders():
        if folder.parts[:1] and folder.parts[0] in packages.values() and any(f.endswith(".py") for f in files):
            assert "__init__.py" in files, f"{folder} would be a namespace package"


@pytest.mark.parametrize("name", MAPPED)
def test_the_links_point_where_the_map_says(packages: dict[str, str], name: str) -> None:
    link = REPOSITORY / "augserve" / name
    assert link.is_symlink()
    assert Path(os.readlink(link)) == Path("..") / packages[f"augserve/{name}"]


def test_the_links_are_not_packed_twice(project: dict[str, Any]) -> None:
    assert {f"augserve/{name}" for name in MAPPED} <= set(project["tool"]["scikit-build"]["sdist"]["exclude"])


def test_each_mapped_package_has_one_name() -> None:
    imports = "; ".join(f"import augserve.{name}" for name in MAPPED)
    script = f"import sys; {imports}; print([m for m in sys.modules if m.split('.')[0] in {MAPPED!r}])"
    assert python(script).strip() == "[]"


def test_modules_import_each_other_by_their_full_names(packages: dict[str, str]) -> None:
    seen = 0
    for path in sources(packages):
        seen += 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import"
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                assert name.split(".")[0] not in MAPPED, f"{path}:{node.lineno}: {name} by its bare name"
    assert seen > 50


HEAVY = "{'torch', 'numpy', 'onnx', 'onnxruntime', 'onnxscript', 'pydantic', 'fastapi', 'sklearn', 'PIL'}"


def test_import_augserve_imports_nothing_heavy() -> None:
    assert python(f"import sys, augserve; print(sorted({HEAVY} & set(sys.modules)))").strip() == "[]"


@pytest.mark.parametrize(
    "module", ["augserve.service", "augserve.cli", "augserve.client", "augserve.runtime", "augserve.native"]
)
def test_what_serves_imports_no_torch(module: str) -> None:
    script = f"import sys, {module}; print(sorted({{'torch', 'onnx', 'onnxscript', 'sklearn'}} & set(sys.modules)))"
    assert python(script).strip() == "[]"


def test_submodules_are_reached_by_attribute() -> None:
    script = (
        "import augserve\n"
        "print(augserve.statistics.Statistics().mode, augserve.export.__name__)\n"
        "print({'norms', 'runtime', '__version__'} <= set(dir(augserve)), hasattr(augserve, 'nothing'))\n"
    )
    assert python(script).split() == ["tracked", "augserve.export", "True", "False"]


def test_versions_agree(project: dict[str, Any]) -> None:
    assert augserve.__version__ == project["project"]["version"]


def direct(project: dict[str, Any]) -> list[Requirement]:
    table = project["project"]
    texts = [*table["dependencies"], *project["build-system"]["requires"]]
    texts += [text for extra in table["optional-dependencies"].values() for text in extra]
    return [one for one in map(Requirement, texts) if one.name != table["name"]]


def test_every_direct_dependency_is_pinned_to_a_version_it_allows(project: dict[str, Any]) -> None:
    pins: dict[str, list[str]] = {}
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert specifier.operator == "==", line
            pins.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    for requirement in direct(project):
        versions = pins.get(canonicalize_name(requirement.name), [])
        assert versions, f"constraints.txt has no pin of {requirement.name}"
        for version in versions:
            assert version in requirement.specifier, f"{requirement} does not allow the pin {version}"


def test_extras_hold_what_their_names_say(project: dict[str, Any]) -> None:
    table = project["project"]
    core = {canonicalize_name(Requirement(text).name) for text in table["dependencies"]}
    train = {canonicalize_name(Requirement(text).name) for text in table["optional-dependencies"]["train"]}
    assert {"torch", "onnxscript", "safetensors", "scikit-learn"} <= train
    assert "onnx" in core, "the service folds norms away when it opens a file"
    assert not core & train


# --- the native library -----------------------------------------------------------------------------------


def wheel(folder: Path, **environment: str) -> tuple[str, set[str]]:
    """Build a wheel as pip does; its file's name and what it holds."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY)]
    subprocess.run(command, env=os.environ | environment, capture_output=True, check=True, timeout=300)
    (path,) = folder.iterdir()
    with ZipFile(path) as archive:
        return path.name, set(archive.namelist())


@pytest.mark.parametrize("compiler", [True, False])
def test_the_wheel_holds_the_library_where_there_is_a_compiler(
    packages: dict[str, str], tmp_path: Path, compiler: bool
) -> None:
    if compiler and not shutil.which("c++"):
        pytest.skip("needs a C++ compiler")
    name, files = wheel(tmp_path, **({} if compiler else {"CXX": "/bin/false", "CC": "/bin/false"}))
    assert re.fullmatch(rf"augserve-{re.escape(augserve.__version__)}-py3-none-(?!any)\w+\.whl", name)
    assert (f"augserve/lib/{LIBRARY_NAME}" in files) == compiler
    assert not [file for file in files if file.startswith("augserve/lib/")][compiler:]
    for target, root in packages.items():
        on_disk = {
            f"{target}/{(folder / file).relative_to(root).as_posix()}"
            for folder, found in folders()
            if folder.parts[:1] == (root,)
            for file in found
            if file.endswith(".py")
        }
        assert on_disk <= files
    assert {file.split("/")[0] for file in files} == {"augserve", f"augserve-{augserve.__version__}.dist-info"}


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_the_suite_runs_with_the_library_where_there_is_a_compiler() -> None:
    assert find_library() is not None, "tests of the native library would be skipped; make native builds it"


def test_the_image_is_built_from_all_that_the_wheel_is_made_of(packages: dict[str, str]) -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    allowed = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for root in {*packages.values(), "native"}:
        assert f"COPY {root} {root}\n" in dockerfile
        assert f"!{root}" in allowed


# Split, so that this file does not hold what it looks for.
MACHINE = re.compile(r"(?<![\w.$}])/(?:" + "work|root|Users" + r")/|(?<![\w.$}])/home/[a-z]")


def test_no_file_names_a_developer_machine() -> None:
    seen = 0
    kinds = (".py", ".toml", ".txt", ".md", ".cfg", ".yml", ".yaml", ".sh", "")
    kinds += (".cpp", ".hpp", ".h", ".cmake", ".map")
    for folder, files in folders():
        for name in files:
            path = REPOSITORY / folder / name
            if path.suffix not in kinds or name in (".coverage", ".git"):  # .git is a file in a worktree
                continue
            seen += 1
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not MACHINE.search(line), f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
    assert seen > 100
