"""Run-length encodings of regions. COCO's, CVAT's and Label Studio's differ in everything but the name.

COCO: columns of the whole image, compressed to text. CVAT: rows of the region's box. Label Studio: rows of the whole
image as RGBA, packed in bits.
"""

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segserve.regions import Ints, Region

LABEL_STUDIO_WIDTHS = np.array([3, 4, 8, 16])
"""Bits in which Label Studio's four kinds of packet hold a run's length."""
CHANNELS, WORD_BITS, KIND_BITS = 4, 8, 3
"""Of Label Studio's images: RGBA, bits of a value, and the bits of a packet that say of which kind it is."""


def coco_rle(region: Region) -> dict[str, object]:
    """COCO's compressed encoding, `{"size": [height, width], "counts": text}`, as pycocotools reads it."""
    height, width = region.size
    counts = _counts(*_join(*region.map.columns.of(region.label)), end=height * width)
    encoded = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def cvat_rle(region: Region) -> list[int]:
    """Lengths of the runs in the region's box, row by row, outside and inside by turns."""
    starts_R, lengths_R = region.map.rows.of(region.label)
    y_R, x_R = np.divmod(starts_R, region.size[1])
    left, top, width, height = region.box
    counts: list[int] = _counts(*_join((y_R - top) * width + x_R - left, lengths_R), end=height * width).tolist()
    return counts


def label_studio_rle(region: Region) -> bytes:
    """Label Studio's encoding of the image whose pixels are 255 in all channels inside the region, else 0.

    The bits say: the number of values (32), the bits of a value less 1 (5), the bits of a length in each kind of packet
    less 1 (4 each), and then the packets: a run (1), its kind (2), its length less 1, its value.
    """
    height, width = region.size
    counts = CHANNELS * _counts(*_join(*region.map.rows.of(region.label)), end=height * width)
    values = np.where(np.arange(len(counts)) % 2, 255, 0)
    values, lengths = _at_most(1 << LABEL_STUDIO_WIDTHS[-1], values[counts > 0], counts[counts > 0])
    kinds = np.searchsorted(1 << LABEL_STUDIO_WIDTHS, lengths)
    widths = LABEL_STUDIO_WIDTHS[kinds]
    packets = (((0b100 | kinds) << widths) | (lengths - 1)) << WORD_BITS | values
    bits = np.concatenate(
        [
            _bits(np.array([CHANNELS * height * width]), np.array([32])),
            _bits(np.array([WORD_BITS - 1]), np.array([5])),
            _bits(LABEL_STUDIO_WIDTHS - 1, np.full(4, 4)),
            _bits(packets, KIND_BITS + widths + WORD_BITS),
        ]
    )
    return np.packbits(bits).tobytes()


def _join(starts_R: Ints, lengths_R: Ints) -> tuple[Ints, Ints]:
    """Starts and ends, with runs that continue one another made one."""
    ends_R = starts_R + lengths_R
    is_apart = starts_R[1:] != ends_R[:-1]
    return starts_R[np.append(True, is_apart)], ends_R[np.append(is_apart, True)]


def _counts(starts_R: Ints, ends_R: Ints, *, end: int) -> Ints:
    """Lengths outside and inside by turns, beginning with outside (which may be 0), up to the image's end."""
    counts = np.diff(np.stack([starts_R, ends_R], axis=1).ravel(), prepend=0, append=end)
    return counts if counts[-1] else counts[:-1]


def _at_most(longest: int, values: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """The same runs, those longer than `longest` in several pieces."""
    pieces = -(-lengths // longest)
    cut = np.full(pieces.sum(), longest)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    return np.repeat(values, pieces), cut


def _bits(numbers: Ints, widths: Ints) -> NDArray[np.uint8]:
    """The numbers' lowest bits one after the other, each in its own width of at most 32."""
    shifted = (numbers << (32 - widths)).astype(">u4")
    bits = np.unpackbits(shifted.view(np.uint8).reshape(-1, 4), axis=1)
    return bits[np.arange(32) < widths[:, None]]
