"""Seeded drawings of small parts on an inspection tray, with their exact masks.

A demo that downloads nothing still has to ask a real question of a network. So these pictures are drawn like
photographs (textured tray, one lamp, cast shadows, relief, blur, sensor noise, JPEG) and the kinds of object differ in
*shape* only: every kind takes its colour from the same distribution. The mask comes from the same stencil as the
picture, so the truth is exact to the pixel.

Sensor noise follows the usual shot-plus-read model: Foi et al., "Practical Poissonian-Gaussian noise modeling and
fitting for single-image raw-data", IEEE TIP 2008.

Array names: H rows, W columns, C channels (RGB), P points of an outline as (x, y) in pixels.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BACKGROUND, CELL, WASHER, FIBRE, STAR = range(5)
CLASS_NAMES = ("background", "cell", "washer", "fibre", "star")
PALETTE = ((38, 38, 46), (228, 87, 86), (76, 144, 220), (245, 190, 65), (84, 180, 120))
LABEL_NAMES = CLASS_NAMES[1:]

_MIN_SIDE = 32
_SUPERSAMPLE = 4
_MARGIN = 9  # pixels around an object that its shadow may reach
_DARKEST, _BRIGHTEST, _CONTRAST = 0.08, 0.95, 0.25  # gray levels an object may have, and its least distance to the tray
_SIZES = {CELL: (9.5, 16.0), WASHER: (11.5, 17.5), FIBRE: (3.8, 5.2), STAR: (11.0, 16.5)}  # radius (a fibre: width)
_SOFTNESS = {CELL: 0.30, WASHER: 0.10, FIBRE: 0.35, STAR: 0.16}  # how far the relief reaches inwards, in radii


@dataclass(frozen=True)
class _Thing:
    """One object: a filled outline with an optional hole, or (width > 0) a strand along the outline."""

    kind: int
    x: float
    y: float
    radius: float
    outline_P2: Floats
    hole_P2: Floats | None = None
    width: float = 0.0


@dataclass(frozen=True)
class _Scene:
    """What all objects of one picture share: the lamp and the colours."""

    lamp_x: float
    lamp_y: float
    shadow: float
    tray_level: float
    chroma: float


def draw_sample(rng: np.random.Generator, *, side: int = 128) -> tuple[Bytes, Bytes]:
    """Draw one picture of mixed objects and its exact mask.

    Returns the image, uint8 (side, side, 3) RGB in 0..255, and the mask, uint8 (side, side), a pixel is an index into
    `CLASS_NAMES`. Objects that are painted later cover earlier ones in both.
    """
    check_side(side)
    return _render(rng, _mixed_things(rng, side=side), side=side)


def draw_labelled(rng: np.random.Generator, *, label: int, side: int = 96) -> Bytes:
    """Draw 1 to 4 objects of one kind; `label` is an index into `LABEL_NAMES`.

    Returns the image, uint8 (side, side, 3) RGB in 0..255.
    """
    check_side(side)
    if label not in range(len(LABEL_NAMES)):
        raise ValueError(f"expected a label from 0 to {len(LABEL_NAMES) - 1}, but got {label}: see LABEL_NAMES")
    kinds = [label + 1] * int(rng.integers(1, 5))
    image_HWC, _ = _render(rng, _place(rng, kinds, side=side, scale=side / 96 * rng.uniform(0.85, 1.3)), side=side)
    return image_HWC


# --- what lies on the tray ---


def _mixed_things(rng: np.random.Generator, *, side: int) -> list[_Thing]:
    """Most pictures hold every kind; the rest of the objects are drawn freely, cells being the commonest."""
    kinds = [kind for kind in (CELL, WASHER, STAR) if rng.random() > 0.06]
    kinds += rng.choice([CELL, WASHER, STAR], size=int(rng.integers(5, 11)) - len(kinds), p=[0.5, 0.22, 0.28]).tolist()
    kinds += [FIBRE] * int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    return _place(rng, sorted(kinds), side=side, scale=side / 128)


def _place(rng: np.random.Generator, kinds: Sequence[int], *, side: int, scale: float) -> list[_Thing]:
    """Find a spot for every object, then shuffle them into painting order with the fibres mostly on top."""
    things: list[_Thing] = []
    for kind in kinds:
        size = scale * rng.uniform(*_SIZES[kind])
        x, y = _spot(rng, things, kind, size, side=side)
        things.append(_OUTLINES[kind](rng, x, y, size))
    return sorted(things, key=lambda thing: rng.random() + 0.6 * (thing.kind == FIBRE))


def _spot(rng: np.random.Generator, things: Sequence[_Thing], kind: int, radius: float, *, side: int) -> list[float]:
    """The (x, y) of the first of some random spots that is free, else of the least crowded one."""
    spots_N2 = _candidates(rng, [thing for thing in things if thing.kind == CELL == kind], radius, side=side)
    discs_M3 = np.array([(thing.x, thing.y, thing.radius) for thing in things if FIBRE not in (kind, thing.kind)])
    if not discs_M3.size:
        return list(spots_N2[0])
    distance_NM = np.linalg.norm(spots_N2[:, None] - discs_M3[None, :, :2], axis=2)
    clearance_N = (distance_NM - 0.88 * (discs_M3[:, 2] + radius)).min(axis=1)
    return list(spots_N2[np.argmax(np.minimum(clearance_N, 0.0))])


def _candidates(
    rng: np.random.Generator, neighbours: Sequence[_Thing], radius: float, *, side: int
) -> NDArray[np.float64]:
    """Random spots (24, 2): mostly around one of the neighbours, just touching it, else anywhere."""
    if not neighbours or rng.random() < 0.25:
        return rng.uniform(0.06 * side, 0.94 * side, size=(24, 2))
    host = neighbours[int(rng.integers(len(neighbours)))]
    angle_N = rng.uniform(0, math.tau, size=24)
    around_N2 = 0.92 * (host.radius + radius) * np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)
    return np.clip(np.array([host.x, host.y]) + around_N2, 0.04 * side, 0.96 * side)


def _cell(rng: np.random.Generator, x: float, y: float, radius: float) -> _Thing:
    """A deformed ellipse: low Fourier terms on the radius."""
    turn_P = np.linspace(0, math.tau, 48, endpoint=False)
    order_K1 = np.arange(2, 6)[:, None]
    swing_K1 = rng.normal(0, 0.13, size=(4, 1)) / (order_K1 - 1)
    wobble_P = 1 + (swing_K1 * np.cos(order_K1 * turn_P + rng.uniform(0, math.tau, size=(4, 1)))).sum(axis=0)
    outline_P2 = _polar(turn_P, radius * wobble_P, stretch=rng.uniform(0.78, 1.0), tilt=rng.uniform(0, math.tau))
    return _Thing(CELL, x, y, radius, outline_P2 + np.array([x, y], dtype=np.float32))


def _washer(rng: np.random.Generator, x: float, y: float, radius: float) -> _Thing:
    """A ring seen a little from the side; the tray shows through its hole."""
    turn_P = np.linspace(0, math.tau, 48, endpoint=False)
    stretch, tilt = rng.uniform(0.75, 1.0), rng.uniform(0, math.tau)
    ring_P2 = _polar(turn_P, np.full(48, radius), stretch=stretch, tilt=tilt)
    centre = np.array([x, y], dtype=np.float32)
    hole_P2 = np.float32(rng.uniform(0.36, 0.52)) * ring_P2
    return _Thing(WASHER, x, y, radius, ring_P2 + centre, hole_P2=hole_P2 + centre)


def _star(rng: np.random.Generator, x: float, y: float, radius: float) -> _Thing:
    """A star with 5 to 7 spikes, or a gear with 7 to 9 blunt teeth."""
    gear = rng.random() < 0.4
    num_teeth = int(rng.integers(7, 10)) if gear else int(rng.integers(5, 8))
    inner = rng.uniform(0.62, 0.70) if gear else rng.uniform(0.42, 0.56)
    profile = np.array([1.0, 1.0, inner, inner]) if gear else np.array([1.0, inner])
    turn_P = np.linspace(0, math.tau, num_teeth * len(profile), endpoint=False)
    radius_P = radius * np.tile(profile, num_teeth) * rng.normal(1, 0.03, size=turn_P.size)
    outline_P2 = _polar(turn_P, radius_P, stretch=rng.uniform(0.88, 1.0), tilt=rng.uniform(0, math.tau))
    return _Thing(STAR, x, y, radius, outline_P2 + np.array([x, y], dtype=np.float32))


def _fibre(rng: np.random.Generator, x: float, y: float, width: float) -> _Thing:
    """A thin strand whose heading swings slowly as it goes."""
    way_P = np.linspace(-0.5, 0.5, 48)
    bend, swing, phase = rng.normal(0, 1.1), rng.uniform(0.2, 0.9), rng.uniform(0, math.tau)
    waves = math.tau * rng.uniform(0.8, 1.8)
    heading_P = rng.uniform(0, math.tau) + bend * way_P + swing * np.sin(waves * way_P + phase)
    step = width * rng.uniform(16, 33) / len(way_P)
    path_P2 = step * np.stack([np.cos(heading_P), np.sin(heading_P)], axis=1).cumsum(axis=0)
    outline_P2 = (path_P2 - path_P2.mean(axis=0) + np.array([x, y])).astype(np.float32)
    width = max(3.0, width)
    return _Thing(FIBRE, x, y, width, outline_P2, width=width)


_OUTLINES: dict[int, Callable[[np.random.Generator, float, float, float], _Thing]] = {
    CELL: _cell,
    WASHER: _washer,
    FIBRE: _fibre,
    STAR: _star,
}


def _polar(turn_P: NDArray[np.float64], radius_P: NDArray[np.float64], *, stretch: float, tilt: float) -> Floats:
    """Points around the origin from angles and radii, squeezed by `stretch` along one axis and turned by `tilt`."""
    along_P, across_P = radius_P * np.cos(turn_P), stretch * radius_P * np.sin(turn_P)
    x_P = along_P * math.cos(tilt) - across_P * math.sin(tilt)
    y_P = along_P * math.sin(tilt) + across_P * math.cos(tilt)
    return np.stack([x_P, y_P], axis=1).astype(np.float32)


# --- painting ---


def _render(rng: np.random.Generator, things: Sequence[_Thing], *, side: int) -> tuple[Bytes, Bytes]:
    scene = _scene(rng)
    image_HWC = _tray(rng, scene, side=side)
    mask_HW = np.zeros((side, side), dtype=np.uint8)
    for thing in things:
        _paint(rng, scene, thing, image_HWC, mask_HW)
    return _photograph(rng, scene, image_HWC), mask_HW


def _scene(rng: np.random.Generator) -> _Scene:
    angle = rng.uniform(0, math.tau)
    return _Scene(
        lamp_x=math.cos(angle),
        lamp_y=math.sin(angle),
        shadow=rng.uniform(0.2, 0.45),
        tray_level=rng.uniform(0.22, 0.72),
        chroma=rng.uniform(0.02, 0.22),
    )


def _tray(rng: np.random.Generator, scene: _Scene, *, side: int) -> Floats:
    """The bare tray, float32 (side, side, 3): clouds in three sizes, faint brush marks, fine grain, specks of dust."""
    clouds_HW = sum((_noise(rng, (n, n), side=side) / n for n in (3, 6, 12)), start=_dust(rng, side=side))
    marks = (side // 2, 3) if rng.random() < 0.5 else (3, side // 2)
    brushed_HW = rng.uniform(0.0, 0.03) * _noise(rng, marks, side=side)
    grain_HW = rng.normal(0, rng.uniform(0.01, 0.03), size=(side, side)).astype(np.float32)
    texture_HW = 1 + rng.uniform(0.15, 0.35) * clouds_HW + brushed_HW + grain_HW
    tint_HWC = rng.uniform(-0.02, 0.02, size=3) * _noise(rng, (3, 3), side=side)[..., None]
    return (_colour(rng, scene.tray_level, 0.6 * scene.chroma) * texture_HW[..., None] + tint_HWC).astype(np.float32)


def _dust(rng: np.random.Generator, *, side: int) -> Floats:
    """Dark and light specks a pixel or two wide, which no mask mentions; float32 (side, side) around 0."""
    specks_HW = np.full((side, side), 128, dtype=np.uint8)
    row_N, column_N = rng.integers(0, side, size=(2, int(rng.integers(0, 30))))
    specks_HW[row_N, column_N] = rng.choice([0, 0, 255], size=len(row_N))
    blurred = Image.fromarray(specks_HW).filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 0.9)))
    return (np.asarray(blurred, dtype=np.float32) / 32 - 4).astype(np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], *, side: int) -> Floats:
    """Smooth noise of unit size, float32 (side, side), from a coarse grid of `shape`."""
    grid = Image.fromarray(rng.normal(size=shape).astype(np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def _colour(rng: np.random.Generator, level: float, chroma: float) -> Floats:
    """A gray of `level` pushed towards a random hue, float32 (3,)."""
    hue = rng.uniform(0, math.tau) + np.array([0.0, 1.0, 2.0]) * math.tau / 3
    return np.asarray(level * (1 + chroma * np.cos(hue)), dtype=np.float32)


def _object_level(rng: np.random.Generator, tray_level: float, under_P: Floats) -> float:
    """A gray level that differs from the tray by `_CONTRAST`, and where it can be from the levels it will lie on."""
    below = max(tray_level - _CONTRAST - _DARKEST, 0.0)
    above = max(_BRIGHTEST - tray_level - _CONTRAST, 0.0)
    draws = [rng.uniform(0, below + above) for _ in range(3)]
    levels = [_DARKEST + draw if draw < below else tray_level + _CONTRAST + draw - below for draw in draws]
    return max(levels, key=lambda level: float(np.minimum(np.abs(under_P - level), _CONTRAST).sum()))


def _paint(rng: np.random.Generator, scene: _Scene, thing: _Thing, image_HWC: Floats, mask_HW: Bytes) -> None:
    """Put one object, with its shadow, on the image and its class in the mask, both in place."""
    left, top, right, bottom = box = _box(thing, side=len(mask_HW))
    stencil = _stencil(thing, box)
    cover_HW = np.asarray(stencil, dtype=np.float32) / 255
    under_HWC = image_HWC[top:bottom, left:right]
    under_HWC *= 1 - _shadow(rng, scene, stencil)[..., None]
    inside_HW = cover_HW >= 0.5
    level = _object_level(rng, scene.tray_level, under_HWC[inside_HW].mean(axis=1))
    lit_HW, shine_HW = _surface(rng, scene, thing, stencil, box)
    surface_HWC = _colour(rng, level, scene.chroma) * lit_HW[..., None] + shine_HW[..., None]
    opacity = rng.uniform(0.82, 1.0) if thing.kind == CELL else 1.0
    under_HWC += opacity * cover_HW[..., None] * (surface_HWC - under_HWC)
    mask_HW[top:bottom, left:right][inside_HW] = thing.kind


def _box(thing: _Thing, *, side: int) -> tuple[int, int, int, int]:
    """The pixels an object may touch: left, top, right, bottom inside the picture."""
    reach = _MARGIN + thing.width
    left, top = np.clip(np.floor(thing.outline_P2.min(axis=0) - reach), 0, side - 1).astype(int)
    right, bottom = np.clip(np.ceil(thing.outline_P2.max(axis=0) + reach), 1, side).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _stencil(thing: _Thing, box: tuple[int, int, int, int]) -> Image.Image:
    """How much of each pixel of the box the object covers: a gray image, 0..255."""
    left, top, right, bottom = box
    canvas = Image.new("L", ((right - left) * _SUPERSAMPLE, (bottom - top) * _SUPERSAMPLE))
    draw = ImageDraw.Draw(canvas)
    origin = np.array([left, top], dtype=np.float32)
    points = ((thing.outline_P2 - origin) * _SUPERSAMPLE).ravel().tolist()
    if thing.width:
        draw.line(points, fill=255, width=round(thing.width * _SUPERSAMPLE))
        for x, y in (points[:2], points[-2:]):
            draw.circle((x, y), thing.width * _SUPERSAMPLE / 2, fill=255)
    else:
        draw.polygon(points, fill=255)
    if thing.hole_P2 is not None:
        draw.polygon(((thing.hole_P2 - origin) * _SUPERSAMPLE).ravel().tolist(), fill=0)
    return canvas.reduce(_SUPERSAMPLE)


def _shadow(rng: np.random.Generator, scene: _Scene, stencil: Image.Image) -> Floats:
    """Share of light the object takes from what lies around it, float32 (h, w): the stencil, moved away and blurred."""
    reach = rng.uniform(1.5, 4.0)
    moved = Image.new("L", stencil.size)
    moved.paste(stencil, (round(-reach * scene.lamp_x), round(-reach * scene.lamp_y)))
    return scene.shadow / 255 * np.asarray(moved.filter(ImageFilter.GaussianBlur(0.5 * reach)), dtype=np.float32)


# --- surfaces ---


def _surface(
    rng: np.random.Generator, scene: _Scene, thing: _Thing, stencil: Image.Image, box: tuple[int, int, int, int]
) -> tuple[Floats, Floats]:
    """What to multiply the object's colour with (pattern, relief under the lamp) and to add to it (a highlight)."""
    softness = max(0.8, _SOFTNESS[thing.kind] * thing.radius)
    height_HW = np.asarray(stencil.filter(ImageFilter.GaussianBlur(softness)), dtype=np.float32) / 255
    slope_y_HW, slope_x_HW = np.gradient(height_HW)
    facing_HW = -softness * (slope_x_HW * scene.lamp_x + slope_y_HW * scene.lamp_y)
    left, top, right, bottom = box
    y_HW, x_HW = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
    pattern_HW = _PATTERNS[thing.kind](rng, (x_HW - thing.x) / thing.radius, (y_HW - thing.y) / thing.radius)
    shine_HW = rng.uniform(0.2, 1.2) * np.maximum(facing_HW, 0) ** 2
    grain_HW = rng.uniform(0.01, 0.05) * rng.standard_normal(pattern_HW.shape, dtype=np.float32)
    lit_HW = (pattern_HW + grain_HW) * (1 + rng.uniform(0.6, 1.1) * facing_HW)
    return np.asarray(lit_HW, dtype=np.float32), np.asarray(shine_HW, dtype=np.float32)


