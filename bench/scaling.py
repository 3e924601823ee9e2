"""What an answer costs when the image, the batch, the views, the windows, the classes, the workers or the clients grow.

    python -m bench.scaling [ARTIFACT] [--seconds 5] [--out FILE.md]

The first five run in this process, from the files of images to the files of masks, medians of alternating rounds, each
beside the straight line that fits it best in relative error; the last two over HTTP, beside what one client, or one
worker, says that there should be. Nothing else should run on the machine. The artifact must have a fixed working size.
"""

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import nnls
from tqdm import tqdm

from bench.limit import alternating
from bench.machine import processor
from bench.section import add_section
from bench.servers import ours, running
from handlers.load import Load, closed_loop
from segserve.api import Request
from segserve.artifact import EXAMPLE_INPUT, Artifact, load_artifact, write_spec
from segserve.choice import build_engine
from segserve.engines.torch_engine import TorchEngine
from segserve.networks import build_network
from segserve.predictor import build_predictor
from segserve.service import Service
from segserve.spec import ClassSpec, ModelSpec, Plan
from segserve.tiling import grid
from segserve.tta import PLANS
from segserve.whole import check_place

ARTIFACT = Path("runs/demo/artifacts/demo-segmentation")
OUT = Path("runs/bench/scaling.md")
LOG = Path("runs/bench/scaling.log")
SIDES = (64, 128, 256, 384, 512, 768, 1024)
BATCHES = (1, 2, 4, 8, 16)
VIEWS: tuple[Plan, ...] = ("none", "hflip", "flips", "d4")
TILED_SIDES = (256, 512, 1024, 1536, 2048)
NUM_CLASSES = (2, 4, 8, 16, 32, 64)
WORKERS = (1, 2, 3)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
MANY = 16
"""Clients that keep a service busy."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity against another, and what it should be."""

    title: str
    x: str
    y: str
    points: Sequence[tuple[float, float]]
    expected: Sequence[float]
    said: str
    """Of what is expected."""

    def section(self) -> str:
        """Markdown."""
        rows = [
            f"| {x:g} | {y:.3g} | {line:.3g} | {y / line:.2f} |"
            for (x, y), line in zip(self.points, self.expected, strict=True)
        ]
        head = [f"### {self.title}", "", f"Expected: {self.said}.", ""]
        return "\n".join([*head, f"| {self.x} | {self.y} | expected | ratio |", "|---:|---:|---:|---:|", *rows])

    def draw(self, axes: Axes) -> None:
        places = [x for x, _ in self.points]
        axes.plot(places, [y for _, y in self.points], "o", color="#1f5f9e", label="measured")
        axes.plot(places, self.expected, color="#9aa3ad", label="expected", zorder=0)
        axes.set(title=self.title, xlabel=self.x, ylabel=self.y, ylim=(0, None))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        check_place(given.out)
        artifact = load_artifact(given.artifact)
        if artifact.spec.task != "segmentation" or artifact.spec.preprocess.resize != "always":
            raise ValueError(f"expected masks at a fixed working size, but {artifact.path} has others")
    except ValueError as error:
        print(f"bench.scaling: {error}", file=sys.stderr)
        return 2
    LOG.parent.mkdir(parents=True, exist_ok=True)
    measurements: Mapping[str, Callable[[], Curve]] = {
        "image size": partial(image_size, artifact),
        "batch": partial(batch, artifact),
        "views": partial(views, artifact),
        "windows": partial(windows, artifact),
        "classes": partial(classes, artifact),
        "clients": partial(clients, artifact, seconds=given.seconds),
        "workers": partial(workers, artifact, seconds=given.seconds),
    }
    curves = []
    with tqdm(measurements.items(), disable=None) as bar:
        for name, measure in bar:
            bar.set_description(name)
            curves.append(measure())
    plot = given.out.with_suffix(f".{artifact.spec.name}.png")
    sections = [heading(artifact), *(curve.section() for curve in curves), f"![The curves]({plot.name})\n"]
    add_section(given.out, "\n\n".join(sections), title="What an answer costs as things grow")
    draw(curves, plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path, nargs="?", default=ARTIFACT, metavar="ARTIFACT", help=f"({ARTIFACT})")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load over HTTP (5)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE.md", help=f"a section is added to it ({OUT})")
    return parser


def heading(artifact: Artifact) -> str:
    """What was measured, when and where."""
    engine = artifact.spec.engine
    return (
        f"## {artifact.spec.name}, {time.strftime('%Y-%m-%d')}\n\n{processor()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads; engine: {'torch' if engine is None else engine.name}."
    )


def image_size(artifact: Artifact) -> Curve:
    """Images of many sizes, each in one piece at its own size."""
    service = _service(artifact, _sized(artifact.spec, max(SIDES)))
    points = _milliseconds({side: _work(service, [_jpeg(artifact, side)]) for side in SIDES})
    megapixels = [(side**2 / 1e6, y) for side, y in points]
    return _line("Image size", "megapixels", "ms an image", megapixels)


def batch(artifact: Artifact) -> Curve:
    """Batches of images of the working size."""
    service, image = _service(artifact, artifact.spec), _jpeg(artifact, artifact.spec.preprocess.working_side)
    points = _milliseconds({size: _work(service, [image] * size) for size in BATCHES})
    return _line("Batch", "images", "ms a batch", points)


def views(artifact: Artifact) -> Curve:
    """Plans of test-time augmentation that do not scale."""
    service, image = _service(artifact, artifact.spec), _jpeg(artifact, artifact.spec.preprocess.working_side)
    points = _milliseconds({len(PLANS[plan]): _work(service, [image], tta=plan) for plan in VIEWS})
    return _line("Views", "views", "ms an image", points)


