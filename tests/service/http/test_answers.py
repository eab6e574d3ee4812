"""What comes back: each answer against the network computed by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from augserve.errors import ConfigurationError, ModelFileError, StatisticsError, UnknownModelError
from augserve.service import Predictor, PredictSettings
from tests.service.tiny import CLASSES, expected_logits, running, some_rows, write_model

TOLERANCE = 1e-5  # float32 sums of 64 values of order 1


def ask(server: httpx.Client, rows: np.ndarray, **settings: object) -> dict:
    response = server.post("/predict", json={"instances": rows.tolist(), "return": ["logits"], **settings})
    assert response.status_code == 200, response.text
    return response.json()


def logits_of(answer: dict) -> np.ndarray:
    return np.array([prediction["logits"] for prediction in answer["predictions"]])


@pytest.mark.parametrize(
    ("settings", "groups", "weights"),
    [
        ({}, [range(10)], [1]),
        ({"tracking": True, "batch_size": 4}, [range(4), range(4, 8), range(8, 10)], [1, 1, 1]),
        ({"tracking": False}, [range(10)], [0]),
        ({"tracking": False, "batch_size": 4}, [range(4), range(4, 8), range(8, 10)], [0, 0, 0]),
        ({"tracking": False, "batch_size": 4, "remainder": "merge"}, [range(4), range(4, 10)], [0, 0]),
        ({"tracking": False, "batch_size": 5, "remainder": "error"}, [range(5), range(5, 10)], [0, 0]),
        ({"blend": {"tracked_weight": 0.7}, "batch_size": 5}, [range(5), range(5, 10)], [0.7, 0.7]),
        ({"blend": {"prior": 8}, "batch_size": 8}, [range(8), range(8, 10)], [0.5, 0.8]),
    ],
)
def test_logits_are_those_of_the_asked_statistics(
    server: httpx.Client, settings: dict, groups: list, weights: list
) -> None:
    rows = some_rows(10)
    answer = ask(server, rows, **settings)
    expected = expected_logits(rows, [list(group) for group in groups], weights)
    np.testing.assert_allclose(logits_of(answer), expected, rtol=0, atol=TOLERANCE)
    used = answer["statistics"]
    assert used["groups"] == [len(group) for group in groups]
    assert used["tracked_weight"] == pytest.approx(weights)
    assert used["dropped"] == []
    assert used["remainder"] == settings.get("remainder", "own")
    assert answer["warnings"] == []


def test_dropped_rows_are_listed_and_not_predicted(server: httpx.Client) -> None:
    rows = some_rows(10)
    answer = ask(server, rows, tracking=False, batch_size=4, remainder="drop")
    expected = expected_logits(rows, [[0, 1, 2, 3], [4, 5, 6, 7]], [0, 0])[:8]
    np.testing.assert_allclose(logits_of(answer), expected, rtol=0, atol=TOLERANCE)
    assert answer["statistics"]["dropped"] == [8, 9]
    assert answer["statistics"]["mode"] == "batch"


def test_a_group_does_not_see_the_rows_of_another(server: httpx.Client) -> None:
    rows = some_rows(8)
    other = rows.copy()
    other[4:] = 1e3 * some_rows(4, seed=1)
    first = logits_of(ask(server, rows, tracking=False, batch_size=4))
    second = logits_of(ask(server, other, tracking=False, batch_size=4))
    assert (first[:4] == second[:4]).all()
    assert (first[4:] != second[4:]).any(axis=1).all()


def test_one_row_group_is_answered_with_a_warning(server: httpx.Client) -> None:
    answer = ask(server, some_rows(5), tracking=False, batch_size=4)
    assert len(answer["warnings"]) == 1
    assert "1 of 2 statistics groups have one row" in answer["warnings"][0]
    assert ask(server, some_rows(5), tracking=True, batch_size=4)["warnings"] == []


def test_default_answer_has_label_and_probabilities(server: httpx.Client) -> None:
    rows = some_rows(3)
    body = server.post("/predict", json={"instances": rows.tolist()}).json()
    exponentials = np.exp(expected_logits(rows, [[0, 1, 2]], [1]))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    for prediction, expected in zip(body["predictions"], probabilities, strict=True):
        assert set(prediction) == {"index", "label", "probability", "probabilities"}
        assert prediction["index"] == expected.argmax()
        assert prediction["label"] == CLASSES[expected.argmax()]
        assert prediction["probability"] == pytest.approx(expected.max(), abs=TOLERANCE)
        assert prediction["probabilities"] == pytest.approx(expected, abs=TOLERANCE)
    assert (body["model"], body["model_version"]) == ("tiny", "1")
    timing = body["timing_ms"]
    assert 0 <= timing["run"] <= timing["total"]
    assert 0 <= timing["queue"] <= timing["total"]


@pytest.mark.parametrize(("top_k", "length"), [(1, 1), (3, 3), (9, 4)])
def test_top_k_is_sorted_and_starts_with_the_label(server: httpx.Client, top_k: int, length: int) -> None:
    answer = ask(server, some_rows(2), top_k=top_k, **{"return": ["label"]})
    for prediction in answer["predictions"]:
        assert set(prediction) == {"index", "label", "probability", "top_k"}
        best = prediction["top_k"]
        assert len(best) == length
        assert best[0] == {key: prediction[key] for key in ("index", "label", "probability")}
        assert [one["probability"] for one in best] == sorted((o["probability"] for o in best), reverse=True)
        assert all(one["label"] == CLASSES[one["index"]] for one in best)


def test_concurrent_requests_get_their_own_answers(model: Path) -> None:
    def one(seed: int) -> None:
        rows = some_rows(3 + seed % 5, seed)
        answer = ask(client, rows, tracking=False)
        expected = expected_logits(rows, [list(range(len(rows)))], [0])
        np.testing.assert_allclose(logits_of(answer), expected, rtol=0, atol=TOLERANCE)

    with running(model, workers=2) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(48)))


def test_default_mode_is_the_manifest_s(flat_model: Path) -> None:
    predictor = Predictor.open(flat_model, threads=1)
    assert predictor.predict(some_rows(4))["statistics"]["mode"] == "batch"
    assert predictor.predict(some_rows(4), PredictSettings(tracking=True))["statistics"]["mode"] == "tracked"


@pytest.mark.parametrize("settings", [{}, {"blend": {"prior": 3}}])
def test_one_row_group_without_statistics_is_refused(flat_model: Path, settings: dict) -> None:
    predictor = Predictor.open(flat_model, threads=1)
    with pytest.raises(StatisticsError, match="at least 2 rows"):
        predictor.predict(some_rows(5), PredictSettings(batch_size=4, **settings))
    merged = PredictSettings(batch_size=4, remainder="merge", **settings)
    assert predictor.predict(some_rows(5), merged)["statistics"]["groups"] == [5]
    alone = PredictSettings(tracking=True)
    assert predictor.predict(some_rows(1), alone)["warnings"] == []


@pytest.mark.parametrize(("mode", "weight"), [("tracked", 1.0), ("batch", 0.0)])
def test_file_of_one_mode_serves_that_mode_only(tmp_path: Path, mode: str, weight: float) -> None:
    predictor = Predictor.open(write_model(tmp_path / "one.onnx", mode, default_mode=mode), threads=1)
    rows = some_rows(5)
    settings = PredictSettings(batch_size=2, returns=["logits"])
    answer = predictor.predict(rows, settings)
    expected = expected_logits(rows, [[0, 1], [2, 3], [4]], [weight] * 3)
    np.testing.assert_allclose(logits_of(answer), expected, rtol=0, atol=TOLERANCE)
    assert answer["statistics"]["mode"] == mode
    with pytest.raises(StatisticsError, match=f"serves {mode} statistics only"):
        predictor.predict(rows, PredictSettings(tracking=mode == "batch"))
    with pytest.raises(StatisticsError, match="got a request for blend"):
        predictor.predict(rows, PredictSettings(blend={"prior": 1}))


def test_predictor_refuses_what_http_refuses(predictor: Predictor) -> None:
    with pytest.raises(UnknownModelError, match="the model is 'tiny'"):
        predictor.predict(some_rows(1), PredictSettings(model="other"))
    with pytest.raises(ConfigurationError, match="got both"):
        predictor.predict(some_rows(1), PredictSettings(tracking=True, blend={"prior": 1}))


def test_model_that_fails_its_self_check_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "tiny.onnx")
    for logits, came in (
        (np.zeros((1, 3), np.float32), "shape"),
        (np.full((1, 4), np.nan, np.float32), "NaN"),
    ):
        monkeypatch.setattr("augserve.service.model.graph.Form.run", lambda *_, logits=logits: logits)
        with pytest.raises(ModelFileError, match=f"self-check.*{came}"):
            Predictor.open(path)