def _nucleus(rng: np.random.Generator, x_HW: Floats, y_HW: Floats) -> Floats:
    """A cell: a darker or lighter nucleus off the centre, a body that thins towards the rim."""
    nucleus_x, nucleus_y = rng.uniform(-0.3, 0.3, size=2)
    nucleus_HW = np.exp(-((((x_HW - nucleus_x) ** 2 + (y_HW - nucleus_y) ** 2) / rng.uniform(0.05, 0.13)) ** 2))
    depth = rng.choice([-0.35, 0.3]) * rng.uniform(0.6, 1.2)
    return np.asarray(1 + depth * nucleus_HW - 0.12 * np.minimum(x_HW**2 + y_HW**2, 1.5), dtype=np.float32)


def _brushed_ring(rng: np.random.Generator, x_HW: Floats, y_HW: Floats) -> Floats:
    """A washer: two bright and two dark sectors, as turned metal shows."""
    return np.asarray(1 + 0.14 * np.cos(2 * np.arctan2(y_HW, x_HW) + rng.uniform(0, math.tau)), dtype=np.float32)


def _stripes(rng: np.random.Generator, x_HW: Floats, y_HW: Floats) -> Floats:
    """A fibre: a faint twist."""
    return np.asarray(1 + 0.06 * np.cos(3 * x_HW + rng.uniform(2, 4) * y_HW), dtype=np.float32)


