"""Is it right at the borders? Scores of contours, which pixels counted over whole areas hardly show.

Boundary IoU: Cheng et al. 2021, https://arxiv.org/abs/2103.16562. Boundary F1: Csurka et al. 2013, with the tolerance
of Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561. IoU in a trimap: Kohli et al. 2009. Rand score of
connected pieces, over the pixels of the truth's: Arganda-Carreras et al. 2015, https://doi.org/10.3389/fnana.2015.00142.

What does not count (`IGNORE`) hides the contour beside it, and is taken out of the prediction, too: a contour is where
two classes that count come near each other, and a prediction that is right wherever it counts scores 1.

Dimensions: K classes, R radii, D distances, N contour pixels, H, W.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import label
from skimage.metrics import adapted_rand_error

from training.data import IGNORE
from training.metrics import class_iou, mean_of_known

Width = Literal["1px", "3px", "2pct"]
"""How far from the contour Boundary IoU looks: pixels, or per cent of the image's diagonal (1 pixel at least)."""
WIDTHS: tuple[Width, ...] = get_args(Width)
DIAGONAL_SHARE = 0.02
BAND = 3
"""Pixels on either side of a contour in which calibration is looked at, too."""
TRIMAP_RADII = (1, 2, 4, 8, 16)
TOLERANCE = 0.0075
"""Of Boundary F1: the share of the image's diagonal by which a contour may be off."""

Mask = NDArray[np.uint8]
"""(H, W) class indices or `IGNORE`."""


class _Fold(Protocol):
    def __call__(self, first: Mask, second: Mask, /, *, out: Mask) -> Mask: ...


def contour_distance(mask_HW: Mask, *, reach: int) -> NDArray[np.uint16]:
    """How far the nearest pixel of another class is, 1 for neighbours (diagonal ones, too: the chessboard's distance).

    Returns:
        (H, W), 1 to `reach`; `reach` + 1 where there is none so near, and for pixels that do not count.
    """
    least_HW, largest_HW = mask_HW, np.where(mask_HW == IGNORE, np.uint8(0), mask_HW)
    distance_HW = np.ones(mask_HW.shape, dtype=np.uint16)
    for _ in range(reach):
        least_HW, largest_HW = _folded(least_HW, np.minimum), _folded(largest_HW, np.maximum)
        distance_HW += (least_HW == mask_HW) & (largest_HW == mask_HW)
    distance_HW[mask_HW == IGNORE] = reach + 1
    return distance_HW


def _folded(values_HW: Mask, fold: _Fold) -> Mask:
    """The least or largest value of each pixel and its eight neighbours."""
    rows_HW = values_HW.copy()
    fold(rows_HW[1:], values_HW[:-1], out=rows_HW[1:])
    fold(rows_HW[:-1], values_HW[1:], out=rows_HW[:-1])
    both_HW = rows_HW.copy()
    fold(both_HW[:, 1:], rows_HW[:, :-1], out=both_HW[:, 1:])
    fold(both_HW[:, :-1], rows_HW[:, 1:], out=both_HW[:, :-1])
    return both_HW


def edge_distance(size: tuple[int, int]) -> NDArray[np.uint16]:
    """How far outside the image is: (H, W), 1 for the pixels at its edge."""
    rows_H, columns_W = (np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)) for side in size)
    return np.minimum.outer(rows_H, columns_W).astype(np.uint16)


def band_pixels(size: tuple[int, int], width: Width) -> int:
    """The distance that a width stands for in an image of this size."""
    if width == "2pct":
        return max(1, round(DIAGONAL_SHARE * math.hypot(*size)))
    return int(width.removesuffix("px"))


