"""The models that are served: found on disk, opened, replaced and closed while requests go on.

    model.onnx                        a file: its stem is the model's name, its version is 1
    folder/name.onnx                  a folder of such files
    folder/name/version/model.onnx    versions are whole numbers; a request without one gets the highest that serves

A version is opened and checked beside the one that serves, and takes its place in one step; one that fails leaves
everything as it was. Requests keep the version that they began with, which is closed when the last of them is done.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from augserve.errors import ConfigurationError, ModelFileError, UnknownModelError
from augserve.service.model.predictor import Predictor

logger = logging.getLogger(__name__)

State = Literal["READY", "LOADING", "UNAVAILABLE"]
Open = Callable[[Path, str, str], Predictor]  # file, name, version


class Found(NamedTuple):
    """A version on disk; `stamp` changes when the file does."""

    name: str
    version: str
    path: Path
    stamp: tuple[int, int, int]


@dataclass(frozen=True)
class ModelStatus:
    """A version and what became of it; `reason` says why it does not serve."""

    name: str
    version: str
    state: State
    reason: str = ""


def scan(paths: Sequence[Path]) -> list[Found]:
    """Return every version below the paths, files or repository folders.

    Raises:
        ModelFileError: a path that is neither a file nor a folder, or two files with one name.

    Example:
        >>> [(found.name, found.version) for found in scan([Path("models")])]
        [('digits', '1'), ('faces', '1'), ('faces', '2')]
    """
    found: dict[tuple[str, str], Found] = {}
    for path in paths:
        if path.is_dir():
            files = [(file.stem, "1", file) for file in sorted(path.glob("*.onnx"))]
            files += [
                (file.parent.parent.name, str(int(file.parent.name)), file)
                for file in sorted(path.glob("*/*/model.onnx"))
                if file.parent.name.isascii() and file.parent.name.isdecimal()
            ]
        else:
            files = [(path.stem, "1", path)]
        for name, version, file in files:
            entry = Found(name, version, file, _stamp(file))
            if (name, version) in found:
                other = found[name, version].path
                raise ModelFileError(
                    f"expected one file for model {name!r}, version {version}; got {other} and {file}"
                )
            found[name, version] = entry
    return list(found.values())


class Repository:
    """Open versions by name.

    Args:
        paths: files and repository folders; names are looked up in their order.
        open_version: opens a file and checks it; may take long and is called from any thread.
        changed: called with name, version and whether it serves now, whenever that changes.

    `get` and `index` never wait; `refresh`, `load` and `unload` open files in the calling thread, one at a time.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        open_version: Open,
        changed: Callable[[str, str, bool], None] = lambda name, version, serves: None,
    ) -> None:
        self._paths = list(paths)
        self._open = open_version
        self._changed = changed
        self._serving: dict[str, dict[str, Predictor]] = {}
        self._stamps: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._status: dict[tuple[str, str], ModelStatus] = {}
        self._unloaded: set[str] = set()
        self._busy = threading.Lock()

    def __len__(self) -> int:
        return len(self._serving)

    @property
    def has_folders(self) -> bool:
        """Whether models may come and go on disk."""
        return any(path.is_dir() for path in self._paths)

    def get(self, name: str | None = None, version: str | None = None) -> Predictor:
        """Return an open version; without a name the only model, without a version its highest.

        Raises:
            UnknownModelError: no such model or version serves, or there are several and no name was given.
        """
        serving = self._serving
        if name is None:
            if len(serving) != 1:
                names = ", ".join(sorted(serving)) or "none"
                raise UnknownModelError(f"expected the name of a model; the models are: {names}")
            (versions,) = serving.values()
        else:
            versions = serving.get(name, {})
            if not versions:
                names = ", ".join(map(repr, sorted(serving))) or "none"
                what = "the model is" if len(serving) == 1 else "the models are:"
                raise UnknownModelError(f"no model {name[:80]!r} here; {what} {names}")
        if version is None:
            return versions[max(versions, key=int)]
        if version not in versions:
            have = ", ".join(sorted(versions, key=int))
            raise UnknownModelError(f"model {name!r} has no version {version[:80]!r} here; it has: {have}")
        return versions[version]

    def predictors(self) -> list[Predictor]:
        """Return every open version."""
        return [predictor for versions in self._serving.values() for predictor in versions.values()]

    def index(self) -> list[ModelStatus]:
        """Return every version that was found, by name and version."""
        return sorted(self._status.values(), key=lambda status: (status.name, int(status.version)))

    def refresh(self, *, strict: bool = False) -> None:
        """Open what is new or changed on disk, close what is gone.

        Args:
            strict: raise what goes wrong with a version, instead of logging it and going on.

        Raises:
            ModelFileError: as `scan`; with strict also a version that does not open or fails its check.
        """
        with self._busy:
            found = {(entry.name, entry.version): entry for entry in scan(self._paths)}
            for key, entry in found.items():
                if entry.name not in self._unloaded and self._stamps.get(key) != entry.stamp:
                    self._bring_up(entry, strict=strict)
            for key in [key for key in self._status if key not in found]:
                self._take_down(*key)
            if strict and not found:
                where = ", ".join(map(str, self._paths))
                raise ModelFileError(f"{where}: expected .onnx files, or folders name/version/model.onnx; got none")

    def load(self, name: str) -> None:
        """Open every version of a model anew.

        Raises:
            UnknownModelError: there is none on disk.
            ModelFileError: a version does not open or fails its check; what served before serves on.
        """
        with self._busy:
            found = [entry for entry in scan(self._paths) if entry.name == name]
            if not found:
                raise UnknownModelError(f"no model {name[:80]!r} in the repository")
            self._unloaded.discard(name)
            failed: list[Exception] = []
            for entry in found:
                try:
                    self._bring_up(entry, strict=True)
                except Exception as error:  # raised below, when the other versions had their turn
                    failed.append(error)
            if failed:
                raise failed[0]

    def unload(self, name: str) -> None:
        """Serve a model no longer, until `load` is called.

        Raises:
            UnknownModelError: it does not serve.
        """
        with self._busy:
            if name not in self._serving:
                raise UnknownModelError(f"no model {name[:80]!r} serves here")
            self._unloaded.add(name)
            for version in list(self._serving[name]):
                key = (name, version)
                self._close(*key)
                self._stamps.pop(key, None)
                self._status[key] = ModelStatus(*key, "UNAVAILABLE", "unloaded")

    def _bring_up(self, entry: Found, *, strict: bool) -> None:
        key = (entry.name, entry.version)
        serves = entry.version in self._serving.get(entry.name, {})
        if not serves:
            self._status[key] = ModelStatus(*key, "LOADING")
        self._stamps[key] = entry.stamp  # a file that fails is tried again when it changes
        try:
            predictor = self._open(entry.path, entry.name, entry.version)
        except Exception as error:  # whatever is wrong with one file, the others serve
            reason = str(error) or type(error).__name__
            status = self._status[key] if serves else ModelStatus(*key, "UNAVAILABLE")
            self._status[key] = replace(status, reason=reason)
            if strict:
                raise
            still = "; the version before serves on" if serves else ""
            logger.error("%s version %s was not loaded: %s%s", *key, reason, still)  # noqa: TRY400
            return
        versions = {**self._serving.get(entry.name, {}), entry.version: predictor}
        self._serving = {**self._serving, entry.name: versions}  # one step: readers see all or nothing
        self._status[key] = ModelStatus(*key, "READY")
        self._changed(*key, True)
        logger.info("%s version %s serves", *key)

    def _take_down(self, name: str, version: str) -> None:
        self._close(name, version)
        self._stamps.pop((name, version), None)
        self._status.pop((name, version), None)
        logger.info("%s version %s serves no longer: its file is gone", name, version)

    def _close(self, name: str, version: str) -> None:
        versions = {v: predictor for v, predictor in self._serving.get(name, {}).items() if v != version}
        others = {n: v for n, v in self._serving.items() if n != name}
        if version in self._serving.get(name, {}):
            self._serving = {**others, name: versions} if versions else others
            self._changed(name, version, False)


def check_paths(paths: Sequence[Path]) -> None:
    """Refuse a path that is not there, before anything is opened.

    Raises:
        ConfigurationError: no path at all.
        ModelFileError: nothing at a path.
    """
    if not paths:
        raise ConfigurationError("no model given; name one, or set AUGSERVE_MODEL")
    for path in paths:
        if not os.path.exists(path):  # Path.exists raises for names that the system does not take
            raise ModelFileError(f"{path}: expected an .onnx file or a folder of them, found nothing")


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        status = file.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
