"""The systemd unit: systemd's own verdict where it is installed, and what the settings and the command say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from augserve import cli
from augserve.service.settings import Settings
from tests.deploy.files import DEPLOY, bytes_of, drain_s, held_bytes, settings_of, told

UNIT = DEPLOY / "augserve.service"
DROP_INS = {path.name: path for path in sorted((DEPLOY / "augserve.service.d").iterdir())}
ENVIRONMENT = DEPLOY / "augserve.env"
PROGRAM = "/opt/augserve/bin/augserve"
EXPOSURE = 15  # of 100; 12 as it stands, 14 with a GPU

systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian: systemd)")


def options(path: Path) -> dict[str, list[str]]:
    """The options of a unit's [Service] section; an option may come more than once."""
    section = re.split(r"^\[(\w+)\]$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = defaultdict(list)
    for key, value in re.findall(r"^(\w+)=(.*)$", section[section.index("Service") + 1], re.MULTILINE):
        found[key].append(value)
    return found


def variables() -> dict[str, str]:
    lines = ENVIRONMENT.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def installed(folder: Path, text: str, drop_ins: Sequence[str] = ()) -> Path:
    """The unit as it would be installed, with a program that exists here."""
    unit = folder / UNIT.name
    unit.write_text(text.replace(PROGRAM, "/bin/sh"), encoding="utf-8")
    for name in drop_ins:
        target = folder / DROP_INS[name].relative_to(DEPLOY)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(DROP_INS[name], target)
    return unit


def verify(unit: Path) -> subprocess.CompletedProcess[str]:
    return told("systemd-analyze", "verify", "--man=no", str(unit))


@systemd
@pytest.mark.parametrize("drop_ins", [(), tuple(DROP_INS)])
def test_systemd_knows_every_word(tmp_path: Path, drop_ins: Sequence[str]) -> None:
    done = verify(installed(tmp_path, UNIT.read_text(encoding="utf-8"), drop_ins))
    assert (done.returncode, done.stderr) == (0, "")


@systemd
def test_systemd_tells_of_an_unknown_word(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8").replace("TimeoutStopSec", "TimeoutStopSecs")
    assert "TimeoutStopSecs" in verify(installed(tmp_path, text)).stderr


@systemd
@pytest.mark.parametrize("drop_ins", [(), tuple(DROP_INS)])
def test_little_is_exposed(tmp_path: Path, drop_ins: Sequence[str]) -> None:
    unit = installed(tmp_path, UNIT.read_text(encoding="utf-8"), drop_ins)
    done = told("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(unit))
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd-analyze security --offline (systemd 250)")
    assert done.returncode == 0, done.stdout


def test_it_runs_the_command_with_settings_from_the_file() -> None:
    own = options(UNIT)
    assert own["ExecStart"] == [f"{PROGRAM} serve"]
    assert own["EnvironmentFile"] == ["/etc/augserve/augserve.env"]
    assert own["EnvironmentFile"][0] in ENVIRONMENT.read_text(encoding="utf-8")
    assert "serve" in {command.callback.__name__ for command in cli.app.registered_commands if command.callback}


def test_the_file_holds_the_defaults_but_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, defaults = settings_of(variables(), monkeypatch), settings_of({}, monkeypatch)
    own = {"model", "max_body_bytes"}
    assert settings.model_dump(exclude=own) == defaults.model_dump(exclude=own)
    assert settings.max_body_bytes < defaults.max_body_bytes
    assert settings.model == (Path("/var/lib/augserve-models"),)
    assert str(settings.model[0]) in UNIT.read_text(encoding="utf-8")


def test_the_drop_ins_are_what_the_unit_says() -> None:
    text = UNIT.read_text(encoding="utf-8")
    assert {*DROP_INS} == {"gpu.conf", "keys.conf"} == set(re.findall(r"\b\w+\.conf\b", text))


def test_the_keys_are_a_credential_that_the_settings_name() -> None:
    own = options(DROP_INS["keys.conf"])
    (credential,) = own["LoadCredential"]
    name, _, source = credential.partition(":")
    assert Path(source).is_absolute()
    (variable,) = own["Environment"]
    setting, _, path = variable.partition("=")
    assert setting.removeprefix("AUGSERVE_").lower() in Settings.model_fields
    assert path == f"%d/{name}"


def test_the_gpu_is_all_that_its_drop_in_opens() -> None:
    own, opened = options(UNIT), options(DROP_INS["gpu.conf"])
    assert own["PrivateDevices"] == own["MemoryDenyWriteExecute"] == ["yes"]
    assert opened["PrivateDevices"] == opened["MemoryDenyWriteExecute"] == ["no"]
    assert opened["DevicePolicy"] == ["closed"]
    assert opened["DeviceAllow"] == ["char-nvidia* rw"]


def test_it_is_killed_only_after_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    own = options(UNIT)
    assert own["KillSignal"] == ["SIGTERM"]
    assert own["KillMode"] == ["mixed"]
    assert int(own["TimeoutStopSec"][0]) > drain_s(settings_of(variables(), monkeypatch))


def test_the_memory_holds_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_bytes(settings_of(variables(), monkeypatch)) < bytes_of(options(UNIT)["MemoryMax"][0])


def test_a_wrong_setting_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_of({}, monkeypatch)  # leaves no variable set
    monkeypatch.setenv("AUGSERVE_MODEL", "model.onnx")
    monkeypatch.setenv("AUGSERVE_PORT", "many")
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve"])
    own = options(UNIT)
    assert own["Restart"] == ["on-failure"]
    assert own["RestartPreventExitStatus"] == [str(ended.value.code)]
