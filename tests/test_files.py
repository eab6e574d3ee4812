"""Files are replaced in one step: whatever fails, the old one stays and no temporary is left behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from augserve.files import link_atomic, write_atomic


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def test_write_makes_or_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"", b"\x00 longer than before"):
        write_atomic(path, content)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    reached = []

    def fail(*_: object) -> None:
        reached.append(names(tmp_path))
        raise failure

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(failure)):
        write_atomic(path, b"new")
    assert len(reached[0]) == 2  # there was a temporary file, in the same folder
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_write_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append("replace"), replace(path, to)))
    write_atomic(tmp_path / "file", b"content")
    assert done == ["fsync", "replace"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    write_atomic(tmp_path / "file", b"content")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("umask", [0o027], indirect=True)
def test_write_leaves_the_umask_as_it_was(tmp_path: Path, umask: int) -> None:
    write_atomic(tmp_path / "file", b"content")
    assert os.umask(umask) == umask


def test_write_into_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "file", b"content")


def test_link_replaces_a_link_and_is_relative(tmp_path: Path) -> None:
    link = tmp_path / "runs" / "latest"
    link.parent.mkdir()
    for target in (tmp_path / "runs" / "first", tmp_path / "other" / "second", tmp_path / "runs" / "first"):
        target.mkdir(parents=True, exist_ok=True)
        link_atomic(link, target)
        assert link.resolve() == target
        assert not Path(os.readlink(link)).is_absolute()
    assert names(link.parent) == ["first", "latest"]


def test_link_replaces_one_that_points_to_nothing(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to("gone")
    link_atomic(link, tmp_path)
    assert link.resolve() == tmp_path


def test_failed_link_leaves_no_temporary(tmp_path: Path) -> None:
    folder = tmp_path / "latest"
    folder.mkdir()
    with pytest.raises(OSError, match="latest"):
        link_atomic(folder, tmp_path)
    assert names(tmp_path) == ["latest"]
