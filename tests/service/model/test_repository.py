"""Models on disk and models that serve: found, opened, replaced, closed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from augserve.errors import ConfigurationError, ModelFileError, UnknownModelError
from augserve.service import Predictor
from augserve.service.model.repository import Repository, check_paths, scan


class Shelf:
    """A folder of files that hold a word each, and a repository that opens them; a file that holds "bad" fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[str] = []
        self.changes: list[tuple[str, str, bool]] = []
        self.repository = Repository([folder], self._open, lambda *change: self.changes.append(change))
        self._writes = 0

    def _open(self, path: Path, name: str, version: str) -> Predictor:
        word = path.read_text()
        self.opened.append(f"{name} {version} {word}")
        if word == "bad":
            raise ModelFileError("it is bad")
        return SimpleNamespace(name=name, version=version, word=word)  # type: ignore[return-value]

    def put(self, path: str, word: str) -> None:
        """Write a file in one step, and younger than whatever was there."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        self._writes += 1
        fresh = self.folder / "fresh"
        fresh.write_text(word)
        os.utime(fresh, (self._writes, self._writes))
        fresh.replace(file)

    def drop(self, path: str) -> None:
        (self.folder / path).unlink()

    def served(self) -> dict[str, str]:
        return {f"{one.name} {one.version}": one.word for one in self.repository.predictors()}

    def states(self) -> list[tuple[str, str, str, str]]:
        return [(one.name, one.version, one.state, one.reason) for one in self.repository.index()]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


# --- what is on disk --------------------------------------------------------------------------------------


def found(*paths: Path) -> set[tuple[str, str]]:
    return {(one.name, one.version) for one in scan(paths)}


def test_names_and_versions_are_those_of_files_and_folders(shelf: Shelf) -> None:
    for path in ("b.onnx", "a.b.onnx", "faces/1/model.onnx", "faces/12/model.onnx", "digits/007/model.onnx"):
        shelf.put(path, "good")
    expected = {("b", "1"), ("a.b", "1"), ("faces", "1"), ("faces", "12"), ("digits", "7")}
    assert found(shelf.folder) == expected
    assert {one.path.name for one in scan([shelf.folder])} == {"b.onnx", "a.b.onnx", "model.onnx"}


def test_a_file_is_named_alone(shelf: Shelf) -> None:
    shelf.put("one.onnx", "good")
    shelf.put("two.onnx", "good")
    assert found(shelf.folder / "one.onnx") == {("one", "1")}
    assert found(shelf.folder / "one.onnx", shelf.folder / "two.onnx") == {("one", "1"), ("two", "1")}


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "a/model.onnx",
        "a/1/other.onnx",
        "a/1/2/model.onnx",
        "a/latest/model.onnx",
        "a/-1/model.onnx",
        "a/1.5/model.onnx",
        "a/1_0/model.onnx",
        "a/\u0663/model.onnx",
        "a/\u00b2/model.onnx",
    ],
)
def test_what_is_no_version_is_left_alone(shelf: Shelf, path: str) -> None:
    shelf.put(path, "good")
    assert found(shelf.folder) == set()


def test_two_files_of_one_name_are_refused(shelf: Shelf) -> None:
    shelf.put("first/a.onnx", "good")
    shelf.put("second/a.onnx", "good")
    folders = [shelf.folder / "first", shelf.folder / "second"]
    with pytest.raises(ModelFileError, match=r"one file for model 'a', version 1; got .*first.* and .*second"):
        scan(folders)
    shelf.put("third/b/1/model.onnx", "good")
    shelf.put("third/b/01/model.onnx", "good")
    with pytest.raises(ModelFileError, match="one file for model 'b', version 1"):
        scan([shelf.folder / "third"])


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    check_paths([tmp_path])
    for path in (tmp_path / "none", tmp_path / ("a" * 300)):
        with pytest.raises(ModelFileError, match=r"expected an .onnx file or a folder of them, found nothing"):
            check_paths([tmp_path, path])
    with pytest.raises(ConfigurationError, match="no model given"):
        check_paths([])


# --- what serves ------------------------------------------------------------------------------------------


def test_a_refresh_opens_what_is_new_or_changed_and_nothing_else(shelf: Shelf) -> None:
    shelf.put("a.onnx", "one")
    shelf.put("b/1/model.onnx", "two")
    shelf.repository.refresh()
    assert shelf.served() == {"a 1": "one", "b 1": "two"}
    shelf.repository.refresh()
    assert shelf.opened == ["a 1 one", "b 1 two"]
    shelf.put("b/2/model.onnx", "three")
    shelf.put("a.onnx", "four")
    shelf.repository.refresh()
    assert shelf.served() == {"a 1": "four", "b 1": "two", "b 2": "three"}
    assert shelf.opened[2:] == ["a 1 four", "b 2 three"]
    assert shelf.states() == [("a", "1", "READY", ""), ("b", "1", "READY", ""), ("b", "2", "READY", "")]
    assert len(shelf.repository) == 2


def test_what_is_gone_serves_no_longer(shelf: Shelf) -> None:
    for path in ("a.onnx", "b/1/model.onnx", "b/2/model.onnx"):
        shelf.put(path, "good")
    shelf.repository.refresh()
    shelf.changes.clear()
    shelf.drop("a.onnx")
    shelf.drop("b/2/model.onnx")
    shelf.repository.refresh()
    assert shelf.states() == [("b", "1", "READY", "")]
    assert sorted(shelf.changes) == [("a", "1", False), ("b", "2", False)]
    assert shelf.repository.get().version == "1"
    shelf.put("a.onnx", "back")
    shelf.repository.refresh()
    assert shelf.served()["a 1"] == "back"


def test_a_broken_file_leaves_the_one_before_serving(shelf: Shelf) -> None:
    shelf.put("a.onnx", "one")
    shelf.repository.refresh()
    before = shelf.repository.get("a")
    shelf.changes.clear()
    shelf.put("a.onnx", "bad")
    shelf.repository.refresh()
    assert shelf.repository.get("a") is before
    assert shelf.states() == [("a", "1", "READY", "it is bad")]
    shelf.repository.refresh()
    assert shelf.opened == ["a 1 one", "a 1 bad"]  # tried again when it changes
    assert shelf.changes == []
    shelf.put("a.onnx", "two")
    shelf.repository.refresh()
    assert shelf.served() == {"a 1": "two"}
    assert shelf.states() == [("a", "1", "READY", "")]


def test_a_broken_new_version_leaves_the_highest_that_serves(shelf: Shelf) -> None:
    for version in ("9", "10"):
        shelf.put(f"a/{version}/model.onnx", version)
    shelf.put("a/11/model.onnx", "bad")
    shelf.repository.refresh()
    assert shelf.repository.get("a").version == "10"
    assert shelf.states()[-1] == ("a", "11", "UNAVAILABLE", "it is bad")
    with pytest.raises(UnknownModelError, match="model 'a' has no version '11' here; it has: 9, 10"):
        shelf.repository.get("a", "11")
    assert ("a", "11", True) not in shelf.changes


def test_strict_raises_what_goes_wrong(shelf: Shelf) -> None:
    with pytest.raises(ModelFileError, match=r"expected .onnx files, or folders name/version/model.onnx; got none"):
        shelf.repository.refresh(strict=True)
    shelf.put("a.onnx", "bad")
    with pytest.raises(ModelFileError, match="it is bad"):
        shelf.repository.refresh(strict=True)


def test_whatever_a_file_does_to_its_reader_the_others_serve(shelf: Shelf) -> None:
    shelf.put("b.onnx", "good")
    shelf.folder.joinpath("a.onnx").write_bytes(b"\xff")  # UnicodeDecodeError, as no one expected
    shelf.repository.refresh()
    assert shelf.served() == {"b 1": "good"}
    assert shelf.states()[0][:3] == ("a", "1", "UNAVAILABLE")


def test_unload_keeps_a_model_out_until_it_is_loaded(shelf: Shelf) -> None:
    shelf.put("a/1/model.onnx", "one")
    shelf.put("a/2/model.onnx", "two")
    shelf.put("b.onnx", "good")
    shelf.repository.refresh()
    shelf.changes.clear()
    shelf.repository.unload("a")
    assert shelf.served() == {"b 1": "good"}
    assert sorted(shelf.changes) == [("a", "1", False), ("a", "2", False)]
    shelf.put("a/2/model.onnx", "newer")
    shelf.repository.refresh()
    assert shelf.served() == {"b 1": "good"}
    assert shelf.states()[:2] == [("a", v, "UNAVAILABLE", "unloaded") for v in ("1", "2")]
    with pytest.raises(UnknownModelError, match="no model 'a' serves here"):
        shelf.repository.unload("a")
    shelf.repository.load("a")
    assert shelf.served() == {"a 1": "one", "a 2": "newer", "b 1": "good"}
    with pytest.raises(UnknownModelError, match="no model 'c' in the repository"):
        shelf.repository.load("c")


def test_load_opens_anew_and_a_failure_changes_nothing(shelf: Shelf) -> None:
    shelf.put("a.onnx", "one")
    shelf.repository.refresh()
    shelf.repository.load("a")
    assert shelf.opened == ["a 1 one", "a 1 one"]
    shelf.put("a.onnx", "bad")
    with pytest.raises(ModelFileError, match="it is bad"):
        shelf.repository.load("a")
    assert shelf.served() == {"a 1": "one"}


def test_load_opens_the_good_versions_beside_a_broken_one(shelf: Shelf) -> None:
    shelf.put("a/1/model.onnx", "bad")
    shelf.put("a/2/model.onnx", "two")
    with pytest.raises(ModelFileError, match="it is bad"):
        shelf.repository.load("a")
    assert shelf.served() == {"a 2": "two"}


def test_get_says_what_there_is(shelf: Shelf) -> None:
    with pytest.raises(UnknownModelError, match="expected the name of a model; the models are: none"):
        shelf.repository.get()
    with pytest.raises(UnknownModelError, match="no model 'a' here; the models are: none"):
        shelf.repository.get("a")
    shelf.put("a.onnx", "good")
    shelf.repository.refresh()
    assert shelf.repository.get() is shelf.repository.get("a") is shelf.repository.get("a", "1")
    with pytest.raises(UnknownModelError, match="no model 'x' here; the model is 'a'"):
        shelf.repository.get("x")
    shelf.put("b.onnx", "good")
    shelf.repository.refresh()
    with pytest.raises(UnknownModelError, match="expected the name of a model; the models are: a, b"):
        shelf.repository.get()
    with pytest.raises(UnknownModelError, match="model 'b' has no version '2' here; it has: 1"):
        shelf.repository.get("b", "2")
    with pytest.raises(UnknownModelError) as long:
        shelf.repository.get("x" * 10_000)
    assert len(str(long.value)) < 200


def test_readers_never_see_a_model_half_replaced(shelf: Shelf) -> None:
    """From within the opening of a new version, the old one is what others get."""
    shelf.put("a.onnx", "one")
    shelf.repository.refresh()
    seen = []
    open_version: Callable[..., Predictor] = shelf.repository._open

    def looking(path: Path, name: str, version: str) -> Predictor:
        seen.append(shelf.served()[f"{name} {version}"])
        opened = open_version(path, name, version)
        seen.append(shelf.served()[f"{name} {version}"])
        return opened

    shelf.repository._open = looking
    shelf.put("a.onnx", "two")
    shelf.repository.refresh()
    assert [*seen, shelf.served()["a 1"]] == ["one", "one", "two"]
