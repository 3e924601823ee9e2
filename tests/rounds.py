"""Rounds as a model would make them, without a model: drawings, and masks that are wrong by a known amount."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from segserve.prediction import SegmentationPrediction
from segserve.spec import ClassSpec, Measure
from segserve.tta import entropy
from tests import conftest
from tests.conftest import random_image
from training.drawing import CLASS_NAMES, PALETTE, draw_sample
from training.flywheel.round import Entry, Round, RoundOrder
from training.flywheel.scores import image_scores
from training.flywheel.soft import SoftMask
from training.flywheel.triage import HeldOut, PixelRule, Selection, fit_thresholds
from training.layouts import Dataset, open_dataset
from training.metrics import confusion_matrix, image_miou

CLASSES = tuple(
    ClassSpec(id=index, name=name, color=color)
    for index, (name, color) in enumerate(zip(CLASS_NAMES, PALETTE, strict=True))
)


def prediction_of(truth_HW: NDArray[np.uint8], *, blur: float, rng: np.random.Generator) -> SegmentationPrediction:
    """What views of a blurred truth would say, the more blur the less sure."""
    import torch

    num_classes = len(CLASSES)
    one_hot_KHW = np.eye(num_classes)[truth_HW].transpose(2, 0, 1)
    views = []
    for _ in range(4):
        noise_KHW = gaussian_filter(rng.normal(size=one_hot_KHW.shape), (0, 4, 4)) * 2.5 * blur
        views.append(np.exp(5 * gaussian_filter(one_hot_KHW, (0, blur, blur)) + noise_KHW))
    probs_VKHW = np.stack([view / view.sum(axis=0) for view in views])
    probs_KHW = probs_VKHW.mean(axis=0)
    levels_KHW = np.round(255 * probs_KHW).astype(np.uint8)
    mask_HW = levels_KHW.argmax(axis=0).astype(np.uint8)
    disagreement_HW = (probs_VKHW.argmax(axis=1) != mask_HW).mean(axis=0)
    entropy_HW = entropy(torch.from_numpy(probs_KHW)).numpy()
    maps: dict[Measure, NDArray[np.uint8]] = {
        "entropy": np.round(255 * entropy_HW).astype(np.uint8),
        "mutual-information": np.round(64 * disagreement_HW).astype(np.uint8),
        "disagreement": np.round(255 * disagreement_HW).astype(np.uint8),
    }
    assert set(maps) == set(get_args(Measure))
    return SegmentationPrediction(
        mask_HW=mask_HW,
        confidence_HW=levels_KHW.max(axis=0),
        uncertainty_HW=maps,
        probs_KHW=levels_KHW,
        mean_entropy=float(entropy_HW.mean()),
        mutual_information=float(disagreement_HW.mean() / 4),
        view_agreement=float(1 - disagreement_HW.mean()),
        windows=1,
    )


def made_round(path: Path, *, count: int, side: int = 64, seed: int = 0) -> tuple[Round, dict[str, NDArray[np.uint8]]]:
    """A finished round of `count` drawings, and the truth of each by its name."""
    rng = np.random.default_rng(seed)
    found, truths, seen, outside = Round(path), dict[str, NDArray[np.uint8]](), [], path.parent / f"{path.name}-images"
    outside.mkdir(parents=True)
    for index in range(count):
        image_HWC, truth_HW = draw_sample(rng, side=side)
        Image.fromarray(image_HWC).save(outside / f"drawing-{index:03d}.png")
        prediction = prediction_of(truth_HW, blur=0.5 + 2.5 * rng.random(), rng=rng)
        confusion_KK = confusion_matrix(truth_HW, prediction.mask_HW, num_classes=len(CLASSES))
        seen.append((prediction, HeldOut(scores=image_scores(prediction), iou=image_miou(confusion_KK))))
        truths[f"drawing-{index:03d}"] = truth_HW
    selection = Selection()
    thresholds = fit_thresholds([each for _, each in seen], selection)
    order = RoundOrder(
        number=1,
        artifact="a" * 64,
        model="drawings",
        images=str(outside),
        plan="d4",
        pixels=PixelRule(border=1),
        selection=selection,
        thresholds=thresholds,
        classes=CLASSES,
    )
    found.begin(order)
    for name, (prediction, each) in zip(truths, seen, strict=True):
        SoftMask.of(prediction, scale=1.0).write(found.soft(name))
        entry = Entry(
            name=name,
            file=f"{name}.png",
            artifact=order.artifact,
            round=1,
            scores=each.scores,
            verdict=thresholds.verdict(each.scores[thresholds.score]),
        )
        found.place(entry, image=outside / f"{name}.png")
        found.append([entry])
    return found, truths


def held_out_set(root: Path) -> Dataset:
    """Two training and eight held-out images of noise, for the tiny artifact's classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 8)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            image = Image.fromarray(random_image(40, 48, seed=100 + index + 50 * (split == "val")))
            image.save(root / f"images/{split}/{index}.png")
            mask_HW = rng.choice([0, 1, 2, 3, 9], (40, 48)).astype(np.uint8)
            Image.fromarray(mask_HW).save(root / f"masks/{split}/{index}.png")
    classes = [{"id": entry.id, "name": entry.name} for entry in conftest.CLASSES]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 9}))
    return open_dataset(root, "segmentation")


def files_of(root: Path) -> dict[str, bytes]:
    """Of npz files the arrays: the archive's bytes hold the time."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                content = b"".join(arrays[name].tobytes() for name in sorted(arrays.files))
        found[path.relative_to(root).as_posix()] = content
    return found
