"""The Compose files: their specification, Docker where it is installed, and what the image and the settings say."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy.files import (
    DEPLOY,
    Image,
    bytes_of,
    drain_s,
    held_bytes,
    load,
    paths,
    seconds_of,
    settings_of,
    told,
)

CPU, GPU = "docker-compose.cpu.yml", "docker-compose.yml"
FILES = [CPU, GPU]


def compose() -> list[str] | None:
    """The command of Docker Compose 2, the plugin or the program."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and told(*command, "version").stdout.startswith("Docker Compose version"):
            return command
    return None


def merged(below: Any, above: Any) -> Any:
    """What `extends` makes of a service: mappings merge, all else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


def service(name: str) -> dict[str, Any]:
    (document,) = load(name)
    assert list(document["services"]) == ["augserve"]
    own = dict(document["services"]["augserve"])
    if base := own.pop("extends", None):
        assert base["service"] == "augserve"
        own = merged(service(base["file"]), own)
    return own


@pytest.mark.parametrize("name", FILES)
def test_the_specification_knows_every_word(name: str) -> None:
    PyCompose.from_yaml((DEPLOY / name).read_text(encoding="utf-8")).validate()


def test_the_specification_refuses_an_unknown_word() -> None:
    text = (DEPLOY / CPU).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="readonly"):
        PyCompose.from_yaml(text.replace("read_only: true\n    tmpfs", "readonly: true\n    tmpfs"))


@pytest.mark.parametrize("name", FILES)
def test_docker_compose_reads_the_same(name: str) -> None:
    command = compose()
    if command is None:
        pytest.skip("needs Docker Compose 2 (Debian 13: docker-compose), but no daemon")
    done = told(*command, "-f", str(DEPLOY / name), "config")
    assert done.returncode == 0, done.stderr
    read, own = yaml.safe_load(done.stdout)["services"]["augserve"], service(name)
    for key in (
        "image",
        "environment",
        "command",
        "read_only",
        "cap_drop",
        "security_opt",
        "user",
        "tmpfs",
        "restart",
    ):
        assert read[key] == own[key], key
    assert read["healthcheck"]["test"] == own["healthcheck"]["test"]
    assert read["deploy"]["resources"].get("reservations") == own["deploy"]["resources"].get("reservations")


@pytest.mark.parametrize("name", FILES)
def test_it_says_what_the_image_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, image = service(name), Image()
    settings = settings_of(own["environment"], monkeypatch)
    assert settings.port == image.port
    assert own["ports"] == [f"127.0.0.1:{image.port}:{image.port}"]
    assert own["user"] == f"{image.user}:{image.group}"
    assert own["healthcheck"]["test"] == image.health
    assert (DEPLOY / own["build"]["context"] / "Dockerfile").samefile(DEPLOY.parent / "Dockerfile")
    assert (own["build"]["args"]["BASE"] == image.base) == (name == GPU)
    (volume,) = own["volumes"]
    assert volume["target"] == image.folder
    assert volume["read_only"]
    assert own["command"] == ["serve", image.folder]


@pytest.mark.parametrize("name", FILES)
def test_it_is_killed_only_after_the_drain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = service(name)
    assert seconds_of(own["stop_grace_period"]) > drain_s(settings_of(own["environment"], monkeypatch))
    assert "stop_signal" not in own  # SIGTERM


@pytest.mark.parametrize("name", FILES)
def test_its_limits_fit_its_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = service(name)
    settings, limits = settings_of(own["environment"], monkeypatch), own["deploy"]["resources"]["limits"]
    assert settings.threads == int(limits["cpus"])
    assert held_bytes(settings) < bytes_of(limits["memory"])


@pytest.mark.parametrize("name", FILES)
def test_nothing_can_be_written_or_gained(name: str) -> None:
    own = service(name)
    assert own["read_only"]
    assert own["cap_drop"] == ["ALL"]
    assert own["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(own)


def test_only_the_gpu_file_reserves_a_gpu() -> None:
    reservations = {name: service(name)["deploy"]["resources"].get("reservations", {}) for name in FILES}
    assert reservations[CPU] == {}
    (device,) = reservations[GPU]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    for name in FILES:
        providers = service(name)["environment"]["AUGSERVE_PROVIDERS"].split(",")
        assert (providers[0] == "CUDAExecutionProvider") == (name == GPU)


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server that gives each GET this status; its port and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def health(port: int) -> int:
    """The exit status of the health check beside a server at this port, with a proxy set that leads nowhere."""
    word, python, *rest = service(CPU)["healthcheck"]["test"]
    assert (word, python) == ("CMD", "python")
    environment = os.environ | {"AUGSERVE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return told(sys.executable, "-S", *rest, environment=environment).returncode


@pytest.mark.parametrize(("status", "exits"), [(200, 0), (503, 1)])
def test_the_health_check_tells_ready_from_not(status: int, exits: int) -> None:
    with answering(status) as (port, asked):
        assert health(port) == exits
    assert asked == ["/readyz"]
    assert {*asked} <= paths()


def test_the_health_check_fails_where_nothing_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert health(closed.getsockname()[1]) == 1
