"""Predict files on disk, by the same path as the service: decode, predict, render."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from segserve import api
from segserve.api import Options
from segserve.artifact import Artifact
from segserve.clock import StageClock
from segserve.codec import decode_image
from segserve.prediction import Prediction, Query
from segserve.predictor import Predictor
from segserve.problem import Problem
from segserve.render import Asked, render
from segserve.spec import Plan
from segserve.whole import write_whole

MODEL_VERSION = "offline"


def predict_files(
    images: Sequence[Path], *, artifact: Artifact, predictor: Predictor, out: Path, tta: Plan = "none"
) -> Iterator[tuple[Path, Problem | None]]:
    """Write `out/STEM.png` (the mask, for segmentation) and `out/STEM.json` for each image.

    Yields:
        Each image when it is done, with what was wrong with it or None; a broken image stops nobody else's.

    Raises:
        ValueError: two images would write the same files.
    """
    twice = sorted(stem for stem, count in Counter(image.stem for image in images).items() if count > 1)
    if twice:
        raise ValueError(
            f"expected different file names, but several are called {', '.join(twice)}: call once for each"
        )
    out.mkdir(parents=True, exist_ok=True)
    size = artifact.spec.serving.batch_size
    for first in range(0, len(images), size):
        yield from _predict_batch(images[first : first + size], artifact, predictor, out, tta)


def _predict_batch(
    images: Sequence[Path], artifact: Artifact, predictor: Predictor, out: Path, tta: Plan
) -> Iterator[tuple[Path, Problem | None]]:
    queries: dict[Path, Query] = {}
    for path in images:
        try:
            queries[path] = Query(image_HWC=decode_image(path.read_bytes()), tta=tta)
        except Problem as problem:
            yield path, problem
    clock = StageClock()
    predictions = list[Prediction](predictor.predict(list(queries.values()), clock=clock))
    for (path, query), prediction in zip(queries.items(), predictions, strict=True):
        own_clock = StageClock()
        own_clock.seconds.update(clock.seconds)
        _write(prediction, query, artifact, out / path.stem, own_clock)
        yield path, None


def _write(prediction: Prediction, query: Query, artifact: Artifact, stem: Path, clock: StageClock) -> None:
    model = api.ModelInfo(name=artifact.spec.name, version=MODEL_VERSION, digest=artifact.digest)
    forms = ("png", "json") if artifact.spec.task == "segmentation" else ("json",)
    for form in forms:
        asked = Asked(image_HWC=query.image_HWC, options=Options(format=form, tta=query.tta))  # type: ignore[arg-type]
        _, body = render(prediction, asked, spec=artifact.spec, model=model, clock=clock)
        write_whole(stem.with_name(f"{stem.name}.{form}"), body)
