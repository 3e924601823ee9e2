"""Predict files without a server, by the same path as the service: decode, predict, render."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from segserve import api
from segserve.api import Options
from segserve.artifact import Artifact, check_example, load_artifact
from segserve.choice import build_engine
from segserve.clock import StageClock
from segserve.codec import decode_scaled
from segserve.engines.torch_engine import best_device
from segserve.prediction import Prediction, Query
from segserve.predictor import Predictor, build_predictor
from segserve.preprocess import needed_size
from segserve.problem import Problem
from segserve.render import Asked, render
from segserve.spec import Plan
from segserve.whole import write_whole

MODEL_VERSION = "offline"
SAMPLES_AT_ONCE = 3 * 2**23
"""Of images that are predicted together, red, green and blue counted apart: one of 100 megapixels is alone."""

Name = TypeVar("Name")


def load_predictor(path: Path) -> tuple[Artifact, Predictor]:
    """An artifact, on the best device and engine there are, after its worked example came out as stored."""
    artifact = load_artifact(path)
    predictor = build_predictor(artifact.spec, build_engine(artifact, device=best_device()))
    check_example(artifact, predictor)
    return artifact, predictor


def predict_files(
    images: Sequence[Path], *, artifact: Artifact, predictor: Predictor, out: Path, tta: Plan = "none"
) -> Iterator[tuple[Path, str | None]]:
    """Write `out/STEM.png` (the mask, for segmentation) and `out/STEM.json` for each image.

    Yields:
        Each image when it is done, with what was wrong with it or None; a broken image stops nobody else's.

    Raises:
        ValueError: two images would write the same files, or an answer would take an image's place.
    """
    check_stems([image.stem for image in images])
    _check_apart(images, out)
    out.mkdir(parents=True, exist_ok=True)
    size = artifact.spec.serving.batch_size
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        for path, answer in answers(batch, Path.read_bytes, artifact=artifact, predictor=predictor, tta=tta):
            if isinstance(answer, str):
                yield path, answer
                continue
            for suffix, body in answer.items():
                write_whole(out / f"{path.stem}{suffix}", body)
            yield path, None


def check_stems(stems: Sequence[str]) -> None:
    """A ValueError where two images would write the same files."""
    twice = sorted(stem for stem, count in Counter(stems).items() if count > 1)
    if twice:
        shown = ", ".join(twice[:10]) + (", ..." if len(twice) > 10 else "")
        raise ValueError(f"expected different file names, but several are called {shown}: call once for each")


def _check_apart(images: Sequence[Path], out: Path) -> None:
    written = {(out / f"{image.stem}{suffix}").resolve() for image in images for suffix in (".png", ".json")}
    lost = sorted(str(image) for image in images if image.resolve() in written)
    if lost:
        raise ValueError(
            f"expected another folder for the answers, as one would take the place of {lost[0]}: change --out"
        )


def answers(
    names: Sequence[Name], read: Callable[[Name], bytes], *, artifact: Artifact, predictor: Predictor, tta: Plan
) -> Iterator[tuple[Name, Mapping[str, bytes] | str]]:
    """Predict one batch, large images in smaller ones.

    Args:
        names: of the images.
        read: the file of one; an OSError is a fault of this one.
        artifact: whose predictor it is.
        predictor: runs it.
        tta: the views of each image.

    Yields:
        The name of each image, with the files of its answer by their suffixes, or in one sentence why there are none.
    """
    queries: dict[Name, Query] = {}
    for name in names:
        try:
            decoded = decode_scaled(read(name), needed=partial(needed_size, spec=artifact.spec.preprocess))
            queries[name] = Query(image_HWC=decoded.image_HWC, sent_size=decoded.sent_size, tta=tta)
        except Problem as problem:
            yield name, str(problem)
        except OSError as error:
            yield name, f"expected the file of an image, but it cannot be read: {error.strerror or error}"
        if sum(query.image_HWC.size for query in queries.values()) >= SAMPLES_AT_ONCE:
            yield from _answered(queries, artifact=artifact, predictor=predictor)
            queries = {}
    yield from _answered(queries, artifact=artifact, predictor=predictor)


def _answered(
    queries: Mapping[Name, Query], *, artifact: Artifact, predictor: Predictor
) -> Iterator[tuple[Name, Mapping[str, bytes] | str]]:
    clock = StageClock()
    outcomes = predictor.attempt(list(queries.values()), clock=clock)
    for (name, query), outcome in zip(queries.items(), outcomes, strict=True):
        if isinstance(outcome, Exception):
            yield name, f"expected an image that can be predicted, but got: {outcome}"
            continue
        try:
            files = _files(outcome, query, artifact, clock)
        except Problem as problem:
            yield name, str(problem)
        else:
            yield name, files


def _files(prediction: Prediction, query: Query, artifact: Artifact, batch_clock: StageClock) -> dict[str, bytes]:
    """The JSON comes last: where it is, the answer is whole."""
    clock = StageClock()
    clock.include(batch_clock)
    model = api.ModelInfo(name=artifact.spec.name, version=MODEL_VERSION, digest=artifact.digest)
    forms = ("png", "json") if artifact.spec.task == "segmentation" else ("json",)
    files = {}
    for form in forms:
        options = Options(format=form, tta=query.tta)  # type: ignore[arg-type]
        asked = Asked(image_HWC=query.image_HWC, sent_size=query.sent_size, options=options)
        _, files[f".{form}"] = render(prediction, asked, spec=artifact.spec, model=model, clock=clock)
    return files
