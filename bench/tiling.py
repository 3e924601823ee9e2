"""Large images: seams, memory and time of overlapping windows, on mosaics of real pictures.

    python -m bench.tiling ARTIFACT IMAGES --working-side 512 --overlap 128 --out FILE.json

Each size runs in a process of its own, through `Service.handle`, as in a worker: JPEG in, index PNG out. Processor time
tells more than the clock's where other work runs. At the largest size the mask is compared with that of single passes
over crops of it: a pixel near the middle of an overlap should differ from such a pass no more often than a pixel that
one window alone decides.
"""

import argparse
import io
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from segserve.api import Request
from segserve.artifact import Artifact, load_artifact
from segserve.codec import decode_image
from segserve.engines.torch_engine import TorchEngine, best_device
from segserve.prediction import Query
from segserve.predictor import SegmentationPredictor
from segserve.service import Service
from segserve.spec import ModelSpec
from segserve.tiling import spans

SEAM = 16
"""A pixel is near a seam up to so far from the middle of an overlap."""
CROP, NUM_CROPS, CROP_BORDER = 1536, 6, 256
"""Single passes for comparison: their side, their number, and what is left out at their edges."""


def main() -> int:
    """Measure, print, write; returns the exit code."""
    given = _parser().parse_args()
    try:
        if given.measure:
            print(json.dumps(_measure(given)))
            return 0
        _check(given)
        with tempfile.TemporaryDirectory() as folder:
            runs = [_in_own_process(given, side, Path(folder) / f"{side}.jpg") for side in given.sides]
    except ValueError as error:
        print(f"bench.tiling: {error}", file=sys.stderr)
        return 2
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {best_device()}",
        "artifact": given.artifact.name,
        "working_side": given.working_side,
        "overlap": given.overlap,
        "tta": given.tta,
        "runs": runs,
        "growth_beyond_image_and_mask": _growth(runs[0], runs[-1]),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.tiling", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("images", type=Path, help="folder of pictures for the mosaic")
    parser.add_argument("--working-side", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--tta", default="none")
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 10000], help="of the square mosaics, pixels")
    parser.add_argument("--seams", type=int, default=10000, help="side of the mosaic whose seams are measured")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/tiling.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser


def _check(given: argparse.Namespace) -> None:
    """Refuse what cannot be measured before a large mosaic is made, by a ValueError."""
    load_artifact(given.artifact)
    if not given.images.is_dir() or not any(given.images.iterdir()):
        raise ValueError(f"expected pictures in {given.images}, but there are none: name a folder of them")
    if given.seams in given.sides and given.seams < CROP + 32:
        raise ValueError(f"expected --seams of {CROP + 32} or more, to compare with crops, but got {given.seams}")


def _in_own_process(given: argparse.Namespace, side: int, file: Path) -> dict[str, object]:
    _mosaic(sorted(given.images.iterdir()), side).save(file, quality=80)
    command = [sys.executable, "-m", "bench.tiling", *sys.argv[1:], "--measure", str(file)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(result.stdout))


def _mosaic(files: list[Path], side: int) -> Image.Image:
    with Image.open(files[0]) as first:
        width, height = first.size
    mosaic = Image.new("RGB", (side, side))
    places = itertools.product(range(0, side, height), range(0, side, width))
    for (top, left), file in zip(places, itertools.cycle(files), strict=False):
        with Image.open(file) as picture:
            mosaic.paste(picture.convert("RGB").resize((width, height)), (left, top))
    return mosaic


def _measure(given: argparse.Namespace) -> dict[str, object]:
    artifact = load_artifact(given.artifact)
    spec = _resized(artifact.spec, resize="never", working_side=given.working_side, overlap=given.overlap)
    service = _service(replace(artifact, spec=spec))
    file = given.measure.read_bytes()
    _ask(service, _small_jpeg(given.working_side), given.tta)
    start, cpu_start = time.perf_counter(), time.process_time()
    mask_HW, windows = _ask(service, file, given.tta)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    megapixels = mask_HW.size / 1e6
    measured = {
        "megapixels": megapixels,
        "jpeg_bytes": len(file),
        "windows": windows,
        "seconds": round(seconds, 1),
        "seconds_per_megapixel": round(seconds / megapixels, 3),
        "cpu_seconds_per_megapixel": round(cpu_seconds / megapixels, 3),
        "peak_rss_mib": round(_peak_rss_mib()),
        "image_and_mask_mib": round(4 * mask_HW.size / 2**20),
    }
    if len(mask_HW) == given.seams:
        measured["seams"] = _seams(artifact, file, mask_HW, given)
    return measured