def windows(artifact: Artifact) -> Curve:
    """Larger and larger images in windows of the working size."""
    side = artifact.spec.preprocess.working_side
    spec = _sized(artifact.spec, side)
    works = {
        grid((large, large), spec.preprocess).num_windows: _work(_service(artifact, spec), [_jpeg(artifact, large)])
        for large in TILED_SIDES
    }
    return _line("Windows", "windows", "ms an image", _milliseconds(works))


def classes(artifact: Artifact) -> Curve:
    """Fresh networks by torch, the same but for their number of classes."""
    image, works = _jpeg(artifact, artifact.spec.preprocess.working_side), {}
    for number in NUM_CLASSES:
        named = tuple(ClassSpec(id=index, name=str(index), color=(index, 0, 0)) for index in range(number))
        spec = artifact.spec.model_copy(update={"classes": named, "engine": None, "reference": None})
        network = build_network(spec.network, task=spec.task, num_classes=number)
        predictor = build_predictor(spec, TorchEngine(network))
        works[number] = _work(Service(replace(artifact, spec=spec), predictor, name="bench", version="1.0"), [image])
    return _line("Classes", "classes", "ms an image, by torch", _milliseconds(works))


def clients(artifact: Artifact, *, seconds: float) -> Curve:
    """More and more clients that wait for their answers."""
    with tempfile.TemporaryDirectory(prefix="segserve-bench-") as folder:
        loads = _loads(artifact.path, artifact, Path(folder), numbers=CLIENTS, seconds=seconds)
    rates = [load.images_per_second for load in loads]
    most = max(rates)
    return Curve(
        title="Clients",
        x="clients",
        y="images/s over HTTP",
        points=list(zip(CLIENTS, rates, strict=True)),
        expected=[min(number * rates[0], most) for number in CLIENTS],
        said="so many times what one client gets, up to the most that was seen",
    )


def workers(artifact: Artifact, *, seconds: float) -> Curve:
    """More and more workers, among whom the cores are shared out."""
    rates = []
    for number in WORKERS:
        with tempfile.TemporaryDirectory(prefix="segserve-bench-") as folder:
            path = Path(folder) / "artifact"
            shutil.copytree(artifact.path, path)
            serving = artifact.spec.serving.model_copy(update={"workers": number, "threads": None})
            write_spec(path, artifact.spec.model_copy(update={"serving": serving}))
            [load] = _loads(path, artifact, Path(folder), numbers=[MANY], seconds=2 * seconds)
            rates.append(load.images_per_second)
    return Curve(
        title="Workers",
        x="workers",
        y=f"images/s over HTTP, {MANY} clients",
        points=list(zip(WORKERS, rates, strict=True)),
        expected=[rates[0]] * len(WORKERS),
        said="as many as with one worker, for the cores are the same",
    )


def _sized(spec: ModelSpec, working_side: int) -> ModelSpec:
    """The spec with images at their own size, in windows beyond the working side."""
    update = {"resize": "never", "working_side": working_side, "overlap": 32}
    return spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update=update)})


def _service(artifact: Artifact, spec: ModelSpec) -> Service:
    predictor = build_predictor(spec, build_engine(artifact, device="cpu"))
    return Service(replace(artifact, spec=spec), predictor, name="bench", version="1.0")


def _work(service: Service, images: Sequence[bytes], *, tta: Plan = "none") -> Callable[[], object]:
    """Answers to a batch of files, all of which must be masks."""
    headers = {"content-type": "image/jpeg", "x-segserve-tta": tta}
    requests = [Request(headers=headers, fields={"body": image}) for image in images]

    def work() -> None:
        for response in service.handle(requests):
            if response.status != 200:
                raise RuntimeError(f"expected 200, but got {response.status}: {response.body[:200]!r}")

    return work


def _jpeg(artifact: Artifact, side: int) -> bytes:
    """The artifact's example as a file of that size."""
    file = io.BytesIO()
    Image.open(artifact.path / EXAMPLE_INPUT).convert("RGB").resize((side, side)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _milliseconds(works: Mapping[int, Callable[[], object]]) -> list[tuple[float, float]]:
    found = alternating({str(x): work for x, work in works.items()})
    return [(float(x), 1000 * seconds) for x, seconds in found.items()]


def _line(title: str, x: str, y: str, points: Sequence[tuple[float, float]]) -> Curve:
    """With the line c + a x, neither of them negative, whose relative errors have the least squares."""
    xs, ys = np.array(points).T
    (base, slope), _ = nnls(np.stack([1 / ys, xs / ys], axis=1), np.ones(len(ys)))
    return Curve(
        title=title,
        x=x,
        y=y,
        points=points,
        expected=(base + slope * xs).tolist(),
        said=f"a straight line, {base:.3g} + {slope:.3g} x {x}",
    )


def _loads(path: Path, artifact: Artifact, folder: Path, *, numbers: Sequence[int], seconds: float) -> list[Load]:
    """One service, asked by so many clients, one number after the other."""
    image = _jpeg(artifact, artifact.spec.preprocess.working_side)
    with running(ours(path, "ours", folder=folder), artifact=path, image=image, log=LOG) as found:
        closed_loop(found.target, clients=MANY, seconds=seconds)
        return [closed_loop(found.target, clients=number, seconds=seconds) for number in numbers]


def draw(curves: Sequence[Curve], path: Path) -> None:
    """All of them, small."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    grid_of_axes = figure.subplots(2, 4).flat
    for axes, curve in zip(grid_of_axes, curves, strict=False):
        curve.draw(axes)
    for axes in list(figure.axes)[len(curves) :]:
        axes.remove()
    figure.axes[0].legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
