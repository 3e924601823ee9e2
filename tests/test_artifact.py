import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from segserve.artifact import Artifact, ExampleMismatch, check_example, load_artifact, save_artifact
from segserve.engines.torch_engine import TorchEngine
from segserve.networks import build_network
from segserve.predictor import Predictor, build_predictor
from segserve.spec import ModelSpec
from tests.conftest import random_image


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def copied(artifact: Artifact, path: Path) -> Path:
    for name, content in files(artifact.path).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def change_spec(path: Path, **changes: Any) -> None:
    document = json.loads((path / "spec.json").read_text())
    (path / "spec.json").write_text(json.dumps({**document, **changes}))


def predictor_of(artifact: Artifact) -> Predictor:
    return build_predictor(artifact.spec, TorchEngine(artifact.network))


def save_fresh(path: Path, spec: ModelSpec, *, num_classes: int = 4) -> Artifact:
    network = build_network(spec.network, task=spec.task, num_classes=num_classes)
    return save_artifact(path, spec, network, example_HWC=random_image(20, 30))


@pytest.mark.parametrize(("fixture", "example"), [("artifact", "mask.png"), ("labels_artifact", "labels.json")])
def test_an_artifact_holds_these_files_and_no_pickle(
    fixture: str, example: str, request: pytest.FixtureRequest
) -> None:
    found = files(request.getfixturevalue(fixture).path)
    assert set(found) == {"spec.json", "weights.safetensors", "example/input.png", f"example/{example}"}
    assert not [name for name, content in found.items() if content[:2] in (b"\x80\x02", b"\x80\x04", b"PK")]
    json.loads(found["spec.json"])


def test_save_and_load_round_trip(tmp_path: Path, spec: ModelSpec) -> None:
    network = build_network(spec.network, task=spec.task, num_classes=4).eval()
    saved = save_artifact(tmp_path / "new/artifact", spec, network, example_HWC=random_image(20, 30))
    loaded = load_artifact(tmp_path / "new/artifact")
    assert loaded.digest == saved.digest == hashlib.sha256((saved.path / "spec.json").read_bytes()).hexdigest()
    assert loaded.spec == saved.spec
    assert loaded.spec.model_copy(update={"weights_sha256": ""}) == spec
    state = loaded.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_the_weights_are_safetensors_of_the_digest_the_spec_names(artifact: Artifact) -> None:
    weights = artifact.path / "weights.safetensors"
    assert artifact.spec.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    with safe_open(weights, framework="pt") as file:
        assert set(file.keys()) == set(artifact.network.state_dict())


def test_the_example_is_what_the_predictor_says_of_its_input(artifact: Artifact) -> None:
    image_HWC = np.asarray(Image.open(artifact.path / "example/input.png"))
    mask = Image.open(artifact.path / "example/mask.png")
    np.testing.assert_array_equal(image_HWC, random_image(48, 64))
    assert (mask.mode, mask.size) == ("P", (64, 48))
    assert len(set(np.asarray(mask).ravel())) > 1  # else the check below it could not fail


@pytest.mark.parametrize("fixture", ["artifact", "labels_artifact"])
def test_the_example_comes_out_again(fixture: str, request: pytest.FixtureRequest) -> None:
    artifact = request.getfixturevalue(fixture)
    assert check_example(artifact, predictor_of(artifact)) >= 0.995


