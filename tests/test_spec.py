import json
from typing import Any

import pytest
from pydantic import ValidationError

from segserve.settings import explain
from segserve.spec import ModelSpec, Sizing

GOLDEN = {
    "schema_version": 1,
    "name": "streets",
    "task": "segmentation",
    "network": {
        "architecture": "unet",
        "encoder": "resnet50",
        "encoder_weights": "torchvision:ResNet50_Weights.IMAGENET1K_V2",
    },
    "classes": [
        {"id": 0, "name": "sky", "color": [70, 130, 180]},
        {"id": 1, "name": "road", "color": [128, 64, 128]},
    ],
    "ignore_index": 11,
    "preprocess": {
        "resize": "always",
        "working_side": 512,
        "overlap": 0,
        "scaled_jpeg": False,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "calibration": {"temperature": 1.0, "split": None},
    "reference": None,
    "serving": {
        "batch_size": 8,
        "max_batch_delay_ms": 5,
        "workers": 1,
        "max_seconds": 100,
        "engine": "auto",
        "threads": None,
        "cuda_graphs": False,
    },
    "provenance": {
        "data_digest": "d1",
        "recipe": {"epochs": 3, "loss": {"dice": 0.5}},
        "commit": "c0ffee",
        "seed": 7,
        "scores": {"miou": 0.5},
        "selected_on": None,
    },
    "weights_sha256": "e3b0",
    "engine": {
        "name": "openvino-int8",
        "files": {"model.xml": "a1", "model.bin": "b2"},
        "least_side": 1,
        "certificate": {
            "split": "val",
            "num_images": 20,
            "score": "miou",
            "torch_score": 0.71,
            "engine_score": 0.708,
            "agreement": 0.995,
            "max_probability_shift": 0.12,
            "torch_images_per_second": 8.0,
            "engine_images_per_second": 32.0,
            "machine": "EPYC, 2 threads",
            "date": "2026-11-24",
        },
    },
}
"""What is on disk beside weights that people keep: a change here needs a new schema version."""


def changed(path: str, value: object) -> dict[str, Any]:
    document = json.loads(json.dumps(GOLDEN))
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place[parent]
    place[last] = value
    return document


def test_the_spec_on_disk_has_not_moved() -> None:
    assert json.loads(ModelSpec.model_validate(GOLDEN).model_dump_json()) == GOLDEN


def test_a_spec_survives_its_json() -> None:
    spec = ModelSpec.model_validate(GOLDEN)
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_what_may_be_left_out() -> None:
    short = {name: GOLDEN[name] for name in ("name", "task", "classes", "provenance")}
    preprocess = {
        name: value for name, value in GOLDEN["preprocess"].items() if name in ("working_side", "mean", "std")
    }
    spec = ModelSpec.model_validate({**short, "network": {}, "preprocess": preprocess})
    assert spec.model_dump(mode="json") == {
        **GOLDEN,
        "network": {"architecture": None, "encoder": "resnet50", "encoder_weights": "none"},
        "ignore_index": None,
        "weights_sha256": "",
        "engine": None,
    }


def test_classes_by_number_and_name() -> None:
    spec = ModelSpec.model_validate(GOLDEN)
    assert (spec.num_classes, spec.class_names) == (2, ("sky", "road"))


@pytest.mark.parametrize("part", ["", "network", "preprocess", "serving", "provenance", "classes"])
def test_every_part_is_frozen(part: str) -> None:
    spec = ModelSpec.model_validate(GOLDEN)
    target = spec if not part else spec.classes[0] if part == "classes" else getattr(spec, part)
    name = next(iter(type(target).model_fields))
    with pytest.raises(ValidationError, match="Instance is frozen"):
        setattr(target, name, getattr(target, name))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("colour", 1, "'colour' is not a known key: remove it or correct its spelling"),
        ("network.depth", 5, "'network.depth' is not a known key"),
        ("classes.0.colour", 5, "'classes.0.colour' is not a known key"),
        ("preprocess.size", 5, "'preprocess.size' is not a known key"),
        ("serving.gpus", 5, "'serving.gpus' is not a known key"),
        ("provenance.author", 5, "'provenance.author' is not a known key"),
        ("schema_version", 2, "expected 'schema_version' to be 1, but got 2"),
        ("name", "a/b", "expected 'name' to match ^[A-Za-z0-9]"),
        ("name", "../a", "expected 'name' to match ^[A-Za-z0-9]"),
        ("name", "", "expected 'name' to match ^[A-Za-z0-9]"),
        ("task", "detection", "expected 'task' to be 'segmentation' or 'classification', but got 'detection'"),
        ("network.encoder", "vgg16", "an encoder of unet, resnet18, resnet34"),
        ("network.architecture", "classifier", "for segmentation to be unet or fcn or deeplabv3 or lraspp, but got c"),
        ("preprocess.resize", "no", "expected 'preprocess.resize' to be 'always', 'larger' or 'never', but got 'no'"),
        ("preprocess.overlap", 64, "expected overlap only with resize = 'never', but resize is 'always': remove it"),
        ("calibration.temperature", 0, "expected 'calibration.temperature' to be greater than 0, but got 0"),
        ("calibration.t", 1, "'calibration.t' is not a known key"),
        ("preprocess.working_side", 31, "expected 'preprocess.working_side' to be greater than or equal to 32"),
        ("classes.1.id", 2, "expected class ids 0 to 1 in order, but got [0, 2]"),
        ("classes.0.id", -1, "expected 'classes.0.id' to be greater than or equal to 0, but got -1"),
        ("classes.1.name", "sky", "expected class names that differ, but got ['sky', 'sky']"),
        ("classes.1.color", [0, 0, 256], "expected three values from 0 to 255, but got [0, 0, 256]"),
        ("classes", [GOLDEN["classes"][0]], "at least 2"),
        ("classes", [{"id": i, "name": str(i), "color": [0, 0, 0]} for i in range(256)], "at most 255"),
        ("serving.batch_size", 0, "expected 'serving.batch_size' to be greater than or equal to 1, but got 0"),
        ("serving.engine", "tensorrt", "to be 'auto', 'torch', 'openvino' or 'openvino-int8', but got 'tensorrt'"),
        ("serving.threads", 0, "expected 'serving.threads' to be greater than or equal to 1, but got 0"),
        ("engine.name", "torch", "expected 'engine.name' to be 'openvino' or 'openvino-int8', but got 'torch'"),
        ("engine.files", {}, "'engine.files'"),
        ("engine.files", {"../weights.bin": "a1"}, "expected plain file names, but got ['../weights.bin']"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_reason(path: str, value: object, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate(changed(path, value))
    assert words in explain(caught.value)


def test_255_classes_are_the_most() -> None:
    classes = [{"id": index, "name": str(index), "color": [0, 0, 0]} for index in range(255)]
    assert ModelSpec.model_validate(changed("classes", classes)).num_classes == 255


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deviation_that_cannot_be_divided_by_is_refused(value: float) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate(changed("preprocess.std", [0.2, value, 0.2]))
    assert "preprocess.std.1" in explain(caught.value)


def test_a_spec_from_before_windows_calibration_and_engines_means_what_it_meant() -> None:
    old = changed("engine", None)
    new = ModelSpec.model_validate(old)
    del (
        old["calibration"],
        old["preprocess"]["overlap"],
        old["preprocess"]["scaled_jpeg"],
        old["serving"]["max_seconds"],
    )
    del (
        old["provenance"]["selected_on"],
        old["engine"],
        old["reference"],
        old["serving"]["engine"],
        old["serving"]["threads"],
        old["serving"]["cuda_graphs"],
    )
    assert ModelSpec.model_validate(old) == new


def test_a_certificate_says_what_was_lost_and_gained() -> None:
    engine = ModelSpec.model_validate(GOLDEN).engine
    assert engine is not None
    assert engine.certificate.sentence() == (
        "miou 0.7080 (torch 0.7100), agreement 99.50%, probabilities within 0.120, 20 images of val; "
        "32.0 images/s, 4.00 times torch's (EPYC, 2 threads, 2026-11-24)"
    )


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_spec_from_before_architectures_is_still_one(task: str) -> None:
    """Its network is built as it was: see `segserve.networks.build_network`."""
    old = changed("task", task)
    del old["network"]["architecture"]
    assert ModelSpec.model_validate(old).network.architecture is None


@pytest.mark.parametrize(("side", "most"), [(512, 256), (65, 32), (64, 32), (63, 31), (40, 8), (32, 0)])
def test_windows_overlap_by_half_at_most_and_move_on_by_the_stride_at_least(side: int, most: int) -> None:
    sizing = {"resize": "never", "working_side": side}
    assert Sizing.model_validate({**sizing, "overlap": most}).overlap == most
    with pytest.raises(ValidationError) as caught:
        Sizing.model_validate({**sizing, "overlap": most + 1})
    assert f"and 32 pixels less than it, {most}, but got {most + 1}: lower it" in explain(caught.value)


def test_a_classifier_sees_whole_images() -> None:
    document = changed("preprocess.resize", "never")
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate({**document, "task": "classification"})
    assert "expected preprocess.resize 'always' or 'larger' for classification, but got 'never'" in explain(
        caught.value
    )
