"""Images above the working size, seen in overlapping windows whose answers are blended without a seam.

The windows lie on one grid of the network's stride, so that a window sees the image as a pass over the whole would see
it, but for what lies beyond its edges. An edge therefore counts nothing: towards it a window's weight falls to zero, as
a raised cosine, and the weights of the windows over a pixel sum to one.

Dimensions: K maps, H, W; N pixels of one axis.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segserve.preprocess import STRIDE, Size
from segserve.spec import Sizing

MAX_PADDED_PIXELS = 200_000_000
MAX_HELD = 2**26
"""Most numbers held for the next row of windows (256 MiB of float32)."""
MIN_COLUMNS = 4
"""Of a strip, however much must be held."""


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
    if last == 0:
        return (Span(0, length, torch.ones(1).expand(length)),)  # of any length, in no memory
    num_steps = math.ceil(last / ((side - overlap) // STRIDE * STRIDE))
    starts = [STRIDE * round(index * last / num_steps / STRIDE) for index in range(num_steps + 1)]
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


def strips(grid: Grid, num_maps: int) -> Iterator[Strip]:
    """Groups of columns whose rows share at most `MAX_HELD` numbers, or of `MIN_COLUMNS`.

    Columns at the border of two strips are in both, so that the answer does not depend on the strips.
    """
    columns = grid.columns
    widest = MAX_HELD // (num_maps * max(1, _most_shared(grid.rows)))
    first = left = 0
    while left < columns[-1].stop:
        num_fitting = sum(span.stop - columns[first].start <= widest for span in columns[first:])
        end = min(first + max(num_fitting, MIN_COLUMNS), len(columns))
        right = columns[end].start if end < len(columns) else columns[-1].stop
        yield Strip(tuple(columns[first:end]), left, right)
        left = right
        first = next((i for i, span in enumerate(columns) if span.stop > left), end)


def _most_shared(spans: Sequence[Span]) -> int:
    return max((upper.stop - lower.start for upper, lower in itertools.pairwise(spans)), default=0)


@dataclass(frozen=True)
class Block:
    """Maps (K, H, W) of a part of the image to which no window will add any more."""

    maps_KHW: Tensor
    top: int
    left: int


class Blender:
    """Adds up the windows of a strip, which come in rows from top to bottom and, in a row, from left to right.

    It holds only that to which later windows will add: what the last window shares with the next one of its row, and
    what the last row shares with the next row.
    """

    def __init__(self, strip: Strip, rows: Sequence[Span], *, num_maps: int, device: torch.device) -> None:
        self._strip = strip
        self._rows = rows
        width = strip.right - strip.left
        self._below_KHW = torch.zeros(num_maps, _most_shared(rows), width, device=device)
        self._right_KHW = torch.zeros(num_maps, 0, 0, device=device)

    def add(self, maps_KHW: Tensor, row_index: int, column_index: int) -> Block | None:
        """Blend a window's maps in.

        Returns:
            What is done with it, less what lies outside the strip; None if that is nothing.
        """
        row, column = self._rows[row_index], self._strip.columns[column_index]
        weights_HW = row.weights_N[:, None] * column.weights_N
        open_KHW = maps_KHW * weights_HW.to(maps_KHW.device)
        if column_index > 0:
            open_KHW[..., : self._right_KHW.shape[-1]] += self._right_KHW
        stop = _next_start(self._strip.columns, column_index)
        self._right_KHW = open_KHW[..., stop - column.start :].clone()
        left, right = max(column.start, self._strip.left), min(stop, self._strip.right)
        if left >= right:
            return None
        done_KHW = self._with_rows(open_KHW[..., left - column.start : right - column.start], row_index, left)
        return Block(done_KHW, row.start, left)

    def _with_rows(self, open_KHW: Tensor, row_index: int, left: int) -> Tensor:
        """Add what the row above shares, and put aside what is shared with the row below."""
        row = self._rows[row_index]
        columns = slice(left - self._strip.left, left - self._strip.left + open_KHW.shape[-1])
        if row_index > 0:
            num_shared = self._rows[row_index - 1].stop - row.start
            open_KHW[:, :num_shared] += self._below_KHW[:, :num_shared, columns]
        num_done = _next_start(self._rows, row_index) - row.start
        shared_KHW = open_KHW[:, num_done:]
        self._below_KHW[:, : shared_KHW.shape[1], columns] = shared_KHW
        return open_KHW[:, :num_done]


def _next_start(spans: Sequence[Span], index: int) -> int:
    """Where the next span starts, or the axis ends."""
    return spans[index + 1].start if index + 1 < len(spans) else spans[index].stop
