"""What the chart promises to a platform team, read from what Helm renders."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.chart import CHART, OF_KUBERNETES, VALUE_FILES, Manifest, helm, only, pod, render, template

pytestmark = pytest.mark.integration

MONITORING = CHART.parent / "monitoring"
every_value_file = pytest.mark.parametrize("file", VALUE_FILES, ids=lambda file: file.stem)


def with_file(name: str, **values: Any) -> list[Manifest]:
    return render(values, CHART / "ci" / f"{name}.yaml")


def kinds(manifests: list[Manifest]) -> set[str]:
    return {manifest["kind"] for manifest in manifests}


@every_value_file
def test_lint_has_nothing_to_say(file: Path) -> None:
    """`helm lint --strict` for each value file."""
    done = helm("lint", "--strict", str(CHART), *OF_KUBERNETES, "--values", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@every_value_file
def test_no_container_has_more_rights_than_it_needs(file: Path) -> None:
    """Each container, of tests too: uid above 0, nothing added, root file system read-only, no token, no service links."""
    for manifest in render(None, file):
        spec = manifest["spec"]["template"]["spec"] if manifest["kind"] == "Deployment" else manifest.get("spec", {})
        if manifest["kind"] not in ("Deployment", "Pod"):
            continue
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@every_value_file
def test_names_are_one_releases_own(file: Path) -> None:
    """All objects carry the release's labels; the selector chooses the service's pods and not those of tests."""
    manifests = render(None, file)
    for manifest in manifests:
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "books"
    selector = only(manifests, "Deployment")["spec"]["selector"]["matchLabels"]
    assert selector["app.kubernetes.io/component"] == "service"
    [test] = [one for one in manifests if one["kind"] == "Pod"]
    assert test["metadata"]["labels"]["app.kubernetes.io/component"] == "test"


def test_the_pod_is_killed_later_than_its_drain_ends() -> None:
    """The grace period follows the drain's deadline."""
    assert pod(render())["terminationGracePeriodSeconds"] == 35
    assert pod(render({"settings": {"shutdown": {"drain_seconds": 90.5}}}))["terminationGracePeriodSeconds"] == 101


