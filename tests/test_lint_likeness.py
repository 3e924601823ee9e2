import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.fft import dct

from training.lint import likeness
from training.lint.likeness import BITS, NEAR_BITS, NEAR_CORRELATION, SIDE


def _picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Blotches of colour with fine grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain_HWC = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain_HWC, 0, 255).astype(np.uint8))


def _prints(*pictures: Image.Image) -> likeness.Prints:
    return likeness.prints([likeness.thumbnail(np.asarray(each)) for each in pictures])


def _noise(count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    return list(np.random.default_rng(seed).uniform(0, 255, (count, SIDE, SIDE)).astype(np.float32))


def test_a_thumbnail_holds_the_means_of_areas() -> None:
    gray_HW = np.random.default_rng(0).integers(0, 256, (96, 160), dtype=np.uint8)
    expected_SS = gray_HW.reshape(SIDE, 3, SIDE, 5).mean(axis=(1, 3))
    np.testing.assert_allclose(likeness.thumbnail(np.repeat(gray_HW[..., None], 3, axis=2)), expected_SS, atol=1)


def test_the_hash_equals_two_cosine_transforms_by_hand() -> None:
    (thumbnail_SS,) = _noise(1)
    low = dct(dct(thumbnail_SS, axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8].ravel()[1:]
    found = likeness.perceptual_hash(thumbnail_SS)
    assert found.shape == (BITS,)
    assert found.tolist() == [bool(value > np.median(low)) for value in low]


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture.resize((75, 61), Image.Resampling.BICUBIC),
        lambda picture: picture.resize((400, 300), Image.Resampling.BILINEAR),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
        lambda picture: picture.convert("L").convert("RGB"),
    ],
)
def test_a_changed_copy_is_a_near_duplicate_and_another_picture_is_none(change: object) -> None:
    assert callable(change)
    pictures = [_picture(seed) for seed in range(6)]
    found = likeness.near_duplicates(_prints(*pictures), _prints(change(pictures[4])))
    assert found.indices_P2.tolist() == [[4, 0]]
    assert found.bits_P[0] <= 4 and found.correlation_P[0] > 0.98


def test_near_duplicates_equal_all_pairs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "BLOCK", 4)
    first, second = _noise(10), _noise(7, seed=1)
    for index in (0, 3, 6):
        second[index] = first[9 - index] + np.float32(10) * second[index] / 255
    found = likeness.near_duplicates(likeness.prints(first), likeness.prints(second))
    expected = []
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            bits = sum(
                a != b for a, b in zip(likeness.perceptual_hash(one), likeness.perceptual_hash(other), strict=True)
            )
            correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
            if bits <= NEAR_BITS and correlation >= NEAR_CORRELATION:
                expected.append((i, j, bits, pytest.approx(correlation, abs=1e-4)))
    pairs = zip(found.indices_P2.tolist(), found.bits_P.tolist(), found.correlation_P.tolist(), strict=True)
    assert [(i, j, bits, correlation) for (i, j), bits, correlation in pairs] == expected
    assert [(i, j) for i, j, _, _ in expected] == [(3, 6), (6, 3), (9, 0)]


def test_pictures_without_contrast_are_like_nothing() -> None:
    flat = np.full((SIDE, SIDE), 90, dtype=np.float32)
    prints = likeness.prints([flat, flat + 1])
    assert len(likeness.near_duplicates(prints, prints).indices_P2) == 0


def test_nothing_has_no_likeness() -> None:
    none = likeness.prints([])
    assert len(likeness.near_duplicates(none, none).indices_P2) == 0
    assert likeness.scenes([], none).tolist() == []
    assert likeness.order([], none) == 0.5


@pytest.mark.parametrize(
    ("stem", "expected"),
    [("0016E5_07959", ("0016E5_", 7959)), ("12", ("", 12)), ("frame", None), ("a1_b", None)],
)
def test_a_name_that_ends_in_a_number(stem: str, expected: tuple[str, int] | None) -> None:
    assert likeness.numbered(stem) == expected


def test_neighbours_follow_by_number_within_a_series() -> None:
    assert likeness.neighbours(["b_10", "b_9", "a_1", "c", "b_2"]).tolist() == [[4, 1], [1, 0]]


def test_scenes_join_near_duplicates_and_neighbours_that_are_a_clip() -> None:
    wide = _picture(0, width=700)
    clip = [wide.crop((start, 0, start + 160, 120)) for start in range(0, 60, 6)]
    other = _picture(1)
    pictures = [*clip, other, other.resize((80, 60)), _picture(2)]
    stems = [f"clip_{index}" for index in range(10)] + ["x", "y", "z"]
    scenes = likeness.scenes(stems, _prints(*pictures)).tolist()
    assert len(set(scenes)) == 3
    assert len(set(scenes[:10])) == 1 and scenes[10] == scenes[11] != scenes[12]


def test_order_is_near_one_in_a_recording_and_one_half_by_chance() -> None:
    wide = _picture(0, width=1600)
    frames = _prints(*(wide.crop((start, 0, start + 160, 120)) for start in range(0, 1400, 35)))
    stems = [f"f{index:02d}" for index in range(40)]
    assert likeness.order(stems, frames) > 0.9
    shuffled = [stems[index] for index in np.random.default_rng(0).permutation(40)]
    assert 0.3 < likeness.order(shuffled, frames) < 0.7
