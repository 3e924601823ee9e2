"""Turn a finished run into an artifact, and give an artifact an engine.

Dimensions: N pixels or images, K classes, H, W.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from segserve.artifact import (
    ENGINE_FOLDER,
    Artifact,
    check_example,
    load_artifact,
    replaced_folder,
    save_artifact,
    write_example_answer,
    write_spec,
)
from segserve.digest import sha256_of
from segserve.engines.torch_engine import TorchEngine, best_device
from segserve.networks import build_network, served_weights
from segserve.prediction import Query, SegmentationPrediction
from segserve.predictor import Engine, build_predictor
from segserve.spec import CalibrationSpec, EngineName, EngineSpec, ModelSpec
from training.calibration import ProbabilityScores, cross_fitted, fit_temperature, joined, probability_scores
from training.config import Recipe, recipe_of
from training.data import IGNORE, check_truth, data_digest, load_sample, read_image
from training.evaluation import Evaluation
from training.flywheel.joined import with_round
from training.layouts import Dataset, open_dataset
from training.learner import TRAINED_ON
from training.reference import measure_reference
from training.run import EXAMPLE, SCORES, Run

Engines = Literal["torch", EngineName]

FITTED_ON = "val"
MOST_PIXELS = 20_000
"""Of one image; those around them say much the same."""
READ_AT = 4.0
"""Temperature at which logits are read from probabilities: float16 then holds differences of up to 66."""
LEAST_FLOAT16 = 2.0**-24


def export_run(run_dir: Path, out: Path, *, calibrate: bool = True, engine: Engines = "torch") -> Artifact:
    """Write the artifact of a run: its resulting weights, the spec with the val scores, an image of val as the example.

    Args:
        run_dir: a folder that `segserve train` has finished.
        out: the artifact's folder; an artifact that is there already is replaced.
        calibrate: fit the temperature on the val split, and keep how its images are answered as the reference. Where
            the data set is not there any more, or has changed, the temperature stays 1, and stderr says so.
        engine: to build, beside torch.

    Raises:
        ValueError: the run is not there or not finished, or `out` is something else than an artifact; or what
            `add_engine` raises.
    """
    run = Run(run_dir)
    recipe, checkpoint = run.recipe(), run.load()
    if checkpoint is None or not run.is_finished:
        raise ValueError(f"expected a finished run, but {run_dir} is not: go on with `segserve train`")
    evaluation = Evaluation.model_validate_json((run_dir / SCORES).read_bytes())
    spec = with_scores(
        checkpoint.spec, {f"{evaluation.split}_{key}": score for key, score in evaluation.scores.items()}
    )
    network = build_network(spec.network, task=recipe.task, num_classes=spec.num_classes)
    network.load_state_dict(served_weights(checkpoint.result))
    if calibrate:
        try:
            dataset = _dataset_of(recipe, spec, purpose="fit it on")
        except ValueError as error:
            _say_stays(str(error))
        else:
            torch_engine = TorchEngine(network, device=best_device())
            spec = calibrated(spec, torch_engine, dataset)
            spec = spec.model_copy(update={"reference": measure_reference(spec, torch_engine, dataset)})
    example_HWC = read_image(run_dir / EXAMPLE)
    if engine == "torch":
        return save_artifact(out, spec, network, example_HWC=example_HWC)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        plain = save_artifact(Path(folder) / "artifact", spec, network, example_HWC=example_HWC)
        return add_engine(plain, out, engine=engine)


def add_engine(artifact: Artifact, out: Path, *, engine: EngineName) -> Artifact:
    """Write an artifact anew with an engine built from its weights, and with the certificate of what that changes.

    Args:
        artifact: what to start from; an engine that it has already is left out.
        out: the artifact's folder, which may be the same; an artifact that is there already is replaced.
        engine: which.

    Raises:
        ValueError: packages are missing, the data set is not that of the run any more, or the network cannot be
            converted; nothing is written then.
        training.certificate.EngineRefused: the engine loses too much; nothing is written either.
    """
    _check_installed(engine)
    # The packages are optional.
    from segserve.engines.openvino_engine import OpenVINOEngine
    from training.certificate import certify, refuse_losses
    from training.openvino_model import CalibrationImages, write_model

    spec = artifact.spec
    recipe = recipe_of(spec)
    dataset = _dataset_of(recipe, spec, purpose=f"measure {engine} on")
    with replaced_folder(out) as folder:
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ENGINE_FOLDER))
        model = folder / ENGINE_FOLDER / "model.xml"
        model.parent.mkdir()
        least_side = write_model(model, artifact.network, engine, CalibrationImages(dataset, spec))
        exported = OpenVINOEngine(model, name=engine, least_side=least_side)
        certificate = certify(spec, artifact.network, exported, dataset)
        refuse_losses(certificate, name=engine)
        files = {file.name: sha256_of(file) for file in sorted(model.parent.iterdir())}
        written = EngineSpec(name=engine, files=files, least_side=least_side, certificate=certificate)
        write_spec(folder, spec.model_copy(update={"engine": written}))
        predictor = build_predictor(spec, exported)
        write_example_answer(folder, predictor)
        result = load_artifact(folder)
        check_example(result, predictor)
    return replace(result, path=out)


def _check_installed(engine: EngineName) -> None:
    for package in ("openvino", "nncf") if engine == "openvino-int8" else ("openvino",):
        if find_spec(package) is None:
            raise ValueError(
                f"expected the package {package} to build {engine}, but it is not installed: "
                "`pip install segserve[openvino-export]`"
            )


def with_scores(spec: ModelSpec, scores: dict[str, float]) -> ModelSpec:
    """The spec with further scores in its provenance: `val_miou` and so on."""
    provenance = spec.provenance
    return spec.model_copy(
        update={"provenance": provenance.model_copy(update={"scores": {**provenance.scores, **scores}})}
    )


def _dataset_of(recipe: Recipe, spec: ModelSpec, *, purpose: str) -> Dataset:
    """The data set the run was made with; a ValueError says why it cannot be had."""
    root = recipe.data.root
    if not root.is_dir():
        raise ValueError(f"expected the run's data set at {root} to {purpose}, but there is none: export where it is")
    dataset = open_dataset(root, recipe.task, layout=recipe.data.layout)
    if recipe.pseudo is not None:
        dataset = with_round(dataset, recipe.pseudo.round)
    if data_digest(dataset, TRAINED_ON) != spec.provenance.data_digest:
        raise ValueError(f"expected the run's data set at {root} to {purpose}, but it has changed: bring it back")
    dataset.split(FITTED_ON)  # whole, or a ValueError
    return dataset


def calibrated(spec: ModelSpec, engine: Engine, dataset: Dataset) -> ModelSpec:
    """The spec with the temperature that fits the val split, and with its scores.

    `val_ece`, `val_nll` and `val_brier` are those of images the temperature was not fitted on, half of the split at a
    time; the ones with `_uncalibrated` are those at temperature 1. All of the sampled pixels at the working size. Where
    the halves' temperatures do not make each other's truth more likely, the split is too small to tell one, and it
    stays 1.
    """
    parts = list(held_out_logits(spec, engine, dataset))
    logits_NK, truth_N = joined(parts)
    if len(truth_N) == 0:
        return spec
    before, after = probability_scores(logits_NK, truth_N), probability_scores(cross_fitted(parts), truth_N)
    calibration = CalibrationSpec(temperature=fit_temperature(logits_NK, truth_N), split=FITTED_ON)
    if after.nll >= before.nll:
        _say_stays(
            f"expected one fitted on half of {FITTED_ON} to lower the other half's negative log-likelihood, but it "
            f"goes from {before.nll:.4f} to {after.nll:.4f}: for a temperature, hold out more than {len(parts)} images"
        )
        calibration, after = CalibrationSpec(), before
    scores = {**_named(before, suffix="_uncalibrated"), **_named(after, suffix="")}
    return with_scores(spec.model_copy(update={"calibration": calibration}), scores)


def _say_stays(reason: str) -> None:
    print(f"segserve: the temperature stays 1: {reason}", file=sys.stderr)


def _named(scores: ProbabilityScores, *, suffix: str) -> dict[str, float]:
    return {f"{FITTED_ON}_{name}{suffix}": value for name, value in scores.model_dump().items()}


def held_out_logits(spec: ModelSpec, engine: Engine, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """For each val image the logits (N, K) float32, up to a constant per row, and the truth (N,) int64.

    They come by the predictor's own path, without test-time augmentation, for images at the working size, so that no
    probability is interpolated. At most `MOST_PIXELS` of an image, drawn by the run's seed; one per labelled image.
    """
    read_spec = spec.model_copy(update={"calibration": CalibrationSpec(temperature=READ_AT)})
    predictor = build_predictor(read_spec, engine)
    for index, sample in enumerate(dataset.split(FITTED_ON)):
        image_CHW, truth = load_sample(sample, ignore_index=dataset.ignore_index, preprocess=spec.preprocess)
        # Of the size that is wanted, `load_sample` has made sure.
        check_truth(sample, truth.numpy(), shape=tuple(truth.shape), num_classes=spec.num_classes)
        query = Query(image_HWC=image_CHW.permute(1, 2, 0).numpy(), probabilities="float16")
        prediction = predictor.predict([query])[0]
        if isinstance(prediction, SegmentationPrediction):
            assert prediction.probs_KHW is not None
            probs_NK = torch.from_numpy(prediction.probs_KHW).flatten(start_dim=1).T
        else:
            probs_NK = torch.from_numpy(prediction.probs_K)[None]
        chosen_N = _drawn(truth.flatten(), seed=(spec.provenance.seed, index))
        logits_NK = READ_AT * probs_NK[chosen_N].float().clamp(min=LEAST_FLOAT16).log()
        yield logits_NK, truth.flatten()[chosen_N].long()


def _drawn(truth_N: Tensor, *, seed: tuple[int, int]) -> Tensor:
    """Indices of at most `MOST_PIXELS` places that count, without one twice."""
    valid_N = (truth_N != IGNORE).nonzero().flatten()
    order_N = np.random.default_rng(seed).permutation(len(valid_N))[:MOST_PIXELS]
    return valid_N[torch.from_numpy(order_N)]
