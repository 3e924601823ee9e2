"""The SBOM is what requirements.lock says: the same versions, and no file that it does not know."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deploy import sbom as module

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
OFFLINE = ("dns error", "failed to fetch", "tcp connect", "network", "not found in the registry")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    try:
        return module.sbom()
    except RuntimeError as error:
        if any(sign in str(error).lower() for sign in OFFLINE):
            pytest.skip(f"the package index cannot be asked here: {error}")
        raise


def purls(document: dict[str, Any]) -> set[str]:
    return {component["purl"] for component in document["components"]}


def test_it_has_the_packages_that_serve_in_the_versions_of_the_lock(document: dict[str, Any]) -> None:
    pinned = {f"pkg:pypi/{pin.replace('==', '@')}" for pin in re.findall(r"^[\w.-]+==[^\s;]+", LOCK, re.MULTILINE)}
    assert purls(document) < pinned
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split("[<>=]", name)[0] for name in asked} <= {found["name"] for found in document["components"]}
    assert not [purl for purl in purls(document) if "pytest" in purl]


def test_every_file_has_a_digest_of_the_lock(document: dict[str, Any]) -> None:
    known = set(re.findall(r"sha256:([0-9a-f]{64})", LOCK))
    for component in document["components"]:
        files = component["externalReferences"]
        digests = {found["content"] for file in files for found in file["hashes"] if found["alg"] == "SHA-256"}
        assert digests and digests <= known, component["name"]


def test_it_is_cyclonedx_and_knows_what_needs_what(document: dict[str, Any]) -> None:
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["component"]["name"] == "segserve"
    needs = {entry["ref"].split("-")[0]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    assert any("torch" in ref for ref in needs["torchvision"])


def test_make_writes_it_with_the_packages_of_an_extra(document: dict[str, Any], tmp_path: Path) -> None:
    command = re.search(r"^sbom: .*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command
    line = command[1].replace("$(BIN)", str(ROOT / ".venv/bin")).replace("build/", f"{tmp_path}/")
    subprocess.run(f"{line} openvino", shell=True, cwd=ROOT, check=True)
    written = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert {purl.split("@")[0] for purl in purls(written) - purls(document)} >= {"pkg:pypi/openvino"}


def test_what_uv_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pins", lambda: ["torch==0.0.1"])
    with pytest.raises(RuntimeError, match="expected `uv lock` to work, but it says: "):
        module.sbom()