@pytest.mark.parametrize(("fixture", "least"), [("artifact", 0.995), ("labels_artifact", 0.95)])
def test_other_weights_do_not_reproduce_the_example(
    fixture: str, least: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = copied(request.getfixturevalue(fixture), tmp_path / "artifact")
    tensors = load_file(path / "weights.safetensors")
    tensors["head.weight"] = -3 * tensors["head.weight"]
    save_file(tensors, path / "weights.safetensors")
    change_spec(path, weights_sha256=hashlib.sha256((path / "weights.safetensors").read_bytes()).hexdigest())
    perturbed = load_artifact(path)
    words = (
        rf"expected the worked example of tiny-.* to come out as stored \(agreement of {least} at least\), but it is"
    )
    with pytest.raises(ExampleMismatch, match=words):
        check_example(perturbed, predictor_of(perturbed))


@pytest.mark.parametrize(("wrong", "holds"), [(0, True), (15, True), (16, False)])
def test_the_example_holds_from_995_of_1000_pixels(wrong: int, holds: bool, artifact: Artifact, tmp_path: Path) -> None:
    """Of 48 x 64 pixels, 15 are 0.488 % and 16 are 0.521 %."""
    path = copied(artifact, tmp_path / "artifact")
    mask_HW = np.array(Image.open(path / "example/mask.png"))
    mask_HW.flat[:wrong] = (mask_HW.flat[:wrong] + 1) % 4
    Image.fromarray(mask_HW).save(path / "example/mask.png")
    loaded = load_artifact(path)
    if holds:
        assert check_example(loaded, predictor_of(loaded)) == pytest.approx(1 - wrong / 3072)
    else:
        with pytest.raises(ExampleMismatch, match=r"but it is 0\.9948"):
            check_example(loaded, predictor_of(loaded))


@pytest.mark.parametrize("size", [(10, 10), (64, 48), (1, 1), (1, 64)])
def test_an_example_of_another_size_is_a_mismatch(size: tuple[int, int], artifact: Artifact, tmp_path: Path) -> None:
    path = copied(artifact, tmp_path / "artifact")
    Image.fromarray(np.zeros(size, dtype=np.uint8)).save(path / "example/mask.png")
    loaded = load_artifact(path)
    with pytest.raises(ExampleMismatch, match="expected the worked example"):
        check_example(loaded, predictor_of(loaded))


def test_labels_of_other_classes_are_a_mismatch(labels_artifact: Artifact, tmp_path: Path) -> None:
    path = copied(labels_artifact, tmp_path / "artifact")
    (path / "example/labels.json").write_text("[0.5]")
    loaded = load_artifact(path)
    with pytest.raises(ExampleMismatch, match="expected the worked example"):
        check_example(loaded, predictor_of(loaded))


def test_a_network_that_gives_no_numbers_reproduces_nothing(labels_artifact: Artifact) -> None:
    loaded = load_artifact(labels_artifact.path)
    torch.nn.init.constant_(loaded.network.head.bias, torch.nan)
    with pytest.raises(RuntimeError, match="but got NaN or infinity"):
        check_example(loaded, predictor_of(loaded))


def test_weights_of_another_digest_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    path = copied(artifact, tmp_path / "artifact")
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    words = rf"expected .*weights\.safetensors to have SHA-256 {artifact.spec.weights_sha256}, but it has .*export"
    with pytest.raises(ValueError, match=words):
        load_artifact(path)


def test_missing_weights_are_named(artifact: Artifact, tmp_path: Path) -> None:
    path = copied(artifact, tmp_path / "artifact")
    (path / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected the artifact's weights, but .*weights\.safetensors is missing"):
        load_artifact(path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_what_is_no_artifact_is_refused(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "thing")
    with pytest.raises(ValueError, match=r"expected an artifact, but .*thing has no spec\.json: make one with"):
        load_artifact(tmp_path / "thing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, r"spec\.json: 'colour' is not a known key: remove it"),
        ({"schema_version": 2}, r"spec\.json: expected 'schema_version' to be 1, but got 2"),
        (
            {"classes": [{"id": index, "name": str(index), "color": [0, 0, 0]} for index in (0, 2)]},
            r"spec\.json: expected class ids 0 to 1 in order, but got \[0, 2\]",
        ),
        (
            {"classes": [{"id": index, "name": str(index), "color": [0, 0, 0]} for index in range(3)]},
            r"expected .*weights\.safetensors to fit resnet18, but it does not: .*head",
        ),
        ({"network": {"encoder": "resnet34"}}, r"expected .*weights\.safetensors to fit resnet34, but it does not"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_reason(
    changes: dict[str, Any], words: str, artifact: Artifact, tmp_path: Path
) -> None:
    path = copied(artifact, tmp_path / "artifact")
    change_spec(path, **changes)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        load_artifact(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_spec_that_is_no_json_is_refused(content: bytes, artifact: Artifact, tmp_path: Path) -> None:
    path = copied(artifact, tmp_path / "artifact")
    (path / "spec.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"spec\.json: expected"):
        load_artifact(path)


def test_nothing_is_left_when_saving_fails(tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Predictor:
        raise RuntimeError("the example fails")

    monkeypatch.setattr("segserve.artifact.build_predictor", fails)
    with pytest.raises(RuntimeError, match="the example fails"):
        save_fresh(tmp_path / "artifact", spec)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_stays_when_its_replacement_fails(artifact: Artifact, tmp_path: Path, spec: ModelSpec) -> None:
    path = copied(artifact, tmp_path / "artifact")
    before = files(path)
    with pytest.raises(ValueError, match=r"expected .*weights\.safetensors to fit resnet18"):
        save_fresh(path, spec, num_classes=5)
    assert files(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_artifact_is_replaced_whole(artifact: Artifact, tmp_path: Path, spec: ModelSpec) -> None:
    path = copied(artifact, tmp_path / "artifact")
    (path / "notes.txt").touch()
    replaced = save_fresh(path, spec.model_copy(update={"name": "newer"}))
    assert load_artifact(path).spec.name == "newer"
    assert load_artifact(path).digest == replaced.digest != artifact.digest
    assert not (path / "notes.txt").exists()
    assert list(tmp_path.iterdir()) == [path]


def test_an_artifact_is_replaced_from_within_its_own_folder(
    artifact: Artifact, tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(artifact, tmp_path / "artifact")
    monkeypatch.chdir(path)
    save_fresh(Path(), spec.model_copy(update={"name": "newer"}))
    assert load_artifact(path).spec.name == "newer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_an_artifact_stays_one(artifact: Artifact, tmp_path: Path, spec: ModelSpec) -> None:
    path, link = copied(artifact, tmp_path / "elsewhere/artifact"), tmp_path / "current"
    link.symlink_to(path)
    save_fresh(link, spec.model_copy(update={"name": "newer"}))
    assert link.readlink() == path
    assert load_artifact(path).spec.name == "newer"


def test_an_interruption_while_the_old_artifact_is_deleted_loses_neither(
    artifact: Artifact, tmp_path: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, **_: object) -> None:
        (folder / "spec.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    path = copied(artifact, tmp_path / "artifact")
    monkeypatch.setattr("segserve.artifact.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_fresh(path, spec.model_copy(update={"name": "newer"}))
    assert load_artifact(path).spec.name == "newer"


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: (path.mkdir(), (path / "a").touch())])
def test_anything_else_is_never_overwritten(make: Any, tmp_path: Path, spec: ModelSpec) -> None:
    make(tmp_path / "precious")
    with pytest.raises(ValueError, match=r"expected .*precious to be an artifact or not to exist.*choose another"):
        save_fresh(tmp_path / "precious", spec)
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious"]
