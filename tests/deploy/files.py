"""What the files of deploy/ have to agree with: the image, the settings, the routes, the time a drain may take."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from augserve.service import create_app
from augserve.service.server import DRAIN_MARGIN_S
from augserve.service.settings import Settings, read_settings

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
GUIDE = REPOSITORY / "docs" / "how-to" / "operate.md"
PREFIX = "AUGSERVE_"


def load(name: str) -> list[dict[str, Any]]:
    """The documents of a YAML file of deploy/."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


class Image:
    """What the Dockerfile's last stage says of itself."""

    def __init__(self) -> None:
        text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
        self.base = _first(r"^ARG BASE=(\S+)$", text)
        stage = text[text.rindex("\nFROM ") :].replace("\\\n", " ")
        self.user, self.group = map(int, _first(r"^USER (\d+:\d+)$", stage).split(":"))
        self.port = int(_first(r"^EXPOSE (\d+)$", stage))
        self.folder = _first(r"^WORKDIR (\S+)$", stage)
        self.command: list[str] = json.loads(_first(r"^CMD (\[.+\])$", stage))
        self.health: list[str] = ["CMD", *json.loads(_first(r"^HEALTHCHECK .*CMD (\[.+\])$", stage))]
        self.environment = dict(re.findall(r"\b(AUGSERVE_\w+)=(\S+)", _first(r"^ENV (.+)$", stage)))


def told(*command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What a command says, whatever its status."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def settings_of(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a server reads from these variables; each has to be one."""
    names = [name for name in environment if name.startswith(PREFIX)]
    unknown = {name for name in names if name.removeprefix(PREFIX).lower() not in Settings.model_fields}
    assert not unknown, f"no such settings: {unknown}"
    for name in ("config", *Settings.model_fields):
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    for name in names:
        assert isinstance(environment[name], str), f"{name}: expected text, got {environment[name]!r}"
        monkeypatch.setenv(name, environment[name])
    return read_settings(model=None if PREFIX + "MODEL" in environment else Path("model.onnx"))


def drain_s(settings: Settings) -> int:
    """The most seconds from SIGTERM to the end."""
    return math.ceil(settings.request_timeout_s) + DRAIN_MARGIN_S


def held_bytes(settings: Settings) -> int:
    """The most memory that requests take: bodies, and rows of up to twice their size ("0," is a float32)."""
    return (settings.runs_at_a_time() + settings.queue_limit) * 3 * settings.max_body_bytes


def paths() -> set[str]:
    """The paths that answer a GET."""
    app = create_app(Settings(model=Path("model.onnx")))
    return {path for path, methods in app.openapi()["paths"].items() if "get" in methods}


def bytes_of(text: str) -> int:
    """4G, 4Gi or 64m in bytes; all powers of two, as Docker, Kubernetes' Gi and systemd count."""
    number, unit = re.fullmatch(r"(\d+)([KMG])I?B?", text.upper()).groups()  # type: ignore[union-attr]
    return int(number) * 2 ** {"K": 10, "M": 20, "G": 30}[unit]


def seconds_of(text: str | int) -> int:
    """75, "75" or "75s" in seconds."""
    return int(str(text).removesuffix("s"))


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, f"the Dockerfile has no {pattern}"
    return match[1].strip()
