"""What `kubectl kustomize` makes of deploy/kubernetes: valid by the schemas, and in agreement with the code."""

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cli import _parser
from handlers.settings import ServeSettings, read_gateway

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "dev", "canary")
COMPONENTS = tuple(sorted(path.name for path in (KUBERNETES / "components").iterdir()))
VERSIONS = ("1.33", kubernetes_validate.latest_version())
FETCH = KUBERNETES / "components" / "models-object-store" / "fetch.py"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
Manifest = dict[str, Any]


def strict(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A JSON schema of an object with these keys and no other."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def listing(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


TEXT, NUMBER, MAP = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "object"}
DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}
TRIGGER = strict(
    {
        "type": {"const": "prometheus"},
        "name": TEXT,
        "metricType": {"enum": ["AverageValue", "Value"]},
        "metadata": strict({"serverAddress": TEXT, "query": TEXT, "threshold": QUANTITY}),
    }
)
CRDS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): strict(
        {
            "selector": strict({"matchLabels": MAP}),
            "podMetricsEndpoints": listing(
                strict({"port": TEXT, "path": TEXT, "interval": DURATION, "scrapeTimeout": DURATION})
            ),
        },
        {"podTargetLabels": listing(TEXT)},
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): strict(
        {
            "scaleTargetRef": strict({"name": TEXT}),
            "minReplicaCount": NUMBER,
            "maxReplicaCount": NUMBER,
            "pollingInterval": NUMBER,
            "triggers": listing(TRIGGER),
        },
        {"advanced": strict({"horizontalPodAutoscalerConfig": strict({"behavior": MAP})})},
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): strict(
        {
            "parentRefs": listing(strict({"name": TEXT})),
            "rules": listing(
                strict(
                    {
                        "matches": listing(strict({"path": strict({"type": {"const": "PathPrefix"}, "value": TEXT})})),
                        "backendRefs": listing(strict({"name": TEXT, "port": NUMBER, "weight": NUMBER})),
                    }
                )
            ),
        }
    ),
}
"""The fields of these kinds' `spec` that are used here, strictly: the schemas of Kubernetes do not have them. On
2026-11-25 the three manifests were also valid by the schemas in the npm packages @kubernetes-models/keda 2.0.0,
prometheus-operator 6.0.0 and gateway-api 2.0.0, which let unknown fields pass."""


def kustomize(folder: Path) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed, and `kubectl kustomize` with it")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), "a warning counts, too"
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@functools.cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    return tuple(kustomize(KUBERNETES / "overlays" / overlay))


def with_component(component: str, folder: Path) -> tuple[Manifest, ...]:
    """The base with one component; kustomize wants paths relative to the folder."""
    paths = {name: os.path.relpath(KUBERNETES / name, folder.resolve()) for name in ("base", f"components/{component}")}
    resources, components = paths.values()
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [resources], "components": [components]}))
    return tuple(kustomize(folder))


def only(manifests: tuple[Manifest, ...], kind: str) -> Manifest:
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def check(manifest: Manifest, version: str) -> None:
    """By the schema of its kind; a kind without one is an error."""
    crd = CRDS.get((manifest["apiVersion"], manifest["kind"]))
    if crd is None:
        kubernetes_validate.validate(manifest, version, strict=True)
    else:
        jsonschema.validate(manifest, strict({"apiVersion": TEXT, "kind": TEXT, "metadata": MAP, "spec": crd}))


