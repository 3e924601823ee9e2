"""What `bench.container` makes of manifests, and what it takes for broken."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench.container import NAME, Found, main, playable

KEPT = Found(
    ready_seconds=9.1,
    first_seconds=0.2,
    process={"Uid": "10001\t10001\t10001\t10001", "CapEff": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"},
    root_writable=False,
    healthy=True,
    before=Counter({200: 9}),
    after=Counter({200: 2, 503: 1, 0: 1}),
    median_seconds=0.3,
    stop_seconds=6.0,
    exit_code=0,
)

MANIFESTS = """
kind: Deployment
metadata: {name: segserve}
spec:
  template:
    spec:
      containers:
        - {name: segserve, image: segserve, ports: [{name: http, containerPort: 8080}]}
      volumes:
        - {name: tmp, emptyDir: {}}
        - name: gateway
          projected:
            sources:
              - configMap: {name: settings}
              - secret: {name: tokens}
---
kind: ConfigMap
metadata: {name: settings}
data: {gateway.toml: brownout_ms = 1000}
---
kind: Secret
metadata: {name: tokens}
data: {tokens: bGFiLnNlY3JldA==}
---
kind: Service
metadata: {name: segserve}
"""


def test_a_deployment_is_played_without_ports_and_with_its_files_in_a_folder(tmp_path: Path) -> None:
    pod = playable(MANIFESTS, folder=tmp_path)["spec"]["template"]["spec"]
    assert pod["containers"] == [{"name": "segserve", "image": "segserve"}]
    place = tmp_path / "gateway"
    folder = {"path": str(place), "type": "Directory"}
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}, {"name": "gateway", "hostPath": folder}]
    assert (place / "gateway.toml").read_text() == "brownout_ms = 1000"
    assert (place / "tokens").read_text() == "lab.secret"


def test_a_deployment_without_projected_volumes_keeps_its_own(tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(MANIFESTS))
    documents[0]["spec"]["template"]["spec"]["volumes"].pop()
    pod = playable(yaml.safe_dump_all(documents), folder=tmp_path)["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]


@pytest.fixture
def tool(tmp_path: Path) -> str:
    """Stands in for Docker: makes the container, cannot start it, and notes what it was asked."""
    script = tmp_path / "tool"
    script.write_text(
        f'#!/bin/sh\necho "$1" "$2" "$3" >> {tmp_path}/asked\n'
        '[ "$1" = run ] && echo "port is already allocated" >&2 && exit 125\nexit 0\n'
    )
    script.chmod(0o755)
    return str(script)


def test_a_container_that_was_made_but_not_started_is_removed(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", "--ask", "/x", "--tool", tool, "--out", str(tmp_path / "page.md")]) == 1
    assert "port is already allocated" in capsys.readouterr().err
    assert (tmp_path / "asked").read_text().splitlines() == ["run --detach --name", f"rm --force {NAME}"]


def test_mistakes_are_one_sentence(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--ask", "/x", "--out", str(tmp_path / "page.md")]
    assert main(["image", "--tool", "no-such-tool", *out]) == 1
    assert "No such file or directory: 'no-such-tool'" in capsys.readouterr().err
    (tmp_path / "service.yaml").write_text("kind: Service\n")
    assert main(["image", "--tool", tool, "--manifest", str(tmp_path / "service.yaml"), *out]) == 1
    assert "expected one Deployment in the manifests, but got 0: render one overlay" in capsys.readouterr().err


def test_kept_promises_are_not_named() -> None:
    assert KEPT.broken == []


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"process": {**KEPT.process, "Uid": "0\t0\t0\t0"}}, "the user is 10001"),
        ({"process": {**KEPT.process, "CapEff": "00000000a80425fb"}}, "there are no capabilities"),
        ({"process": {**KEPT.process, "NoNewPrivs": "0"}}, "no new privileges"),
        ({"process": {**KEPT.process, "Seccomp": "0"}}, "there is a seccomp filter"),
        ({"root_writable": True}, "the root is read-only"),
        ({"healthy": False}, "the health check passes"),
        ({"before": Counter({200: 9, 0: 1})}, "every request before the stop is answered"),
        ({"after": Counter({500: 1})}, "requests after it are answered or refused"),
        ({"exit_code": 137}, "the exit code is 0"),
    ],
)
def test_a_broken_promise_is_named(change: dict[str, object], promise: str) -> None:
    assert replace(KEPT, **change).broken == [promise]  # type: ignore[arg-type]