def _resized(spec: ModelSpec, **sizing: object) -> ModelSpec:
    preprocess = type(spec.preprocess).model_validate({**spec.preprocess.model_dump(), **sizing})
    patient = spec.serving.model_copy(update={"max_seconds": 3600})
    return spec.model_copy(update={"preprocess": preprocess, "serving": patient})


def _service(artifact: Artifact) -> Service:
    predictor = SegmentationPredictor(artifact.spec, TorchEngine(artifact.network, device=best_device()))
    return Service(artifact, predictor, name=artifact.spec.name, version="bench")


def _small_jpeg(side: int) -> bytes:
    """Two windows' worth, to warm up."""
    buffer = io.BytesIO()
    Image.effect_noise((2 * side, side), 50).convert("RGB").save(buffer, format="JPEG")
    return buffer.getvalue()


def _ask(service: Service, file: bytes, tta: str) -> tuple[NDArray[np.uint8], int]:
    (response,) = service.handle([Request(headers={}, fields={"body": file, "tta": tta.encode()})])
    if response.status != 200:
        raise RuntimeError(response.body.decode())
    with Image.open(io.BytesIO(response.body)) as mask:
        return np.asarray(mask), int(response.headers["X-Segserve-Windows"])


def _peak_rss_mib() -> float:
    """Of this process since it began (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def _growth(small: dict[str, object], large: dict[str, object]) -> float:
    """How much more memory, beyond the image and the mask, the large image took than the small one; 0.1 = 10 %."""
    beyond = [float(str(run["peak_rss_mib"])) - float(str(run["image_and_mask_mib"])) for run in (small, large)]
    return round(beyond[1] / beyond[0] - 1, 3)


def _seams(artifact: Artifact, file: bytes, mask_HW: NDArray[np.uint8], given: argparse.Namespace) -> dict[str, float]:
    """Shares of pixels that differ from single passes over crops, in percent, near seams and away from them."""
    image_HWC = decode_image(file)
    engine = TorchEngine(artifact.network, device=best_device())
    single = SegmentationPredictor(_resized(artifact.spec, resize="never", working_side=CROP, overlap=0), engine)
    distance_N = _distance_to_seam(len(mask_HW), given.working_side, given.overlap)
    differs, distances = [], []
    for top, left in _corners(len(mask_HW)):
        crop_HWC = image_HWC[top : top + CROP, left : left + CROP]
        (expected,) = single.predict([Query(image_HWC=crop_HWC, tta=given.tta)])
        inner = slice(CROP_BORDER, CROP - CROP_BORDER)
        differs.append((expected.mask_HW != mask_HW[top : top + CROP, left : left + CROP])[inner, inner])
        rows_N, columns_N = distance_N[top : top + CROP][inner], distance_N[left : left + CROP][inner]
        distances.append(np.minimum(rows_N[:, None], columns_N))
    differs_N, distances_N = np.concatenate(differs).ravel(), np.concatenate(distances).ravel()
    near = 100 * differs_N[distances_N <= SEAM].mean()
    interior = 100 * differs_N[distances_N > given.overlap // 2].mean()
    return {
        "near_percent": round(float(near), 3),
        "interior_percent": round(float(interior), 3),
        "difference_points": round(float(near - interior), 3),
        "pixels_compared": int(differs_N.size),
    }


def _distance_to_seam(length: int, side: int, overlap: int) -> NDArray[np.float64]:
    """Of each pixel of an axis to the nearest middle of an overlap."""
    found = spans(length, side, overlap)
    middles = [(left.stop + right.start) / 2 for left, right in itertools.pairwise(found)] or [math.inf]
    centre_N1 = np.arange(length)[:, None] + 0.5
    distance_N: NDArray[np.float64] = np.abs(centre_N1 - np.array(middles)).min(axis=1)
    return distance_N


def _corners(side: int) -> list[tuple[int, int]]:
    """Of the crops: seeded, on the network's grid."""
    random = np.random.default_rng(0)
    steps = random.integers(0, (side - CROP) // 32, size=(NUM_CROPS, 2))
    return [(int(top) * 32, int(left) * 32) for top, left in steps]


if __name__ == "__main__":
    sys.exit(main())