@dataclass
class BoundaryTally:
    """What is added up, image by image, of what is near contours."""

    num_classes: int
    shared_DK: NDArray[np.int64] = field(init=False)
    """Pixels of a class in both bands, and `joined_DK` in one of them at least."""
    joined_DK: NDArray[np.int64] = field(init=False)
    trimap_RKK: NDArray[np.int64] = field(init=False)
    """Confusion matrices within each of `TRIMAP_RADII` of the truth's contours."""
    f1_K: list[NDArray[np.float64]] = field(default_factory=list)
    """For each image its classes' Boundary F1."""
    rand_K: list[NDArray[np.float64]] = field(default_factory=list)
    """For each image its classes' Rand score, where there are two classes."""

    def __post_init__(self) -> None:
        bands = (len(WIDTHS), self.num_classes)
        self.shared_DK, self.joined_DK = np.zeros(bands, dtype=np.int64), np.zeros(bands, dtype=np.int64)
        self.trimap_RKK = np.zeros((len(TRIMAP_RADII), self.num_classes, self.num_classes), dtype=np.int64)

    def add(self, truth_HW: Mask, predicted_HW: Mask) -> None:
        """Count an image: masks of one size, the truth with `IGNORE` where it does not count."""
        predicted_HW = np.where(truth_HW == IGNORE, np.uint8(IGNORE), predicted_HW)
        size = (truth_HW.shape[0], truth_HW.shape[1])
        widths = [band_pixels(size, width) for width in WIDTHS]
        true_HW = contour_distance(truth_HW, reach=max(*widths, *TRIMAP_RADII))
        said_HW = contour_distance(predicted_HW, reach=max(widths))
        self._add_trimap(truth_HW, predicted_HW, true_HW)
        self._add_bands(truth_HW, predicted_HW, (true_HW, said_HW), widths)
        tolerance = TOLERANCE * math.hypot(*size)
        self.f1_K.append(
            boundary_f1(
                np.where(true_HW == 1, truth_HW, np.uint8(IGNORE)),
                np.where(said_HW == 1, predicted_HW, np.uint8(IGNORE)),
                tolerance=tolerance,
                present_2K=np.array([_counts(mask_HW, self.num_classes) > 0 for mask_HW in (truth_HW, predicted_HW)]),
            )
        )
        if self.num_classes == 2:
            self.rand_K.append(np.array([rand_score(truth_HW == k, predicted_HW == k) for k in range(2)]))

    def _add_trimap(self, truth_HW: Mask, predicted_HW: Mask, distance_HW: NDArray[np.uint16]) -> None:
        """Each pixel goes to the narrowest trimap it is in, and these are summed up to the wider ones."""
        near_HW = (distance_HW <= TRIMAP_RADII[-1]) & (truth_HW != IGNORE)
        ring_N = np.searchsorted(TRIMAP_RADII, distance_HW[near_HW])
        places_N = (ring_N * self.num_classes + truth_HW[near_HW]) * self.num_classes + predicted_HW[near_HW]
        counts_RKK = np.bincount(places_N, minlength=self.trimap_RKK.size).reshape(self.trimap_RKK.shape)
        self.trimap_RKK += counts_RKK.cumsum(axis=0)

    def _add_bands(
        self,
        truth_HW: Mask,
        predicted_HW: Mask,
        distances: tuple[NDArray[np.uint16], NDArray[np.uint16]],
        widths: list[int],
    ) -> None:
        edge_HW = edge_distance((truth_HW.shape[0], truth_HW.shape[1]))
        true_HW, said_HW = (np.minimum(distance_HW, edge_HW) for distance_HW in distances)
        agrees_HW = truth_HW == predicted_HW
        for index, width in enumerate(widths):
            in_true_HW, in_said_HW = true_HW <= width, said_HW <= width
            shared_K = _counts(truth_HW[in_true_HW & in_said_HW & agrees_HW], self.num_classes)
            in_one_K = _counts(truth_HW[in_true_HW], self.num_classes)
            in_one_K += _counts(predicted_HW[in_said_HW], self.num_classes)
            self.shared_DK[index] += shared_K
            self.joined_DK[index] += in_one_K - shared_K

    def boundary_iou(self, width: Width) -> NDArray[np.float64]:
        """(K,) of the whole split, 0 to 1; NaN for a class that neither truth nor prediction contains."""
        shared_K, joined_K = (table_DK[WIDTHS.index(width)] for table_DK in (self.shared_DK, self.joined_DK))
        iou_K: NDArray[np.float64] = np.divide(
            shared_K, joined_K, out=np.full(self.num_classes, np.nan), where=joined_K > 0
        )
        return iou_K

    def class_f1(self) -> NDArray[np.float64]:
        """(K,) Boundary F1, each class's mean over the images that it is in; NaN where it is in none."""
        return np.array([mean_of_known(column) for column in np.reshape(self.f1_K, (-1, self.num_classes)).T])

    def class_rand(self) -> NDArray[np.float64]:
        """(K,) Rand score of a class's pieces, the mean over the images; NaN where there is none."""
        return np.array([mean_of_known(column) for column in np.reshape(self.rand_K, (-1, self.num_classes)).T])

    def scores(self) -> dict[str, float]:
        """All means by name, 1 is best: `boundary_iou_3px`, `boundary_f1`, `trimap_miou_4px` and so on."""
        of_images = [mean_of_known(f1_K) for f1_K in self.f1_K]
        return {
            **{f"boundary_iou_{width}": mean_of_known(self.boundary_iou(width)) for width in WIDTHS},
            "boundary_f1": mean_of_known(np.array(of_images)),
            **{
                f"trimap_miou_{radius}px": mean_of_known(class_iou(matrix_KK))
                for radius, matrix_KK in zip(TRIMAP_RADII, self.trimap_RKK, strict=True)
            },
        }


