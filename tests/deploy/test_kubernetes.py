"""The Kubernetes objects: the published schemas, and what the image, the settings and the routes say."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

import augserve
from tests.deploy.files import Image, bytes_of, drain_s, held_bytes, load, paths, settings_of

NAME = "kubernetes.yaml"
VERSIONS = ("1.28", "1.37")


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    documents = load(NAME)
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    return kinds


@pytest.fixture
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


@pytest.fixture
def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_know_every_word(objects: dict[str, dict[str, Any]], version: str) -> None:
    for document in objects.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_an_unknown_word(objects: dict[str, dict[str, Any]]) -> None:
    document = copy.deepcopy(objects["Deployment"])
    document["spec"]["template"]["spec"]["terminationGracePeriod"] = 75
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_the_selectors_find_the_pods(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (spread,) = pod["topologySpreadConstraints"]
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()


def test_the_port_is_one_all_the_way(
    objects: dict[str, dict[str, Any]],
    container: dict[str, Any],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, (port,) = Image(), container["ports"]
    assert port["containerPort"] == image.port == settings_of(environment, monkeypatch).port
    assert image.environment["AUGSERVE_HOST"] == "0.0.0.0"  # noqa: S104 - or no probe would reach it
    (exposed,) = objects["Service"]["spec"]["ports"]
    assert exposed["targetPort"] == port["name"]
    annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(image.port)


def test_no_service_link_overwrites_the_port(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    assert objects["Service"]["metadata"]["name"] == "augserve"  # else there would be no AUGSERVE_PORT of its own
    assert pod["enableServiceLinks"] is False


def test_the_probes_ask_routes_that_exist(objects: dict[str, dict[str, Any]], container: dict[str, Any]) -> None:
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    asked = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert {*asked.values()} <= paths()
    for probe in probes.values():
        assert probe["httpGet"]["port"] == container["ports"][0]["name"]
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    metadata = objects["Deployment"]["spec"]["template"]["metadata"]
    assert metadata["annotations"]["prometheus.io/path"] == "/metrics" in paths()


def test_it_is_killed_only_after_the_drain(
    pod: dict[str, Any], container: dict[str, Any], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    drain = drain_s(settings_of(environment, monkeypatch))
    assert pod["terminationGracePeriodSeconds"] > int(pause) + drain


def test_the_limits_fit_the_settings(
    container: dict[str, Any], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, limits = settings_of(environment, monkeypatch), container["resources"]["limits"]
    assert settings.threads == int(limits["cpu"])
    assert held_bytes(settings) < bytes_of(limits["memory"])
    assert container["resources"]["requests"]["memory"] == limits["memory"]
    assert limits["nvidia.com/gpu"] == 1
    assert settings.providers[0] == "CUDAExecutionProvider"


def test_it_runs_as_the_images_user_and_writes_nothing(pod: dict[str, Any], container: dict[str, Any]) -> None:
    image, own = Image(), container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == image.user
    assert pod["securityContext"]["runAsGroup"] == image.group
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["readOnlyRootFilesystem"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


def test_models_are_mounted_where_the_image_looks(pod: dict[str, Any], container: dict[str, Any]) -> None:
    image = Image()
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts[image.folder]["readOnly"]
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    assert "command" not in container  # the image's entry point
    assert container["args"] == ["serve", image.folder]


def test_the_image_is_this_version(container: dict[str, Any]) -> None:
    assert container["image"] == f"augserve:{augserve.__version__}"


def test_a_roll_or_a_drained_node_leaves_a_replica(objects: dict[str, dict[str, Any]]) -> None:
    deployment, budget = objects["Deployment"]["spec"], objects["PodDisruptionBudget"]["spec"]
    for gone in (deployment["strategy"]["rollingUpdate"]["maxUnavailable"], budget["maxUnavailable"]):
        assert 0 < gone < deployment["replicas"]
