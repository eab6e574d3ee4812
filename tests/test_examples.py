"""The examples in the docstrings are run as they stand; those of the service and its client need a server."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import augserve

NEED_A_SERVER = ("augserve.service", "augserve.client", "augserve.__main__")
HERE = [str(Path(augserve.__file__).parent)]  # __path__ of an editable install names the repository as well
MODULES = sorted(
    {
        module.name
        for module in pkgutil.walk_packages(HERE, "augserve.")
        if not module.name.startswith(NEED_A_SERVER)
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_are_found() -> None:
    finder = doctest.DocTestFinder()
    found = sum(len(t.examples) for m in MODULES for t in finder.find(importlib.import_module(m)))
    assert found > 40