def pods(manifests: tuple[Manifest, ...]) -> Manifest:
    return dict(only(manifests, "Deployment")["spec"]["template"]["spec"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_fit_their_schemas(overlay: str) -> None:
    manifests = rendered(overlay)
    for manifest in manifests:
        for version in VERSIONS:
            check(manifest, version)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_fits_the_base(component: str, tmp_path: Path) -> None:
    for manifest in with_component(component, tmp_path):
        check(manifest, VERSIONS[-1])


def test_the_check_finds_what_is_wrong() -> None:
    monitor = yaml.safe_load((KUBERNETES / "base" / "monitor.yaml").read_text())
    monitor["spec"]["podMetricsEndpoints"][0]["prot"] = "ops"
    with pytest.raises(jsonschema.ValidationError, match="prot"):
        check(monitor, VERSIONS[0])
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        check({"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget"}, VERSIONS[0])


def test_names_and_labels_are_there_once() -> None:
    for overlay in OVERLAYS:
        names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered(overlay)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_stay_restricted_and_bounded(overlay: str) -> None:
    pod = pods(rendered(overlay))
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_checkov_finds_only_what_is_the_cluster_s_to_say(overlay: str, tmp_path: Path) -> None:
    """The namespace, the image's digest, and whether a tag may move in its registry."""
    checkov = shutil.which("checkov")
    if checkov is None:
        pytest.skip("checkov is not installed: pip install checkov, in an environment of its own on PATH")
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(yaml.safe_dump_all(rendered(overlay)))
    command = [checkov, "--file", manifests, "--framework", "kubernetes", "--output", "json", "--skip-download"]
    results = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout)["results"]
    assert len(results["passed_checks"]) > 80
    assert {check["check_id"] for check in results["failed_checks"]} == {"CKV_K8S_15", "CKV_K8S_21", "CKV_K8S_43"}


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_autoscaler_s_number_of_replicas_counts(overlay: str) -> None:
    assert "replicas" not in only(rendered(overlay), "Deployment")["spec"]


def test_autoscalers_agree() -> None:
    """The same bounds and behaviour; both have gauges or quotients of rates, and no counter alone."""
    hpa = only(rendered("cpu"), "HorizontalPodAutoscaler")["spec"]
    keda = yaml.safe_load((KUBERNETES / "components" / "keda" / "autoscaler.yaml").read_text())["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    rules = yaml.safe_load((KUBERNETES / "components" / "hpa" / "adapter.yaml").read_text())["rules"]["custom"]
    named = {metric["pods"]["metric"]["name"] for metric in hpa["metrics"]}
    assert {rule["name"]["as"] for rule in rules} == named
    for query in [rule["metricsQuery"] for rule in rules] + [
        trigger["metadata"]["query"] for trigger in keda["triggers"]
    ]:
        counters = re.findall(r"\w+_total", query)
        assert counters == re.findall(r"rate\((\w+_total)", query), "a counter only grows"


def test_a_gpu_is_asked_for() -> None:
    [container] = pods(rendered("gpu"))["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_dev_needs_no_operators() -> None:
    kinds = {manifest["kind"] for manifest in rendered("dev")}
    assert kinds == {"Deployment", "Service", "NetworkPolicy"}


def test_the_canary_is_apart_from_the_stable_pods() -> None:
    stable = only(rendered("cpu"), "Deployment")["spec"]["selector"]["matchLabels"]
    canary = only(rendered("canary"), "Deployment")["spec"]
    labels = canary["template"]["metadata"]["labels"]
    assert not stable.items() <= labels.items()
    for manifest in rendered("canary"):
        if manifest["kind"] == "Service":
            assert manifest["spec"]["selector"].items() <= labels.items()
    monitored = only(rendered("cpu"), "PodMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= labels.items(), "its metrics are what a trial is for"


def test_the_route_leads_to_both_services(tmp_path: Path) -> None:
    [rule] = only(with_component("canary", tmp_path), "HTTPRoute")["spec"]["rules"]
    services = {
        manifest["metadata"]["name"]
        for overlay in ("cpu", "canary")
        for manifest in rendered(overlay)
        if manifest["kind"] == "Service"
    }
    assert {backend["name"] for backend in rule["backendRefs"]} <= services
    assert {backend["port"] for backend in rule["backendRefs"]} == {ServeSettings().inference_port}
    assert sum(backend["weight"] for backend in rule["backendRefs"]) == 100


@pytest.mark.parametrize("component", ["models-volume", "models-object-store"])
def test_archives_are_mounted_where_the_image_looks(component: str, tmp_path: Path) -> None:
    pod = pods(with_component(component, tmp_path))
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["models"]["mountPath"] == "/models" and mounts["models"]["readOnly"] is True
    assert '"--store", "/models"' in (ROOT / "Dockerfile").read_text()
    assert "tmp" in mounts, "the list was added to, not replaced"


def test_the_fetching_container_is_of_the_same_image(tmp_path: Path) -> None:
    pod = pods(with_component("models-object-store", tmp_path))
    [fetching], [serving] = pod["initContainers"], pod["containers"]
    assert fetching["image"] == serving["image"] == f"segserve:{VERSION}"
    assert fetching["securityContext"] == serving["securityContext"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A folder over HTTP, as an object store answers."""
    (tmp_path / "store").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "store"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def fetch(url: str, listed: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "models.txt").write_text(listed)
    (folder / "models").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-I", FETCH, folder / "models.txt", folder / "models"],
        env={**os.environ, "STORE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_fetched_archives_are_those_that_were_listed(store: str, tmp_path: Path) -> None:
    (tmp_path / "store" / "a.mar").write_bytes(b"archive")
    digest = hashlib.sha256(b"archive").hexdigest()
    done = fetch(store, f"# from CI\n{digest}  a.mar\n", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"fetch: a.mar {digest}\n")
    assert {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()} == {"a.mar": b"archive"}


@pytest.mark.parametrize("is_chunked", [False, True], ids=["with a length", "in chunks"])
def test_a_download_that_ends_early_is_tried_again(tmp_path: Path, is_chunked: bool) -> None:
    class CutShort(QuietHandler):
        tries: ClassVar[int] = 0

        def do_GET(self) -> None:
            CutShort.tries += 1
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            body = b"archive" if CutShort.tries == 3 else b"arc"
            if is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + (b"0\r\n\r\n" if body == b"archive" else b""))
            else:
                self.send_header("Content-Length", "7")
                self.end_headers()
                self.wfile.write(body)
            self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), CutShort)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = hashlib.sha256(b"archive").hexdigest()
    done = fetch(f"http://127.0.0.1:{server.server_port}", f"{digest}  a+b.mar", tmp_path)
    server.shutdown()
    server.server_close()
    assert (done.returncode, done.stdout, CutShort.tries) == (0, f"fetch: a+b.mar {digest}\n", 3), done.stderr


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        (f"{'0' * 64}  a.mar", r"expected .*/a\.mar to have SHA-256 0{64}, but it has [0-9a-f]{64}"),
        (f"{'0' * 64}  ../a.mar", "expected line 1 of .* to be a SHA-256 and NAME.mar"),
        ("", "it names none"),
    ],
    ids=["another digest", "another folder", "nothing"],
)
def test_nothing_else_is_kept(store: str, tmp_path: Path, listed: str, complaint: str) -> None:
    (tmp_path / "store" / "a.mar").write_bytes(b"other")
    done = fetch(store, listed, tmp_path)
    assert done.returncode == 1
    assert re.search(complaint, done.stderr), done.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_the_page_s_overlays_render_with_a_registry_s_image() -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    [command] = re.findall(r"^(kubectl kustomize .*) \| kubectl apply -f -$", page, re.MULTILINE)
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, and `kubectl kustomize` with it")
    environment = {**os.environ, "REGISTRY": "registry.example/team"}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    images = [pods(tuple(yaml.safe_load_all(done.stdout)))["containers"][0]["image"]]
    assert images == [f"registry.example/team/segserve:{VERSION}"]


def test_the_page_names_every_overlay_and_component() -> None:
    named = set(re.findall(r"^\| (`[^|]+) \|", (ROOT / "deploy" / "README.md").read_text(), re.MULTILINE))
    assert {name.strip("`") for row in named for name in row.split(", ")} == {*OVERLAYS, *COMPONENTS}


def test_the_gateway_reads_what_its_component_mounts(tmp_path: Path) -> None:
    """Its arguments are the command's, its settings file is found where it is mounted, and the tokens beside it."""
    manifests = with_component("gateway", tmp_path)
    (container,) = pods(manifests)["containers"]
    option, file = container["args"]
    assert _parser().parse_args(["serve", option, file]).gateway == file
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "gateway")
    (volume,) = (volume for volume in pods(manifests)["volumes"] if volume["name"] == "gateway")
    (settings,) = (
        manifest["data"] for manifest in manifests if manifest["metadata"]["name"].startswith("segserve-gateway")
    )
    assert file == f"{mount['mountPath']}/gateway.toml"
    assert [list(source) for source in volume["projected"]["sources"]] == [["configMap"], ["secret"]]
    (tmp_path / "gateway.toml").write_text(settings["gateway.toml"])
    assert read_gateway(str(tmp_path / "gateway.toml")).tokens == tmp_path / "tokens"
