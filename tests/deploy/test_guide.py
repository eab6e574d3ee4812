"""The operator's guide says what the settings, the metrics and the files of deploy/ say."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from augserve.service.settings import Settings
from augserve.service.watch.metrics import Metrics
from tests.deploy.files import DEPLOY, GUIDE, load, paths, seconds_of, settings_of
from tests.deploy.test_systemd import UNIT, options, variables

TEXT = GUIDE.read_text(encoding="utf-8")
NOT_TOLD = {"augserve_build", "augserve_ready_timestamp_seconds"}


def table(heading: str) -> Iterator[list[str]]:
    """The cells of the rows of the first table whose header begins with these cells."""
    lines = TEXT[TEXT.index(heading) :].splitlines()[2:]
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_defaults_are_those_of_the_settings() -> None:
    rows = list(table("| setting | default |"))
    assert len(rows) == 6
    for name, default, *_ in rows:
        value = Settings.model_fields[name.strip("`")].default
        if value is None:
            value = Settings(model="m.onnx").rows_of_a_run() if name == "`preferred_batch_size`" else 1
        assert re.match(rf"{value:g}\b", default), f"{name} is {value}"


def test_every_setting_is_one() -> None:
    named = {name for row in table("| setting | protects |") for name in re.findall(r"`([a-z_]+)`", row[0])}
    assert {"max_body_bytes", "max_rows", "queue_limit", "request_timeout_s"} <= named
    named |= {name.lower() for name in re.findall(r"\bAUGSERVE_([A-Z_]+)\b", TEXT)} - {"config", "api_keys"}
    suffixes = r"\w+_(?:size|sizes|timeout_s|limit|bytes|rows|pixels|file|fallback|poll_s|control|open|log)"
    named |= set(re.findall(rf"`((?!augserve_|process_){suffixes})`", TEXT))
    assert named <= set(Settings.model_fields)


def test_every_path_answers() -> None:
    named = {"/healthz", "/readyz", "/metrics", "/models"}
    assert all(f"{path}`" in TEXT for path in named)
    assert named <= paths()


def test_every_metric_is_told_of_and_no_other() -> None:
    shown = {family.name for family in Metrics().registry.collect()}
    told = {name.removesuffix("_total") for name in re.findall(r"`(augserve_\w+)`", TEXT)}
    assert told == {name for name in shown if name.startswith("augserve_")} - NOT_TOLD


def test_every_file_of_deploy_is_told_of() -> None:
    for path in DEPLOY.iterdir():
        if path.name != "models":
            assert f"`{path.name}{'/' * path.is_dir()}`" in TEXT
    for path in (DEPLOY / "augserve.service.d").iterdir():
        assert path.name in TEXT


def test_the_times_to_stop_are_those_of_the_files() -> None:
    compose = load("docker-compose.cpu.yml")[0]["services"]["augserve"]["stop_grace_period"]
    pod = load("kubernetes.yaml")[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    times = [row[2].partition(" s")[0] for row in table("| | setting | in `deploy/` |")]
    assert [int(time) for time in times] == [seconds_of(compose), pod, int(options(UNIT)["TimeoutStopSec"][0])]


def test_the_proxy_takes_the_largest_body(monkeypatch: pytest.MonkeyPatch) -> None:
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", TEXT)
    assert int(megabytes) * 2**20 == settings_of(variables(), monkeypatch).max_body_bytes
