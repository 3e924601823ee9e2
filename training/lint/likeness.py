"""Which images look alike: a perceptual hash, near-duplicates, and how many scenes a split holds.

The hash keeps the signs of the low frequencies of a cosine transform (Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010). Hashes of plain images agree by chance, so a pair's thumbnails must correlate,
too.

Dimensions: N and M images, P pairs, S the side of a thumbnail, F its pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE, LOW = 32, 8
BITS = LOW * LOW - 1
BLOCK = 1024
"""Images compared with all others at once, so that memory grows with their number only."""
RANDOM_PAIRS = 20_000

NEAR_BITS, NEAR_CORRELATION = 6, 0.95
"""Near-duplicates are no farther apart than this."""

CLIP_BITS, CLIP_CORRELATION = 12, 0.9
"""Neighbours by number are of one clip within this: frames of a car's camera at 7.5 Hz are, those at 1 Hz rarely."""

NUMBERED = re.compile(r"(.*?)(\d+)$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Prints:
    """What is compared of N images."""

    hashes_NB: NDArray[np.float32]
    """Perceptual hashes, 63 values 0 or 1 each."""
    patterns_NF: NDArray[np.float32]
    """Thumbnails without their mean and of length 1; one without any contrast is 0 and like nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of images that look alike."""

    indices_P2: NDArray[np.int64]
    bits_P: NDArray[np.int64]
    correlation_P: NDArray[np.float32]


def thumbnail(image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Gray means of areas, (S, S) float32 in 0..255, of RGB (H, W, 3)."""
    small = Image.fromarray(image_HWC).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small.convert("L"), dtype=np.float32)


def perceptual_hash(thumbnail_SS: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the lowest frequencies, the mean left out, are above their median: (63,) bool."""
    low = dctn(thumbnail_SS, norm="ortho")[:LOW, :LOW].ravel()[1:]
    return np.asarray(low > np.median(low))


def prints(thumbnails: Sequence[NDArray[np.float32]]) -> Prints:
    """Of thumbnails (S, S) in 0..255."""
    hashes_NB = np.array([perceptual_hash(each) for each in thumbnails], dtype=np.float32).reshape(-1, BITS)
    flat_NF = np.array(thumbnails, dtype=np.float32).reshape(-1, SIDE * SIDE)
    centred_NF = flat_NF - flat_NF.mean(axis=1, keepdims=True)
    lengths_N1 = np.linalg.norm(centred_NF, axis=1, keepdims=True)
    return Prints(hashes_NB=hashes_NB, patterns_NF=np.where(lengths_N1 > 1, centred_NF / np.maximum(lengths_N1, 1), 0))


def compare(first: Prints, second: Prints, indices_P2: NDArray[np.int64]) -> Pairs:
    """The likeness of given pairs."""
    a_P, b_P = indices_P2.T
    bits_P = np.abs(first.hashes_NB[a_P] - second.hashes_NB[b_P]).sum(axis=1)
    correlation_P = np.einsum("pf,pf->p", first.patterns_NF[a_P], second.patterns_NF[b_P])
    return Pairs(indices_P2=indices_P2, bits_P=bits_P.astype(np.int64), correlation_P=correlation_P)


def select(pairs: Pairs, *, bits: int, correlation: float) -> Pairs:
    """Those that differ in at most so many bits and correlate at least so much."""
    keep_P = (pairs.bits_P <= bits) & (pairs.correlation_P >= correlation)
    return Pairs(
        indices_P2=pairs.indices_P2[keep_P], bits_P=pairs.bits_P[keep_P], correlation_P=pairs.correlation_P[keep_P]
    )


def near_duplicates(first: Prints, second: Prints) -> Pairs:
    """Pairs of an image of the first and one of the second that are nearly the same."""
    ones_M = second.hashes_NB.sum(axis=1)
    found = []
    for start in range(0, len(first.hashes_NB), BLOCK):
        block_NB = first.hashes_NB[start : start + BLOCK]
        bits_NM = block_NB.sum(axis=1)[:, None] + ones_M - 2 * block_NB @ second.hashes_NB.T
        found.append(np.argwhere(bits_NM <= NEAR_BITS) + np.array([start, 0]))
    indices_P2 = np.concatenate([*found, np.empty((0, 2), dtype=np.int64)])
    return select(compare(first, second, indices_P2), bits=NEAR_BITS, correlation=NEAR_CORRELATION)


def numbered(stem: str) -> tuple[str, int] | None:
    """What comes before a name's last digits, and those; None for a name that does not end in digits."""
    found = NUMBERED.match(stem)
    return (found[1], int(found[2])) if found else None


def neighbours(stems: Sequence[str]) -> NDArray[np.int64]:
    """Pairs (P, 2) of indices whose names follow one another by number within what comes before it."""
    known = sorted((*place, index) for index, stem in enumerate(stems) if (place := numbered(stem)))
    pairs = [(a[2], b[2]) for a, b in pairwise(known) if a[0] == b[0]]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def scenes(stems: Sequence[str], images: Prints) -> NDArray[np.int64]:
    """The scene (N,) of each image: near-duplicates share one, and so do neighbours by number that may be one clip."""
    by_name = compare(images, images, neighbours(stems))
    links = [near_duplicates(images, images), select(by_name, bits=CLIP_BITS, correlation=CLIP_CORRELATION)]
    a_P, b_P = np.concatenate([each.indices_P2 for each in links]).T
    graph_NN = coo_array((np.ones(len(a_P)), (a_P, b_P)), shape=(len(stems), len(stems)))
    return np.asarray(connected_components(graph_NN, directed=False)[1], dtype=np.int64)


def order(stems: Sequence[str], images: Prints) -> float:
    """How often neighbours by number are more alike than two images drawn at random (seeded), 0 to 1.

    0.5 is chance: the numbers mean nothing, or there is nothing to compare. Near 1 they are times or places.
    """
    near = compare(images, images, neighbours(stems)).correlation_P
    drawn_P2 = np.random.default_rng(0).integers(0, max(len(stems), 1), (RANDOM_PAIRS, 2))
    far = np.sort(compare(images, images, drawn_P2[drawn_P2[:, 0] != drawn_P2[:, 1]]).correlation_P)
    if not len(near) or not len(far):
        return 0.5
    below = (np.searchsorted(far, near, side="left") + np.searchsorted(far, near, side="right")) / 2
    return float(below.mean() / len(far))
