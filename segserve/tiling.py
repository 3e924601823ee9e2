"""Images above the working size, seen in overlapping windows whose answers are blended without a seam.

The windows lie on one grid of the network's stride, so that a window sees the image as a pass over the whole would see
it, but for what lies beyond its edges. An edge therefore counts nothing: towards it a window's weight falls to zero, as
a raised cosine, and the weights of the windows over a pixel sum to one.

Dimensions: K maps, H, W; N pixels of one axis.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segserve.preprocess import STRIDE, Size
from segserve.spec import Sizing

MAX_PADDED_PIXELS = 200_000_000
MAX_BAND = 2**26
"""Most numbers in the band of blended answers (256 MiB of float32)."""
MIN_COLUMNS = 4
"""Of a strip, however wide its band."""


@dataclass(frozen=True)
class Span:
    """The pixels [start, stop) that one window covers of an axis, and what it counts at each of them."""

    start: int
    stop: int
    weights_N: Tensor


@dataclass(frozen=True)
class Grid:
    """The windows over an image: every pair of a row and a column."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def num_windows(self) -> int:
        return len(self.rows) * len(self.columns)


class TooLarge(ValueError):
    """An image that, padded to the network's stride, is too much work."""


def grid(size: Size, sizing: Sizing) -> Grid:
    """The windows for an image of `size` (height, width); one, where it is not to be taken apart.

    Raises:
        TooLarge: thin images, mostly padding, can hold few pixels and yet be work for hours.
    """
    if sizing.resize != "never":
        return Grid(*(spans(length, _aligned(length), 0) for length in size))
    padded_pixels = _aligned(size[0]) * _aligned(size[1])
    if padded_pixels > MAX_PADDED_PIXELS:
        raise TooLarge(
            f"expected an image of at most {MAX_PADDED_PIXELS} pixels once its sides are padded to multiples of "
            f"{STRIDE}, but {size[1]} x {size[0]} needs {padded_pixels}: cut it into pieces"
        )
    side = _aligned(sizing.working_side)
    return Grid(*(spans(length, side, sizing.overlap) for length in size))


def spans(length: int, side: int, overlap: int) -> tuple[Span, ...]:
    """Windows of at most `side` pixels over an axis of `length`; neighbours share `overlap` at least."""
    last = max(0, _aligned(length) - side)
    step = (side - overlap) // STRIDE * STRIDE
    starts = [min(index * step, last) for index in range(1 + math.ceil(last / step))] if last else [0]
    extents = [(start, min(start + side, length)) for start in starts]
    return tuple(Span(*extent, _weights(extents, index, overlap)) for index, extent in enumerate(extents))


def _aligned(length: int) -> int:
    return math.ceil(length / STRIDE) * STRIDE


def _weights(extents: Sequence[tuple[int, int]], index: int, overlap: int) -> Tensor:
    """What a window counts at each of its pixels; only its two neighbours on either side can reach them."""
    centre_N = torch.arange(*extents[index], dtype=torch.float64) + 0.5
    ramps = {
        other: _ramp(centre_N, extents[other], overlap, is_first=other == 0, is_last=other == len(extents) - 1)
        for other in range(max(0, index - 2), min(len(extents), index + 3))
    }
    weights_N: Tensor = ramps[index] / sum(ramps.values())
    return weights_N.float()


def _ramp(centre_N: Tensor, extent: tuple[int, int], overlap: int, *, is_first: bool, is_last: bool) -> Tensor:
    """A window's weight before normalising: 0 outside, 1 well inside, and at the image's own border.

    The outer quarter of an overlap weighs nothing, for want of context; over the middle half the weight rises to one.
    """
    margin = overlap // 4
    from_start_N = torch.full_like(centre_N, math.inf) if is_first else centre_N - extent[0]
    to_stop_N = torch.full_like(centre_N, math.inf) if is_last else extent[1] - centre_N
    rising_N = ((torch.minimum(from_start_N, to_stop_N) - margin) / max(1, overlap - 2 * margin)).clamp(0, 1)
    return torch.sin(rising_N * math.pi / 2).square()


@dataclass(frozen=True)
class Strip:
    """Neighbouring columns of windows, and the pixels [left, right) that no other column reaches."""

    columns: tuple[Span, ...]
    left: int
    right: int


def strips(columns: Sequence[Span], height: int, num_maps: int) -> Iterator[Strip]:
    """Groups of columns for which a band of `height` rows holds at most `MAX_BAND` numbers, or `MIN_COLUMNS` columns.

    Columns at the border of two strips are in both, so that the answer does not depend on the strips.
    """
    widest = MAX_BAND // (num_maps * height)
    first = left = 0
    while left < columns[-1].stop:
        num_fitting = sum(span.stop - columns[first].start <= widest for span in columns[first:])
        end = min(first + max(num_fitting, MIN_COLUMNS), len(columns))
        right = columns[end].start if end < len(columns) else columns[-1].stop
        yield Strip(tuple(columns[first:end]), left, right)
        left = right
        first = next((i for i, span in enumerate(columns) if span.stop > left), end)


class Band:
    """The blended maps of a strip where they are in the making: as many rows as one row of windows has."""

    def __init__(self, strip: Strip, *, height: int, num_maps: int, device: torch.device) -> None:
        self.strip = strip
        self._left = strip.columns[0].start
        width = strip.columns[-1].stop - self._left
        self._maps_KHW = torch.zeros(num_maps, height, width, device=device)
        self._top = 0

    def add(self, maps_KHW: Tensor, row: Span, column: Span) -> None:
        """Blend a window's maps in. Windows come in rows from top to bottom."""
        weights_HW = row.weights_N[:, None] * column.weights_N
        rows = slice(row.start - self._top, row.stop - self._top)
        columns = slice(column.start - self._left, column.stop - self._left)
        self._maps_KHW[:, rows, columns] += maps_KHW * weights_HW.to(maps_KHW.device)

    def take(self, bottom: int) -> Tensor:
        """The strip's maps (K, H, W) down to the image's row `bottom`, which are done; what is below moves up."""
        num_rows = bottom - self._top
        inner = slice(self.strip.left - self._left, self.strip.right - self._left)
        done_KHW = self._maps_KHW[:, :num_rows, inner].clone()
        self._maps_KHW[:, :-num_rows] = self._maps_KHW[:, num_rows:].clone()
        self._maps_KHW[:, -num_rows:] = 0
        self._top = bottom
        return done_KHW
