"""Finding what lies outside the repository: the shared folder of real data and design notes.

It is the folder that AUGSERVE_SHARED names, else `shared` beside the repository. A test that needs it is
skipped where there is none, except in CI (CI=true), where a missing folder is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_folder(part: str = "") -> Path:
    """Return the shared folder, or the folder `part` within it; skip (in CI: fail) where it is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("AUGSERVE_SHARED") or beside) / part
    if not folder.is_dir():
        reason = f"no shared folder {folder}; set AUGSERVE_SHARED"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return folder
