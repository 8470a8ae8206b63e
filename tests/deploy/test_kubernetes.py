"""The manifests: rendered by kustomize, valid by the API's own schemas, and consistent with the code."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ByteSize, TypeAdapter

from cacheservice.address import split_address
from cacheservice.config import MiB, Settings
from cacheservice.server.app import LIVENESS, READINESS

K8S = Path(__file__).resolve().parents[2] / "deploy" / "k8s"
BASE = K8S / "base"
OLDEST, NEWEST = "1.30", "1.37"
"""The sleep before the stop is there without being asked for since 1.30."""

Object = dict[str, Any]


def rendered(kustomize: str, folder: Path) -> list[Object]:
    done = subprocess.run([kustomize, "build", str(folder)], capture_output=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def objects(tool: Callable[[str], str]) -> list[Object]:
    return rendered(tool("kustomize"), BASE)


@pytest.fixture(scope="module")
def with_tls(tool: Callable[[str], str]) -> list[Object]:
    return rendered(tool("kustomize"), K8S / "tls")


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


@pytest.fixture(scope="module")
def stateful_set(objects: list[Object]) -> Object:
    [found] = of_kind(objects, "StatefulSet")
    return found


@pytest.fixture(scope="module")
def pod(stateful_set: Object) -> Object:
    spec: Object = stateful_set["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_valid_strictly(objects: list[Object], version: str) -> None:
    kinds = sorted(found["kind"] for found in objects)
    assert kinds == [
        "ConfigMap",
        "PodDisruptionBudget",
        "Service",
        "Service",
        "ServiceAccount",
        "StatefulSet",
    ]
    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)


def test_selectors_find_the_pods(objects: list[Object], stateful_set: Object) -> None:
    labels = stateful_set["spec"]["template"]["metadata"]["labels"].items()
    budgets = [found["spec"]["selector"]["matchLabels"] for found in of_kind(objects, "PodDisruptionBudget")]
    services = [found["spec"]["selector"] for found in of_kind(objects, "Service")]
    for selector in [*budgets, *services, stateful_set["spec"]["selector"]["matchLabels"]]:
        assert selector.items() <= labels


def test_every_variable_is_a_setting_with_a_value_that_it_takes(objects: list[Object], pod: Object) -> None:
    [config] = of_kind(objects, "ConfigMap")
    [container] = pod["containers"]
    variables = {**config["data"], **{item["name"]: item.get("value") for item in container["env"]}}
    del variables["POD_IP"]
    variables["CACHESERVICE_NODE_ID"] = "cacheservice-0"
    variables["CACHESERVICE_ADVERTISE"] = variables["CACHESERVICE_ADVERTISE"].replace("$(POD_IP)", "10.0.0.1")
    names = {name: name.removeprefix("CACHESERVICE_").lower() for name in variables}
    assert set(names.values()) <= set(Settings.model_fields)
    Settings(**{names[name]: value for name, value in variables.items()})


def test_seeds_are_the_headless_service_that_lists_pods_before_they_are_ready(
    objects: list[Object], stateful_set: Object
) -> None:
    [config] = of_kind(objects, "ConfigMap")
    [headless] = [found for found in of_kind(objects, "Service") if found["spec"].get("clusterIP") == "None"]
    assert headless["spec"]["publishNotReadyAddresses"] is True
    name = headless["metadata"]["name"]
    assert stateful_set["spec"]["serviceName"] == name
    assert config["data"]["CACHESERVICE_SEEDS"] == f"{name}:{headless['spec']['ports'][0]['port']}"


def test_three_pods_that_may_go_one_by_one(objects: list[Object], stateful_set: Object) -> None:
    [budget] = of_kind(objects, "PodDisruptionBudget")
    assert stateful_set["spec"]["replicas"] == 3
    assert budget["spec"]["maxUnavailable"] == 1


def test_probes_ask_for_what_the_server_serves(pod: Object) -> None:
    [container] = pod["containers"]
    asked = {probe: container[probe]["grpc"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe: grpc["service"] for probe, grpc in asked.items()} == {
        "startupProbe": LIVENESS,
        "livenessProbe": LIVENESS,
        "readinessProbe": READINESS,
    }
    assert {grpc["port"] for grpc in asked.values()} == {container["ports"][0]["containerPort"]}


def test_there_is_time_to_drain_and_memory_beyond_the_entries(objects: list[Object], pod: Object) -> None:
    [container] = pod["containers"]
    sleep_seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_seconds = Settings.model_fields["drain_seconds"].default
    assert pod["terminationGracePeriodSeconds"] > sleep_seconds + drain_seconds
    [config] = of_kind(objects, "ConfigMap")
    size = TypeAdapter(ByteSize)
    entries = size.validate_python(config["data"]["CACHESERVICE_MAX_MEMORY"])
    limit = size.validate_python(pod["containers"][0]["resources"]["limits"]["memory"] + "B")
    assert limit >= 1.15 * entries + 64 * MiB


def test_runs_as_nobody_in_particular(pod: Object) -> None:
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_valid_strictly_with_tls(with_tls: list[Object], version: str) -> None:
    for found in with_tls:
        if not found["apiVersion"].startswith("cert-manager.io/"):
            kubernetes_validate.validate(found, version, strict=True)


def test_nodes_have_their_certificate_and_the_probes_need_none(with_tls: list[Object]) -> None:
    [stateful_set] = of_kind(with_tls, "StatefulSet")
    pod = stateful_set["spec"]["template"]["spec"]
    [container] = pod["containers"]
    variables = {item["name"]: item.get("value") for item in container["env"]}
    assert {name.removeprefix("CACHESERVICE_").lower() for name in variables} - {"pod_ip"} <= set(
        Settings.model_fields
    )
    [secret] = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    certificates = {found["spec"]["secretName"]: found["spec"] for found in of_kind(with_tls, "Certificate")}
    assert variables["CACHESERVICE_TLS_SERVER_NAME"] in certificates[secret]["dnsNames"]
    assert set(certificates[secret]["usages"]) == {"server auth", "client auth"}
    [folder] = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls"]
    files = {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
    for name, file in files.items():
        assert variables[f"CACHESERVICE_TLS_{name.upper()}"] == f"{folder}/{file}"
    _, port = split_address(variables["CACHESERVICE_HEALTH_LISTEN"])
    probes = [container[probe]["grpc"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert probes == [
        {"port": port, "service": LIVENESS},
        {"port": port, "service": LIVENESS},
        {"port": port, "service": READINESS},
    ]


def test_no_service_is_said_to_be_in_plaintext_with_tls(with_tls: list[Object]) -> None:
    ports = [port for service in of_kind(with_tls, "Service") for port in service["spec"]["ports"]]
    assert len(ports) == 2
    assert not [port for port in ports if "appProtocol" in port]