def _slope(rng: np.random.Generator, x_HW: Floats, y_HW: Floats) -> Floats:
    """A star: a facet that darkens to one side."""
    angle = rng.uniform(0, math.tau)
    return np.asarray(1 + 0.13 * (x_HW * math.cos(angle) + y_HW * math.sin(angle)), dtype=np.float32)


_PATTERNS: dict[int, Callable[[np.random.Generator, Floats, Floats], Floats]] = {
    CELL: _nucleus,
    WASHER: _brushed_ring,
    FIBRE: _stripes,
    STAR: _slope,
}


# --- the camera ---


def _photograph(rng: np.random.Generator, scene: _Scene, image_HWC: Floats) -> Bytes:
    """Light falling off over the tray, vignette, white balance, contrast, blur, noise, JPEG; uint8 (H, W, 3)."""
    lit_HWC = image_HWC * _illumination(rng, scene, side=len(image_HWC))[..., None] * rng.normal(1, 0.05, size=3)
    contrasted_HWC = 0.45 + rng.uniform(0.85, 1.15) * (lit_HWC - 0.45) + rng.uniform(-0.04, 0.04)
    sharp = Image.fromarray(_to_bytes(contrasted_HWC))
    blurred_HWC = np.asarray(sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0.25, 0.5))), dtype=np.float32) / 255
    shot, read = rng.uniform(0.0002, 0.0008), rng.uniform(0.004, 0.01)
    sigma_HWC = np.sqrt(shot * blurred_HWC + read**2)
    noisy_HWC = blurred_HWC + sigma_HWC * rng.standard_normal(blurred_HWC.shape, dtype=np.float32)
    return _through_jpeg(_to_bytes(noisy_HWC), quality=int(rng.integers(86, 97)))


def _illumination(rng: np.random.Generator, scene: _Scene, *, side: int) -> Floats:
    y_HW, x_HW = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    slope, vignette = rng.uniform(0.05, 0.22), rng.uniform(0.04, 0.16)
    falloff_HW = slope * (x_HW * scene.lamp_x + y_HW * scene.lamp_y) - vignette * (x_HW**2 + y_HW**2)
    return np.asarray(1.05 + falloff_HW, dtype=np.float32)


def _to_bytes(image_HWC: NDArray[np.floating]) -> Bytes:
    return np.asarray(np.clip(np.rint(255 * image_HWC), 0, 255), dtype=np.uint8)


def _through_jpeg(image_HWC: Bytes, *, quality: int) -> Bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(buffer))


def check_side(side: int) -> None:
    """Refuse, by a ValueError, a picture too small to draw in."""
    if side < _MIN_SIDE:
        raise ValueError(f"expected a side of at least {_MIN_SIDE} pixels, but got {side}: ask for a larger picture")
