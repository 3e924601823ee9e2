"""What it costs to bring JPEG files to the network's size, decoded whole and by `preprocess.scaled_jpeg`.

    python -m bench.decoding PICTURE [--working-side 640] [--sides 1280 2560 4000]

The picture is enlarged to each longer side with some noise and saved with quality 90. One thread, both ways in turns,
medians of 7; the difference is that of the network's input, before normalisation, 0 to 255.
"""

import argparse
import io
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.limit import alternating
from bench.machine import processor
from segserve.codec import decode_image, decode_scaled
from segserve.preprocess import needed_size, resize_image, to_tensor, working_size
from segserve.spec import Sizing
from training.data import read_image

NOISE = 4.0
"""Standard deviation, as of a camera in good light."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description=__doc__)
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("--working-side", type=int, default=640)
    parser.add_argument("--sides", type=int, nargs="+", default=(1280, 2560, 4000))
    given = parser.parse_args(arguments)
    try:
        picture = Image.fromarray(read_image(given.picture))
    except ValueError as error:
        print(f"bench.decoding: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    sizing = Sizing(working_side=given.working_side, scaled_jpeg=True)
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}; working side {given.working_side}\n")
    print("| file | MB | whole, ms | scaled, ms | times as fast | mean difference |\n|---|---:|---:|---:|---:|---:|")
    for side in given.sides:
        data, size = enlarged(picture, side)
        whole, scaled = partial(whole_input, data, sizing), partial(scaled_input, data, sizing)
        seconds = alternating({"whole": whole, "scaled": scaled})
        milliseconds = [1000 * seconds[way] for way in ("whole", "scaled")]
        difference = (whole().float() - scaled().float()).abs().mean()
        print(
            f"| {size[0]} x {size[1]} | {len(data) / 1e6:.1f} | {milliseconds[0]:.1f} | {milliseconds[1]:.1f} | "
            f"{milliseconds[0] / milliseconds[1]:.1f} | {difference:.2f} |"
        )
    return 0


def enlarged(picture: Image.Image, side: int) -> tuple[bytes, tuple[int, int]]:
    """A JPEG file of the picture with this longer side, and its width and height."""
    scale = side / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    pixels_HWC = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    noisy_HWC = pixels_HWC + np.random.default_rng(0).normal(0, NOISE, pixels_HWC.shape)
    file = io.BytesIO()
    Image.fromarray(noisy_HWC.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=90)
    return file.getvalue(), size


def whole_input(data: bytes, sizing: Sizing) -> Tensor:
    """(3, H, W) uint8, of the file as it is."""
    image_HWC = decode_image(data)
    return resize_image(to_tensor(image_HWC), working_size((image_HWC.shape[0], image_HWC.shape[1]), sizing))


def scaled_input(data: bytes, sizing: Sizing) -> Tensor:
    """Likewise, decoded at less."""
    found = decode_scaled(data, needed=partial(needed_size, spec=sizing))
    return resize_image(to_tensor(found.image_HWC), working_size(found.sent_size, sizing))


if __name__ == "__main__":
    sys.exit(main())
