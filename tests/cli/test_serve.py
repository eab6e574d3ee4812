"""`augserve serve`: its flags are the settings, and --check finds what would keep it from serving."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from augserve.cli import app
from augserve.runtime import DEFAULT_PROVIDERS
from augserve.service import read_settings
from augserve.service.settings import Settings
from tests.cli.conftest import AUGSERVE, Run, one_line
from tests.service.tiny import write_model

# By field: what a flag may get, and the setting that comes of it. Everything differs from the default.
GIVEN: dict[str, tuple[list[str], Any]] = {
    "host": (["0.0.0.0"], "0.0.0.0"),  # noqa: S104 - nothing listens
    "port": (["9000"], 9000),
    "max_body_bytes": (["1024"], 1024),
    "max_rows": (["8"], 8),
    "max_image_pixels": (["4096"], 4096),
    "queue_limit": (["7"], 7),
    "max_batch_size": (["64"], 64),
    "preferred_batch_size": (["16"], 16),
    "batch_timeout_s": (["0.25"], 0.25),
    "workers": (["2"], 2),
    "threads": (["3"], 3),
    "providers": (["CUDAExecutionProvider,CPUExecutionProvider"], ("CUDAExecutionProvider", *DEFAULT_PROVIDERS)),
    "provider_fallback": ([], True),
    "fold_tracked": ([], False),
    "warmup_sizes": (["1,16"], (1, 16)),
    "request_timeout_s": (["2.5"], 2.5),
    "repository_poll_s": (["0"], 0.0),
    "repository_control": ([], True),
    "api_keys_file": (["keys"], Path("keys")),
    "metrics_open": ([], True),
    "access_log": ([], True),
}
FIELDS = sorted(set(Settings.model_fields) - {"model"})
OPTIONS = {option.name: option for option in typer.main.get_command(app).commands["serve"].params}
COMMANDS_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
SECRET = "a-key-that-nobody-may-read"  # noqa: S105


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AUGSERVE_")]:
        if name != "AUGSERVE_NATIVE":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What would have been served."""
    seen: list[Settings] = []
    monkeypatch.setattr("augserve.service.server.serve", lambda settings, **_: seen.append(settings))
    return seen


# --- flags -----------------------------------------------------------------------------------------------


def test_every_setting_has_a_flag_and_every_flag_a_setting() -> None:
    assert set(OPTIONS) - {"paths", "config", "check"} == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_flag_sets_its_field(run: Run, served: list[Settings], field: str) -> None:
    values, expected = GIVEN[field]
    default = Settings.model_fields[field].default
    flag = f"--{'no-' if default is True else ''}{field.replace('_', '-')}"
    assert run("serve", "m.onnx", flag, *values).status == 0
    assert run("serve", "m.onnx").status == 0
    changed, plain = served
    assert getattr(changed, field) == expected != default
    assert changed.model_dump() == {**plain.model_dump(), field: expected}


@pytest.mark.parametrize("field", FIELDS)
def test_help_tells_the_default(field: str) -> None:
    told = re.search(r"\[default: (.+)\]$", OPTIONS[field].help)[1]
    default = Settings.model_fields[field].default
    if default is None:
        assert told in {
            "none",
            "1; on a GPU 1,2,4..",
            "64 on a CPU, else --max-batch-size",
            "1; on two cores up to 2",
        }
    elif isinstance(default, bool):
        assert told == ("yes" if default else "no")
    else:
        assert getattr(read_settings(model="m.onnx", **{field: told}), field) == default


