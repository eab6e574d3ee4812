"""Settings: given, then environment, then defaults; a bad value is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from augserve.errors import ConfigurationError
from augserve.service import create_app, read_settings


def test_what_is_given_comes_before_the_environment_and_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGSERVE_MODEL", "from-environment.onnx")
    monkeypatch.setenv("AUGSERVE_PORT", "9000")
    monkeypatch.setenv("AUGSERVE_PROVIDERS", "CUDAExecutionProvider, CPUExecutionProvider")
    monkeypatch.setenv("AUGSERVE_HOST", "")
    settings = read_settings(port=9001, workers=None)
    assert settings.model == (Path("from-environment.onnx"),)
    assert settings.port == 9001
    assert settings.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert (settings.host, settings.workers) == ("127.0.0.1", None)
    assert settings.max_body_bytes == 32 * 2**20


def test_kubernetes_service_link_is_not_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGSERVE_PORT", "tcp://10.0.0.1:80")
    assert read_settings(model="m.onnx").port == 8000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no model given.*AUGSERVE_MODEL"),
        ({"port": 70000}, "port.*65535.*70000"),
        ({"port": "web"}, "port.*'web'"),
        ({"workers": 0}, "workers"),
        ({"queue_limit": -1}, "queue_limit"),
        ({"max_rows": 0}, "max_rows"),
        ({"max_image_pixels": 10**9}, "max_image_pixels"),
        ({"request_timeout_s": 0}, "request_timeout_s"),
        ({"request_timeout_s": "inf"}, "request_timeout_s"),
        ({"providers": ""}, "providers"),
        ({"max_bodybytes": 1}, "unknown setting 'max_bodybytes'; choose from.*max_body_bytes"),
    ],
)
def test_bad_setting_is_named(given: dict, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUGSERVE_MODEL", raising=False)
    with pytest.raises(ConfigurationError, match=words):
        read_settings(**({"model": "m.onnx", **given} if given else {}))


def test_application_without_settings_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUGSERVE_MODEL", raising=False)
    with pytest.raises(ConfigurationError, match="AUGSERVE_MODEL"):
        create_app()
    monkeypatch.setenv("AUGSERVE_MODEL", "m.onnx")
    assert create_app().state.service.settings.model == (Path("m.onnx"),)


@pytest.mark.parametrize(
    ("cores", "given", "runs", "threads"),
    [
        (2, {}, 2, 1),
        (2, {"threads": 2}, 2, 1),
        (2, {"threads": 1}, 1, 0),
        (2, {"workers": 1}, 1, 0),
        (2, {"workers": 3}, 3, 0),
        (2, {"providers": "CUDAExecutionProvider"}, 1, 0),
        (1, {}, 1, 0),
        (8, {}, 1, 0),
        (8, {"threads": 2}, 1, 0),
    ],
)
def test_two_cores_run_side_by_side_where_nothing_else_is_said(
    cores: int, given: dict[str, object], runs: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augserve.service.settings.usable_cores", lambda: list(range(cores)))
    settings = read_settings(model="m.onnx", **given)
    assert (settings.runs_at_a_time(), settings.threads_beside()) == (runs, threads)
