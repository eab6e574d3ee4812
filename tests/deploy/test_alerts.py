"""The Prometheus rules: promtool's verdict where it is installed, and the metrics as the service shows them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from augserve.service.settings import Settings
from augserve.service.watch.metrics import Metrics
from tests.deploy.files import DEPLOY, GUIDE, load, told

RULES = DEPLOY / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
OF_PROMETHEUS = {"job", "instance"}  # labels that the scrape adds

promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (document,) = load(RULES.name)
    (group,) = document["groups"]
    return group["rules"]


@pytest.fixture(scope="module")
def shown() -> dict[str, set[str]]:
    """The labels of each series that a server shows once it has done everything."""
    metrics = Metrics()
    metrics.loaded("m", "1")
    metrics.request("m", "batch", 200, 0.1, rows=2)
    metrics.queued("m", 0.1)
    metrics.run("m", 1, 2, [2], 0.1)
    metrics.run_error("m")
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_every_metric_and_label_is_one_of_the_servers(
    rules: list[dict[str, Any]], shown: dict[str, set[str]]
) -> None:
    for rule in rules:
        selectors = re.findall(r"\b(augserve_\w+)\{([^}]*)\}", rule["expr"])
        assert len(selectors) == len(re.findall(r"\baugserve_\w+", rule["expr"])), "a metric without a job"
        for name, labels in selectors:
            assert name in shown
            assert set(re.findall(r"(\w+)[=!]~?", labels)) <= shown[name] | OF_PROMETHEUS
            assert 'job="augserve"' in labels
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            kept = re.search(r"by \(([^)]*)\)", rule["expr"])
            assert kept is None or label in kept[1].split(", "), f"{rule['alert']} loses {label}"


def test_the_queue_alert_comes_before_the_limit(rules: list[dict[str, Any]]) -> None:
    (rule,) = (rule for rule in rules if rule["alert"] == "AugserveQueueFilling")
    threshold = int(rule["expr"].rpartition("> ")[2])
    assert threshold < Settings.model_fields["queue_limit"].default


def test_each_alert_is_told_of_and_tried(rules: list[dict[str, Any]]) -> None:
    raised, quiet = set(), set()
    for case in yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]:
        for check in case["alert_rule_test"]:
            (raised if check.get("exp_alerts") else quiet).add(check["alertname"])
    guide = GUIDE.read_text(encoding="utf-8")
    for rule in rules:
        assert rule["alert"] in raised & quiet
        assert f"`{rule['alert']}`" in guide
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {*rule["annotations"]} == {"summary", "description"}


@promtool
def test_promtool_knows_every_word() -> None:
    done = told("promtool", "check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_what_an_alert_is_for_raises_it(tmp_path: Path) -> None:
    cases = tmp_path / CASES.name
    cases.write_text(CASES.read_text(encoding="utf-8").replace("ALERTS", str(RULES)), encoding="utf-8")
    done = told("promtool", "test", "rules", str(cases))
    assert done.returncode == 0, done.stdout + done.stderr