def test_a_switch_can_be_set_both_ways(run: Run, served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    switches = [name for name in FIELDS if isinstance(Settings.model_fields[name].default, bool)]
    for name in switches:
        for variable, given, expected in (("true", "no-", False), ("false", "", True)):
            monkeypatch.setenv(f"AUGSERVE_{name.upper()}", variable)
            assert run("serve", "m.onnx", f"--{given}{name.replace('_', '-')}").status == 0
            assert getattr(served.pop(), name) is expected
    assert len(switches) == 5


def test_several_paths_are_several_models(run: Run, served: list[Settings]) -> None:
    assert run("serve", "a.onnx", "b.onnx", "models/").status == 0
    assert served[0].model == (Path("a.onnx"), Path("b.onnx"), Path("models"))


def test_a_flag_wins_over_the_variable_and_the_variable_over_the_file(
    run: Run, served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own.toml").write_text('model = ["a.onnx", "b.onnx"]\nworkers = 2\nmax_rows = 2\nqueue_limit = 2\n')
    monkeypatch.setenv("AUGSERVE_MAX_ROWS", "3")
    monkeypatch.setenv("AUGSERVE_QUEUE_LIMIT", "3")
    assert run("serve", "--config", "own.toml", "--queue-limit", 4).status == 0
    monkeypatch.setenv("AUGSERVE_CONFIG", "own.toml")
    assert run("serve", "c.onnx", "--queue-limit", 4).status == 0
    for settings in served:
        assert (settings.workers, settings.max_rows, settings.queue_limit) == (2, 3, 4)
    assert [settings.model for settings in served] == [(Path("a.onnx"), Path("b.onnx")), (Path("c.onnx"),)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "expected a TOML file of settings, found nothing"),
        ("workers = ", "expected a TOML file of settings"),
        ("workerz = 2", "unknown setting 'workerz'; choose from: .*workers"),
        ("workers = 0", "setting workers"),
    ],
)
def test_a_bad_file_of_settings_is_status_2(run: Run, text: str | None, words: str) -> None:
    if text is not None:
        Path("own.toml").write_text(text)
    assert re.search(words, one_line(run("serve", "m.onnx", "--config", "own.toml"), 2))


def test_a_value_out_of_range_is_status_2(run: Run) -> None:
    for flags in (["--workers", 0], ["--max-batch-size", 0], ["--warmup-sizes", "1,x"], ["--port", 70000]):
        told = one_line(run("serve", "m.onnx", *flags), 2)
        assert str(flags[0]).removeprefix("--").replace("-", "_") in told