def boundary_f1(
    truth_HW: Mask, predicted_HW: Mask, *, tolerance: float, present_2K: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Harmonic mean of the shares of either contour that has the other one no farther than the tolerance.

    Args:
        truth_HW: the class at the pixels of contours, `IGNORE` elsewhere.
        predicted_HW: the same.
        tolerance: pixels, Euclidean.
        present_2K: which classes the truth has, and which the prediction.

    Returns:
        (K,) 0 to 1; NaN for classes that neither has, 0 for those that one has. 1 where both have the class and neither
        its contour: it fills all that counts.
    """
    num_classes = present_2K.shape[1]
    (true_N3, found_true_N), (said_N3, found_said_N) = _matched(truth_HW, predicted_HW, tolerance)
    counts = [
        np.bincount(points_N3[chosen_N, 0], minlength=num_classes).astype(float)
        for points_N3, chosen_N in (
            (true_N3, found_true_N),
            (true_N3, slice(None)),
            (said_N3, found_said_N),
            (said_N3, slice(None)),
        )
    ]
    found_true_K, true_K, found_said_K, said_K = counts
    with np.errstate(invalid="ignore"):
        recall_K, precision_K = found_true_K / true_K, found_said_K / said_K
        f1_K = 2 * precision_K * recall_K / (precision_K + recall_K)
    f1_K[(found_true_K == 0) | (found_said_K == 0)] = 0
    f1_K[(true_K == 0) & (said_K == 0) & present_2K.all(axis=0)] = 1
    f1_K[~present_2K.any(axis=0)] = np.nan
    result_K: NDArray[np.float64] = f1_K
    return result_K


def _matched(first_HW: Mask, second_HW: Mask, tolerance: float) -> list[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Of both contours the pixels (N, 3): class, row, column; and which have one of their class in the other, near."""
    # Classes lie in layers too far apart for a neighbour to be in another one.
    gap = math.ceil(tolerance) + 2
    contours = [
        np.column_stack([contour_HW[contour_HW != IGNORE], *np.nonzero(contour_HW != IGNORE)]).astype(np.intp)
        for contour_HW in (first_HW, second_HW)
    ]
    first_N3, second_N3 = (points_N3 * (gap, 1, 1) for points_N3 in contours)
    pairs = zip(contours, ((first_N3, second_N3), (second_N3, first_N3)), strict=True)
    return [(points_N3, _is_near(of_N3, to_N3, tolerance)) for points_N3, (of_N3, to_N3) in pairs]


def _is_near(points_N3: NDArray[np.intp], others_N3: NDArray[np.intp], tolerance: float) -> NDArray[np.bool_]:
    if not len(points_N3) or not len(others_N3):
        return np.zeros(len(points_N3), dtype=bool)
    # The tree's bound is not included.
    distance_N, _ = cKDTree(others_N3).query(points_N3, distance_upper_bound=tolerance + 1e-6)
    near_N: NDArray[np.bool_] = np.isfinite(distance_N)
    return near_N


def rand_score(truth_HW: NDArray[np.bool_], predicted_HW: NDArray[np.bool_]) -> float:
    """How well the truth's pieces are told apart: F-score over pairs of pixels of the truth's pieces, 0 to 1.

    A piece is connected over the four sides of its pixels, so that a line one pixel wide parts two of them. The pixels
    that the prediction has outside its pieces count as one more piece.

    Args:
        truth_HW: where the objects are.
        predicted_HW: where they are said to be.

    Returns:
        The score; NaN where the truth has no two pixels.
    """
    if np.count_nonzero(truth_HW) < 2:
        return math.nan
    truth_label_HW, predicted_label_HW = (label(part_HW, connectivity=1) for part_HW in (truth_HW, predicted_HW))
    with np.errstate(invalid="ignore", divide="ignore"):
        error, _, _ = adapted_rand_error(truth_label_HW, predicted_label_HW)
    return 1 - float(error)


def _counts(mask: Mask, num_classes: int) -> NDArray[np.int64]:
    return np.bincount(mask.ravel(), minlength=IGNORE + 1)[:num_classes].astype(np.int64)
