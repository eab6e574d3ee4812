"""Servers of several models: what is listed, and models that change on disk while requests go on."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from augserve.errors import ConfigurationError, ModelFileError, UnknownModelError
from augserve.service import PredictSettings, read_settings
from augserve.service.lifecycle import Service
from tests.service.tiny import CLASSES, SHAPE, expected_logits, running, some_rows, wait_until, write_model


def replace_model(path: Path, **changes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name("fresh.part")
    write_model(fresh, **changes)
    fresh.replace(path)


def test_a_request_keeps_the_version_that_it_began_with(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    write_model(path, classes=["old"] * 4)
    service = Service(read_settings(model=tmp_path, threads=1))
    service.load()
    rows = some_rows(3)
    with service.taking():
        predictor = service.models.get("a")
        replace_model(path, classes=["new"] * 4)
        service.models.refresh()
        assert service.models.get("a").predict(rows)["predictions"][0]["label"] == "new"
        path.unlink()
        service.models.refresh()
        with pytest.raises(UnknownModelError):
            service.models.get("a")
        answer = predictor.predict(rows, PredictSettings(returns=["label", "logits"]))
    assert answer["predictions"][0]["label"] == "old"
    logits = [prediction["logits"] for prediction in answer["predictions"]]
    np.testing.assert_allclose(logits, expected_logits(rows, [[0, 1, 2]], [1]), atol=1e-5)
    assert service.accepted == 0


def test_a_named_file_must_load_and_a_folder_must_hold_something_that_does(tmp_path: Path) -> None:
    good = write_model(tmp_path / "good.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"bad\.onnx"):
        Service(read_settings(model=f"{good}:{bad}")).load()
    service = Service(read_settings(model=tmp_path, threads=1))
    service.load()
    assert {one.name: one.state for one in service.models.index()} == {"good": "READY", "bad": "UNAVAILABLE"}
    good.unlink()
    with pytest.raises(ModelFileError, match=r"expected a model that can be served; bad: .*bad\.onnx"):
        Service(read_settings(model=tmp_path)).load()
    bad.unlink()
    with pytest.raises(ModelFileError, match="expected a model that can be served; found none"):
        Service(read_settings(model=tmp_path)).load()


def test_settings_name_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    several = (Path("a.onnx"), Path("folder"))
    assert read_settings(model="a.onnx:folder").model == several
    assert read_settings(model=["a.onnx", "folder"]).model == several
    monkeypatch.setenv("AUGSERVE_MODEL", "a.onnx:folder")
    assert read_settings().model == several
    for nothing in (":", []):
        with pytest.raises(ConfigurationError, match="model"):
            read_settings(model=nothing)


def test_models_are_listed_with_what_they_take(tmp_path: Path) -> None:
    write_model(tmp_path / "a.onnx")
    replace_model(tmp_path / "b" / "2" / "model.onnx", mode="batch", default_mode="batch")
    (tmp_path / "c.onnx").write_bytes(b"no model")
    with running(tmp_path, repository_poll_s=0) as client:
        a, b, c = client.get("/models").json()["models"]
        no_name = client.post("/predict", json={"instances": some_rows(1).tolist()})
        strange = client.post("/predict", json={"instances": some_rows(1).tolist(), "model": "c"})
    assert (a["name"], a["version"], a["state"], a["classes"]) == ("a", "1", "READY", CLASSES)
    assert (a["shapes"], a["modes"], a["default_mode"]) == ([SHAPE], ["tracked", "batch", "blend"], "tracked")
    assert (b["name"], b["version"], b["modes"], b["default_mode"]) == ("b", "2", ["batch"], "batch")
    assert (set(c), c["state"]) == ({"name", "version", "state", "reason"}, "UNAVAILABLE")
    assert "c.onnx" in c["reason"]
    assert no_name.status_code == strange.status_code == 404
    assert "the models are: a, b" in no_name.json()["error"]
    assert "no model 'c' here; the models are: 'a', 'b'" in strange.json()["error"]


class Traffic:
    """Callers who ask a server without a pause, each for a model of its own."""

    def __init__(self, url: httpx.URL, models: list[str]) -> None:
        self.answers: list[tuple[str, httpx.Response]] = []
        self.broken: list[Exception] = []
        self._stop = threading.Event()
        self._models = set(models)
        self._threads = [threading.Thread(target=self._ask, args=(url, model)) for model in models]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, url: httpx.URL, model: str) -> None:
        body = {"instances": some_rows(2).tolist(), "model": model, "tracking": False, "return": ["label"]}
        with httpx.Client(base_url=url, timeout=20) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append((model, client.post("/predict", json=body)))
                except httpx.HTTPError as error:
                    self.broken.append(error)

    def wait_for_new(self) -> None:
        """Return when every model gave three answers more: at most two of its callers had begun before."""
        count = len(self.answers)

        def enough() -> bool:
            new = [model for model, _ in self.answers[count:]]
            return all(new.count(model) >= 3 for model in self._models)

        wait_until(enough)


def test_models_that_come_change_and_go_under_traffic_cost_no_request(tmp_path: Path) -> None:
    """One model is replaced in place, of another the versions move on; broken files come between."""
    flat, versions = tmp_path / "flat.onnx", 6
    replace_model(flat, classes=["v1"] * 4)
    replace_model(tmp_path / "moving" / "1" / "model.onnx", classes=["v1"] * 4)
    with running(tmp_path, repository_poll_s=0.01) as client:

        def listed() -> dict[tuple[str, str], dict]:
            return {(one["name"], one["version"]): one for one in client.get("/models").json()["models"]}

        with Traffic(client.base_url, ["flat", "moving", "moving"]) as traffic:
            traffic.wait_for_new()
            for k in range(2, versions + 1):
                broken = tmp_path / "moving" / "99" / "model.onnx"
                broken.parent.mkdir(exist_ok=True)
                broken.write_bytes(b"half a model" * k)
                (tmp_path / "half.part").write_bytes(b"half" * k)
                (tmp_path / "half.part").replace(flat)
                wait_until(lambda: "reason" in listed()["flat", "1"])
                wait_until(lambda: listed().get(("moving", "99"), {}).get("state") == "UNAVAILABLE")
                replace_model(flat, classes=[f"v{k}"] * 4)
                replace_model(tmp_path / "moving" / str(k) / "model.onnx", classes=[f"v{k}"] * 4)
                wait_until(lambda k=k: listed()["flat", "1"].get("classes") == [f"v{k}"] * 4)
                wait_until(lambda k=k: listed().get(("moving", str(k)), {}).get("state") == "READY")
                (tmp_path / "moving" / str(k - 1) / "model.onnx").unlink()
                wait_until(lambda k=k: ("moving", str(k - 1)) not in listed())
                traffic.wait_for_new()
    assert traffic.broken == []
    assert {response.status_code for _, response in traffic.answers} == {200}
    seen: dict[str, list[str]] = {"flat": [], "moving": []}
    for model, response in traffic.answers:
        answer = response.json()
        (label,) = {prediction["label"] for prediction in answer["predictions"]}
        assert answer["model_version"] == ("1" if model == "flat" else label[1:])
        seen[model].append(label)
    for labels in seen.values():
        assert set(labels) == {f"v{k}" for k in range(1, versions + 1)}
    assert seen["flat"] == sorted(seen["flat"])  # one caller after another: never back to an older one