def serve_section() -> str:
    return COMMANDS_PAGE.read_text("utf-8").partition("## augserve serve\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("field", FIELDS)
def test_the_page_tells_flag_variable_and_default(field: str) -> None:
    (line,) = [
        line for line in serve_section().splitlines() if f"`AUGSERVE_{field.upper()}`" in line and "|" in line
    ]
    flags, _, told, _ = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert flags == ", ".join(f"`{flag}`" for flag in [*OPTIONS[field].opts, *OPTIONS[field].secondary_opts])
    default = Settings.model_fields[field].default
    if isinstance(default, bool):
        assert told == ("yes" if default else "no")
    elif default is None:
        assert told == "-" or field in {"warmup_sizes", "preferred_batch_size", "workers"}
    else:
        assert getattr(read_settings(model="m.onnx", **{field: told.strip("`")}), field) == default


def test_the_file_of_settings_on_the_page_is_one(run: Run, served: list[Settings]) -> None:
    Path("shown.toml").write_text(re.search(r"```toml\n(.*?)```", serve_section(), re.DOTALL)[1])
    assert run("serve", "--config", "shown.toml").status == 0
    assert served[0].model == (Path("models"), Path("extra/digits.onnx"))


# --- check -----------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder `models` with two versions of faces, beside a.onnx and b.onnx."""
    write_model(tmp_path / "a.onnx")
    write_model(tmp_path / "b.onnx", "batch", preprocessing=None)
    for version in (1, 2):
        folder = tmp_path / "models" / "faces" / str(version)
        folder.mkdir(parents=True)
        write_model(folder / "model.onnx", "tracked")
    return tmp_path


@pytest.mark.usefixtures("models")
def test_check_tells_a_line_of_each_model_and_serves_nothing(run: Run, served: list[Settings]) -> None:
    done = run("serve", "a.onnx", "b.onnx", "models", "--check")
    assert (done.status, done.err, served) == (0, "", [])
    settings, keys, *lines, last = done.out.splitlines()
    assert settings.startswith("settings: model=a.onnx")
    assert keys.startswith("API keys: none")
    assert [line.partition(":")[0] for line in lines] == [
        "a version 1", "b version 1", "faces version 1", "faces version 2",
    ]  # fmt: skip
    for line, modes, takes in zip(
        lines,
        ["tracked, batch, blend; default tracked", "batch", "tracked", "tracked"],
        ["images or rows", "rows of numbers only", "images or rows", "images or rows"],
        strict=True,
    ):
        assert f"rows 3x8x8; 4 classes; statistics {modes}; {takes};" in line
    assert last == "4 of 4 models would serve"


@pytest.mark.usefixtures("models")
def test_check_leaves_the_address_to_who_has_it(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run("serve", "a.onnx", "--check", "--port", taken.getsockname()[1]).status == 0


@pytest.mark.parametrize("where", ["file", "folder"])
def test_check_names_every_model_and_fails_for_one_that_would_not_serve(run: Run, models: Path, where: str) -> None:
    path = models / ("bad.onnx" if where == "file" else "models/bad.onnx")
    path.write_text("no model")
    done = run("serve", "a.onnx", "models", *(["bad.onnx"] if where == "file" else []), "--check")
    told = one_line(done, 1)
    assert "error: 1 of 4 models would not serve; bad version 1: " in told
    assert "not an ONNX file" in told
    assert [line.partition(":")[0] for line in done.out.splitlines()[2:]] == [
        "a version 1", "bad version 1", "faces version 1", "faces version 2",
    ]  # fmt: skip


def test_check_of_nothing_fails(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: expected .onnx files" in one_line(run("serve", "empty", "--check"), 1)
    assert "none.onnx: expected an .onnx file" in one_line(run("serve", "none.onnx", "--check"), 1)
    assert "AUGSERVE_MODEL" in one_line(run("serve", "--check"), 2)


def test_check_fails_where_two_files_have_one_name(run: Run, models: Path) -> None:
    write_model(models / "models" / "a.onnx")
    assert "expected one file for model 'a'" in one_line(run("serve", "a.onnx", "models", "--check"), 1)


@pytest.mark.usefixtures("models")
def test_check_reads_the_keys_and_shows_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Path("keys")
    keys.write_text(f"alice:{SECRET}\n")
    keys.chmod(0o600)
    monkeypatch.setenv("AUGSERVE_API_KEYS", f"bob:{SECRET}-too")
    done = run("serve", "a.onnx", "--check", "--api-keys-file", "keys")
    assert (done.status, done.err) == (0, "")
    assert "API keys: asked for\n" in done.out
    assert "api_keys_file=keys" in done.out
    assert SECRET not in done.out
    keys.write_text(f"alice:{SECRET}\nbob:{SECRET}\n")
    failed = run("serve", "a.onnx", "--check", "--api-keys-file", "keys")
    assert SECRET not in failed.out + one_line(failed, 2)
    assert "none" in one_line(run("serve", "a.onnx", "--check", "--api-keys-file", "none"), 2)


# --- a process of its own --------------------------------------------------------------------------------


def test_several_models_are_served_and_settings_shown_without_secrets(models: Path) -> None:
    command = [*AUGSERVE, "serve", "a.onnx", "models", "--port", "0", "--threads", "1", "--access-log"]
    environment = {**os.environ, "AUGSERVE_API_KEYS": f"alice:{SECRET}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=models, env=environment
    ) as server:
        try:
            shown = server.stdout.readline()
            url = re.search(r"http://\S+", server.stdout.readline())[0]
            headers = {"X-API-Key": SECRET}
            found = httpx.get(f"{url}/models", headers=headers).json()["models"]
            refused = httpx.get(f"{url}/models").status_code
        finally:
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=60)
    assert (server.returncode, out) == (0, "stopped\n")
    assert [(model["name"], model["version"]) for model in found] == [("a", "1"), ("faces", "1"), ("faces", "2")]
    assert refused == 401
    assert shown.startswith("settings: ")
    assert {name for name in Settings.model_fields if f"{name}=" in shown} == set(Settings.model_fields)
    assert [json.loads(line)["status"] for line in err.splitlines()] == [200, 401]
    assert SECRET not in shown + out + err
