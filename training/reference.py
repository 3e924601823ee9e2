"""The distribution of a model's answers on held-out images, for the service to be compared with."""

import numpy as np

from segserve.drift import BINS, bin_of, summary
from segserve.prediction import Query
from segserve.predictor import Engine, build_predictor
from segserve.spec import ModelSpec, ReferenceSpec
from training.data import read_for
from training.layouts import Dataset

SPLIT = "val"
MOST_IMAGES = 200
"""Of a larger split, so many at even distances."""


def measure_reference(spec: ModelSpec, engine: Engine, dataset: Dataset) -> ReferenceSpec:
    """Answer images of val as the service would, one by one, and keep the shares of classes and confidences.

    Raises:
        ValueError: there is no such split, or an image cannot be read.
    """
    samples = dataset.split(SPLIT)
    predictor = build_predictor(spec, engine)
    counts_K = np.zeros(spec.num_classes, dtype=np.int64)
    images = dict.fromkeys(BINS, 0)
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), MOST_IMAGES)).round().astype(int)
    for index in chosen:
        decoded = read_for(spec.preprocess, samples[index].image)
        prediction = predictor.predict([Query(image_HWC=decoded.image_HWC, sent_size=decoded.sent_size)])[0]
        counted = summary(prediction, num_classes=spec.num_classes)
        counts_K += counted.counts_K
        images[bin_of(counted.confidence)] += 1
    return ReferenceSpec(
        split=SPLIT,
        num_images=len(chosen),
        class_shares=tuple(float(share) for share in counts_K / counts_K.sum()),
        confidence_shares={entry: count / len(chosen) for entry, count in images.items()},
    )
