"""The README's commands do what it says: every bash and python block is run, in order, by a newcomer's hands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {
    "bash": lambda code: ["bash", "-euo", "pipefail", "-c", code],
    "python": lambda code: [sys.executable, "-W", "error", "-c", code],
}
SHOWN_ONLY = {"console", "text", "json"}


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README.read_text())


def test_every_block_is_run_or_marked_as_not_to_be() -> None:
    assert {language for language, _ in blocks()} <= RUN.keys() | SHOWN_ONLY
    assert {"bash", "python"} <= {language for language, _ in blocks()}


@pytest.mark.slow
def test_blocks_run_in_order(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for language, code in blocks():
        if language in RUN:
            result = subprocess.run(
                RUN[language](code), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
            )
            assert result.returncode == 0, f"{code}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


def documents() -> list[Path]:
    root = README.parent
    return [README, root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]


def test_every_make_target_that_is_told_of_does_something() -> None:
    makefile = (README.parent / "Makefile").read_text()
    told = set(re.findall(r'@echo "make ([a-z-]+)', makefile))
    for document in documents():
        text = document.read_text()
        told |= set(re.findall(r"`make ([a-z-]+)", text))
        for _, code in BLOCK.findall(text):
            told |= set(re.findall(r"^make ([a-z-]+)", code, re.MULTILINE))
    assert {"test", "native-cuda"} <= told
    for target in sorted(told):
        command = ["make", "--dry-run", "--always-make", target]
        done = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"make {target}: {done.stderr}"
        assert "Nothing to be done" not in done.stdout, f"make {target} does nothing: its rule has no commands"


def test_links_lead_somewhere() -> None:
    root = README.parent
    for document in documents():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.relative_to(root)} links to {target}"
