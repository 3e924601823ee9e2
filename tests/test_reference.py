from pathlib import Path

import numpy as np
import pytest

from segserve.prediction import Query
from segserve.predictor import build_predictor
from segserve.spec import ModelSpec
from tests.conftest import ToyEngine, expected_probs
from training import reference
from training.data import read_for, read_image
from training.layouts import Dataset, open_dataset
from training.reference import measure_reference
from training.synthetic import write_segmentation_set


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("reference") / "data"
    write_segmentation_set(root, seed=0, num_train=1, num_val=5, side=64)
    return open_dataset(root, "segmentation")


def images(dataset: Dataset) -> list[np.ndarray]:
    return [read_image(Path(sample.image)) for sample in dataset.split("val")]


def test_shares_are_those_of_a_toy_whose_answers_are_known(spec: ModelSpec, dataset: Dataset) -> None:
    """Images of the working size are not resized, so that the formula holds for each pixel."""
    probs_NK = np.concatenate([expected_probs(image, spec).reshape(-1, 4) for image in images(dataset)])
    expected_K = np.bincount(probs_NK.argmax(axis=1), minlength=4) / len(probs_NK)
    found = measure_reference(spec, ToyEngine(), dataset)
    assert found.num_images == 5 and found.split == "val"
    assert found.class_shares == pytest.approx(expected_K, abs=1e-3)
    assert sum(found.class_shares) == pytest.approx(1) and sum(found.confidence_shares.values()) == pytest.approx(1)


def test_images_fall_into_the_bins_of_their_mean_confidence(spec: ModelSpec, dataset: Dataset) -> None:
    bounds = np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 1])
    predictor = build_predictor(spec, ToyEngine())
    confidences = [
        predictor.predict([Query(image_HWC=image)])[0].confidence_HW.mean() / 255  # type: ignore[union-attr]
        for image in images(dataset)
    ]
    expected = [sum(np.searchsorted(bounds, confidences) == place) / 5 for place in range(len(bounds))]
    assert list(measure_reference(spec, ToyEngine(), dataset).confidence_shares.values()) == expected


def test_of_a_large_split_some_at_even_distances(
    spec: ModelSpec, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MOST_IMAGES", 3)
    asked: list[Path] = []
    monkeypatch.setattr(reference, "read_for", lambda spec, path: asked.append(path) or read_for(spec, path))
    assert measure_reference(spec, ToyEngine(), dataset).num_images == 3
    assert asked == [dataset.split("val")[index].image for index in (0, 2, 4)]