def test_the_kubelet_waits_longer_at_start_than_the_service_does() -> None:
    """The service ends by itself at its deadline and says what it waited for."""
    for deadline in (60, 600):
        probe = pod(render({"settings": {"startup": {"deadline_seconds": deadline}}}))["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= deadline + 60


def test_probes_ask_the_port_of_the_settings() -> None:
    """Another port is another port everywhere."""
    manifests = render({"settings": {"http": {"port": 9191}}})
    container = pod(manifests)["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 9191}]
    assert '"127.0.0.1", 9191' in container["startupProbe"]["exec"]["command"][-1]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert only(manifests, "Service")["spec"]["ports"][0]["port"] == 9191
    assert only(manifests, "NetworkPolicy")["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 9191}]


@pytest.mark.parametrize(("replicas", "surge", "gone"), [(1, 1, 0), (3, 1, 0), (4, 0, 1), (6, 0, 1)])
def test_an_update_never_has_more_replicas_than_partitions(replicas: int, surge: int, gone: int) -> None:
    """With a replica a partition the old one goes before the new one comes."""
    strategy = only(render({"replicas": replicas, "partitions": 4}), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": surge, "maxUnavailable": gone}


def test_changed_settings_are_new_pods() -> None:
    """The checksum of settings and Secrets is on the pod."""

    def checksum(**values: Any) -> str:
        template = only(render(values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/settings"])

    assert checksum() == checksum()
    assert checksum() != checksum(settings={"log": {"level": "debug"}})
    assert checksum(secretSettings={"redis.url": {"value": "redis://a"}}) != checksum(
        secretSettings={"redis.url": {"value": "redis://b"}}
    )


def test_no_password_stands_in_the_config_map_or_the_pod() -> None:
    """Values of Secrets are in the Secret alone."""
    manifests = with_file("sasl-ssl")
    for manifest in manifests:
        assert ("not-a-real-password" in json.dumps(manifest)) == (manifest["kind"] == "Secret")


def test_a_gpu_is_asked_for_with_all_that_belongs_to_it() -> None:
    """Resource, toleration, runtime class, selector, the engine built before the service starts."""
    spec = pod(with_file("gpu"))
    [engine] = spec["initContainers"]
    service = spec["containers"][0]
    assert service["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "catalogue-live")
    assert service["image"] == engine["image"] == "listing-enricher:0.1.0-gpu"
    [bundle] = [one["value"] for one in service["env"] if one["name"] == "CONSUMER_MODEL__BUNDLE"]
    assert engine["command"][-2:] == ["--bundle", bundle]
    cache = {"name": "engines", "mountPath": "/home/enricher/.cache/listing-enricher"}
    assert cache in engine["volumeMounts"]
    assert cache in service["volumeMounts"]
    assert {"name": "HOME", "value": "/home/enricher"} in service["env"]
    assert {"name": "engines", "persistentVolumeClaim": {"claimName": "engines"}} in spec["volumes"]


def test_a_gpu_pod_that_builds_its_own_engine_has_the_time_and_the_place() -> None:
    """Without the init container the service builds, for up to `model.engine_build_seconds`, into the same cache."""
    spec = pod(render({"gpu": {"count": 1}}))
    probe = spec["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 900 + 60 + 60
    assert {"name": "engines", "emptyDir": {"sizeLimit": "2Gi"}} in spec["volumes"]
    assert "initContainers" not in spec


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        ("image", {"image": {"reference": "one", "pullPolicy": "IfNotPresent"}}),
        ("claim", {"persistentVolumeClaim": {"claimName": "bundles", "readOnly": True}}),
        ("init-container", {"emptyDir": {"sizeLimit": "1Gi"}}),
    ],
)
def test_a_model_is_rolled_out_by_one_value(source: str, volume: Manifest) -> None:
    """Another `model.bundle` is another pod template, wherever bundles come from, and nothing else changes."""
    before, after = (render({"model": {"bundle": name, "from": source, "claim": "bundles"}}) for name in ("one", "two"))
    assert {"name": "model", **volume} in pod(before)["volumes"]
    changed = [one["kind"] for one, other in zip(before, after, strict=True) if one != other]
    assert changed == ["Deployment"]


def test_scaling_by_lag_stops_at_the_partitions() -> None:
    """KEDA: the group, topic and brokers of the settings; the Deployment leaves the number of replicas to it."""
    manifests = with_file("keda")
    scaled = only(manifests, "ScaledObject")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 24)
    [trigger] = scaled["triggers"]
    assert trigger["metadata"]["consumerGroup"] == "listing-enricher"
    assert trigger["metadata"]["topic"] == "catalogue.listings"
    assert trigger["metadata"]["lagThreshold"] == "20000"
    assert trigger["authenticationRef"] == {"name": "kafka-credentials"}
    assert "replicas" not in only(manifests, "Deployment")["spec"]


def test_scaling_by_cpu_stops_at_the_partitions() -> None:
    """The plain HorizontalPodAutoscaler."""
    spec = only(with_file("hpa"), "HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 4)


def test_by_default_nothing_needs_another_operator() -> None:
    """No object of KEDA's or Prometheus's."""
    assert kinds(render()) == {
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }


def egress_ports(manifests: list[Manifest]) -> list[list[int]]:
    rules = only(manifests, "NetworkPolicy")["spec"]["egress"]
    return [[port["port"] for port in rule["ports"]] for rule in rules]


def test_the_network_is_open_to_what_the_settings_name() -> None:
    """DNS, Kafka, registry, Redis, each by the ports of its address; cover hosts only where covers are fetched."""
    assert egress_ports(render()) == [[53, 53], [9092], [8081], [6379]]
    assert egress_ports(with_file("sasl-ssl")) == [[53, 53], [9094], [443], [6380]]
    assert egress_ports(with_file("default")) == [[53, 53], [9092], [8081], [6379], [80, 443]]


def test_rules_and_dashboard_are_those_of_the_monitoring_folder() -> None:
    """One source: the chart's files are links to it."""
    for name in ("alerts.yml", "dashboard.json"):
        assert (CHART / "files" / name).resolve() == MONITORING / name
    manifests = with_file("default")
    rule = only(manifests, "PrometheusRule")
    assert "groups" in rule["spec"]
    [dashboard] = [one for one in manifests if one["metadata"]["name"].endswith("-dashboard")]
    assert dashboard["data"]["listing-enricher.json"] == (MONITORING / "dashboard.json").read_text(encoding="utf-8")


def test_the_package_is_whole(tmp_path: Path) -> None:
    """`helm package` follows the links, and what it packs renders the same."""
    packed = helm("package", str(CHART), "--destination", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    [archive] = tmp_path.glob("*.tgz")
    file = str(CHART / "ci" / "default.yaml")
    done = helm("template", "books", str(archive), "--namespace", "shop", "--kube-version", "1.34.4", "--values", file)
    assert done.stdout == template(None, Path(file)).stdout
