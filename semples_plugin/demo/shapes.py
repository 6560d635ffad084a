"""What the scenes of the demo are made of: eight objects, their contexts, and backgrounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]
Parts = list[tuple[Mask, Colour]]
"""Parts of an object, as wheels and windows, in the order in which they are drawn."""

IMAGE_SIZE = 64
ROWS, COLUMNS = (grid.astype(np.float32) for grid in np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE])


def turned(angle: float, column: float = 0.0, row: float = 0.0) -> tuple[Floats, Floats]:
    """Pixel coordinates (x, y), each [64, 64], relative to a point and turned by an angle in radians."""
    dx, dy = COLUMNS - np.float32(column), ROWS - np.float32(row)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * dx + sin * dy, cos * dy - sin * dx


# Objects, in coordinates of their own: [-1.5, 1.5] in each direction, with y downwards.


def _box(x: Floats, y: Floats, left: float, right: float, top: float, bottom: float) -> Mask:
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _ellipse(x: Floats, y: Floats, cx: float, cy: float, rx: float, ry: float) -> Mask:
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


def _train(x: Floats, y: Floats) -> Parts:
    body = _box(x, y, -1.15, 1.15, -0.5, 0.4) & (x + y > -1.35)
    wheels = _ellipse(np.abs(np.abs(x) - 0.6), y, 0.2, 0.45, 0.17, 0.17)
    windows = _box(x, y, -0.95, 1.0, -0.3, 0.0) & (np.mod(x + 0.95, 0.4) < 0.26)
    return [
        (wheels, (35, 35, 40)),
        (body, (205, 35, 45)),
        (body & (y > 0.14) & (y < 0.26), (250, 205, 60)),
        (windows, (205, 235, 250)),
    ]


def _boat(x: Floats, y: Floats) -> Parts:
    hull = (y > 0.3) & (y < 0.85) & (np.abs(x) < 1.25 - 0.75 * y)
    mast = _box(x, y, -0.06, 0.06, -1.1, 0.35)
    sail = (x > 0.06) & (y < 0.2) & (y > -1.05 + 1.35 * x)
    jib = (x < -0.06) & (y < 0.2) & (y > -0.8 - 1.45 * x)
    return [
        (hull, (120, 60, 30)),
        (hull & (y < 0.45), (245, 245, 240)),
        (mast, (70, 45, 30)),
        (sail, (250, 245, 225)),
        (jib, (225, 80, 50)),
    ]


def _aeroplane(x: Floats, y: Floats) -> Parts:
    fuselage = _ellipse(x, y, 0, 0, 1.25, 0.24)
    wings = (np.abs(y) < 1.1) & (np.abs(x + 0.45 * np.abs(y) - 0.1) < 0.3 - 0.12 * np.abs(y))
    tail = (np.abs(y) < 0.5) & (np.abs(x + 1.0 + 0.3 * np.abs(y)) < 0.15)
    windows = (np.abs(y) < 0.07) & (np.abs(x) < 0.9) & (np.mod(x, 0.22) < 0.12)
    return [
        (wings, (150, 155, 170)),
        (tail, (220, 60, 60)),
        (fuselage, (225, 228, 235)),
        (windows, (40, 60, 110)),
    ]


def _sheep(x: Floats, y: Floats) -> Parts:
    angle = np.arctan2(y, x)
    wool = np.hypot(x / 0.95, y / 0.65) < 1 + 0.09 * np.cos(9 * angle)
    legs = (y > 0.4) & (y < 1.0) & (np.abs(np.abs(np.abs(x) - 0.45) - 0.12) < 0.07)
    head = _ellipse(x, y, 0.98, -0.25, 0.32, 0.26)
    curls = wool & (np.sin(11 * x) * np.sin(11 * y) > 0.45)
    return [(legs, (40, 35, 35)), (wool, (245, 240, 225)), (curls, (195, 185, 170)), (head, (45, 40, 40))]


def _car(x: Floats, y: Floats) -> Parts:
    body = _box(x, y, -1.2, 1.2, -0.05, 0.45)
    cabin = (y > -0.5) & (y < 0.0) & (np.abs(x + 0.05) < 0.9 + 0.5 * y)
    glass = (y > -0.38) & (y < -0.05) & (np.abs(np.abs(x + 0.05) - 0.3) < 0.24)
    wheels = _ellipse(np.abs(x), y, 0.68, 0.45, 0.27, 0.27)
    hubs = _ellipse(np.abs(x), y, 0.68, 0.45, 0.11, 0.11)
    lamp = _box(x, y, 1.0, 1.2, 0.05, 0.2)
    return [
        (body, (40, 75, 225)),
        (cabin, (40, 75, 225)),
        (glass, (195, 230, 245)),
        (lamp, (255, 240, 120)),
        (wheels, (25, 25, 30)),
        (hubs, (200, 200, 205)),
    ]


def _bird(x: Floats, y: Floats) -> Parts:
    body = _ellipse(x, y, 0, 0.1, 0.72, 0.45)
    head = _ellipse(x, y, 0.68, -0.38, 0.33, 0.33)
    beak = (x > 0.95) & (np.abs(y + 0.35) < 0.6 * (1.3 - x))
    tail = (x < -0.45) & (x > -1.25) & (np.abs(y - 0.05 + 0.35 * (x + 0.5)) < 0.2)
    wing = _ellipse(x, y, -0.15, 0.0, 0.42, 0.26)
    eye = _ellipse(x, y, 0.78, -0.45, 0.1, 0.1)
    return [
        (tail, (20, 120, 70)),
        (body, (35, 190, 95)),
        (head, (35, 190, 95)),
        (wing, (235, 60, 60)),
        (beak, (255, 210, 40)),
        (eye, (20, 20, 20)),
    ]


def _camel(x: Floats, y: Floats) -> Parts:
    body = _ellipse(x, y, 0, 0.05, 0.8, 0.32)
    humps = _ellipse(np.abs(x), y, 0.36, -0.2, 0.27, 0.42)
    legs = (y > 0.1) & (y < 1.0) & (np.abs(np.abs(np.abs(x) - 0.5) - 0.12) < 0.08)
    neck = (y > -0.75) & (y < 0.2) & (np.abs(x - 0.85 + 0.3 * y) < 0.13)
    head = _ellipse(x, y, 1.15, -0.72, 0.3, 0.16)
    saddle = (body | humps) & (np.abs(x) < 0.3) & (y < 0.1)
    fur, cloth = (140, 90, 50), (200, 50, 110)
    return [(legs, (110, 70, 40)), (body, fur), (humps, fur), (neck, fur), (head, fur), (saddle, cloth)]


def _butterfly(x: Floats, y: Floats) -> Parts:
    side = np.abs(x)
    upper, lower = _ellipse(side, y, 0.55, -0.35, 0.5, 0.48), _ellipse(side, y, 0.42, 0.45, 0.36, 0.38)
    inner = _ellipse(side, y, 0.5, -0.33, 0.36, 0.33) | _ellipse(side, y, 0.4, 0.43, 0.24, 0.25)
    spots = _ellipse(side, y, 0.6, -0.38, 0.13, 0.13) | _ellipse(side, y, 0.42, 0.47, 0.1, 0.1)
    body = _ellipse(x, y, 0, 0, 0.12, 0.75)
    return [
        (upper | lower, (20, 20, 45)),
        (inner, (40, 210, 235)),
        (spots, (255, 255, 255)),
        (body, (20, 20, 45)),
    ]


# Contexts and generic backgrounds: a texture over the whole image, which the caller cuts to a blob.


def _smooth_noise(rng: Generator, rows: int, columns: int) -> Floats:
    """Noise in [0, 1] with rows x columns grains; float32 [64, 64]."""
    grains = rng.random((rows, columns), np.float32)
    return np.asarray(cv2.resize(grains, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR))


def _blend(low: Colour, high: Colour, share: Floats | Mask) -> Floats:
    """Colours [64, 64, 3] between two, by a share in [0, 1]."""
    weights = share.astype(np.float32)[..., None]
    return np.asarray(low, np.float32) * (1 - weights) + np.asarray(high, np.float32) * weights


def _rails(x: Floats, y: Floats, rng: Generator) -> Floats:
    texture = _blend((100, 88, 78), (150, 135, 118), _smooth_noise(rng, 32, 32))
    texture[np.mod(x, 8) < 3.5] = (78, 48, 30)
    texture[np.mod(y, 13) < 2] = (205, 208, 215)
    return texture


def _water(x: Floats, y: Floats, rng: Generator) -> Floats:
    waves = 0.5 + 0.5 * np.sin(1.1 * y + 1.8 * np.sin(0.35 * x))
    return _blend((15, 85, 150), (90, 175, 215), waves**2)


def _clouds(x: Floats, y: Floats, rng: Generator) -> Floats:
    return _blend((120, 185, 245), (252, 253, 255), np.clip(4 * _smooth_noise(rng, 9, 6) - 1.7, 0, 1))


def _grass(x: Floats, y: Floats, rng: Generator) -> Floats:
    return _blend((30, 95, 25), (120, 200, 70), _smooth_noise(rng, 14, 48))


def _road(x: Floats, y: Floats, rng: Generator) -> Floats:
    texture = _blend((58, 58, 64), (88, 88, 94), _smooth_noise(rng, 48, 48))
    texture[(np.mod(y, 18) < 3) & (np.mod(x, 15) < 9)] = (245, 205, 50)
    return texture


def _leaves(x: Floats, y: Floats, rng: Generator) -> Floats:
    texture = _blend((85, 40, 20), (130, 65, 25), _smooth_noise(rng, 16, 16))
    leaf = (np.mod(x + 4 * np.floor(y / 7), 9) - 4.5) ** 2 / 14 + (np.mod(y, 7) - 3.5) ** 2 / 7 < 1
    texture[leaf] = _blend((205, 75, 20), (245, 165, 45), _smooth_noise(rng, 9, 9))[leaf]
    return texture


def _sand(x: Floats, y: Floats, rng: Generator) -> Floats:
    return _blend((205, 165, 95), (245, 220, 155), 0.5 + 0.5 * np.sin(0.8 * y + 1.5 * np.sin(0.15 * x)))


def _flowers(x: Floats, y: Floats, rng: Generator) -> Floats:
    texture = _blend((85, 45, 115), (125, 75, 155), _smooth_noise(rng, 20, 20))
    distance = np.hypot(np.mod(x + 5 * np.floor(y / 10), 10) - 5, np.mod(y, 10) - 5)
    texture[distance < 3.8] = (250, 150, 205)
    texture[distance < 1.6] = (255, 235, 110)
    return texture


def draw_generic(rng: Generator) -> Floats:
    """One of six muted textures that look like no context; RGB [64, 64, 3]."""
    x, y = turned(rng.uniform(0, np.pi), *rng.uniform(0, IMAGE_SIZE, 2))
    patterns: tuple[Callable[[], Floats | Mask], ...] = (
        lambda: _smooth_noise(rng, 3, 3),  # haze
        lambda: _smooth_noise(rng, 40, 40),  # plaster
        lambda: np.mod(x, 12) < 6,  # stripes
        lambda: (np.mod(x, 16) < 8) ^ (np.mod(y, 16) < 8),  # checks
        lambda: np.hypot(np.mod(x, 11) - 5.5, np.mod(y, 11) - 5.5) < 2.5,  # dots
        lambda: (np.mod(x, 9) < 1.5) | (np.mod(y, 9) < 1.5),  # tiles
    )
    base = rng.uniform(115, 185) + rng.uniform(-14, 14, 3)
    light, dark = base + rng.uniform(8, 18), base - rng.uniform(8, 18)
    return _blend(tuple(dark), tuple(light), patterns[rng.integers(len(patterns))]())


class _Pair(NamedTuple):
    """An object and the context that it keeps company with."""

    object_name: str
    shape: Callable[[Floats, Floats], Parts]
    context_name: str
    texture: Callable[[Floats, Floats, Generator], Floats]


_CATALOGUE = (
    _Pair("train", _train, "rails", _rails),
    _Pair("boat", _boat, "water", _water),
    _Pair("aeroplane", _aeroplane, "clouds", _clouds),
    _Pair("sheep", _sheep, "grass", _grass),
    _Pair("car", _car, "road", _road),
    _Pair("bird", _bird, "leaves", _leaves),
    _Pair("camel", _camel, "sand", _sand),
    _Pair("butterfly", _butterfly, "flowers", _flowers),
)
OBJECTS = tuple(pair.object_name for pair in _CATALOGUE)
CONTEXTS = tuple(pair.context_name for pair in _CATALOGUE)
OBJECT_SHAPES = tuple(pair.shape for pair in _CATALOGUE)
CONTEXT_TEXTURES = tuple(pair.texture for pair in _CATALOGUE)
