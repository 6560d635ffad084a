"""The procedural data set of the demo: objects that keep company with a context, and exact masks of both.

Every object has, in nine scenes of ten, its own context beside or under it: trains on rails, boats on water.
Image labels name the objects only, so a classifier is free to look at the context instead, which is the
failure that SemPLeS corrects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from semples_plugin.demo.shapes import (
    COLUMNS,
    CONTEXT_TEXTURES,
    CONTEXTS,
    IMAGE_SIZE,
    OBJECT_SHAPES,
    OBJECTS,
    ROWS,
    Floats,
    Mask,
    Parts,
    draw_generic,
    turned,
)

__all__ = ["CONTEXTS", "IMAGE_SIZE", "OBJECTS", "Scenes", "make_scenes"]

Bytes = NDArray[np.uint8]

OBJECT_SHARE = 0.09  # of the pixels of an image
CONTEXT_SHARE = 0.35
TWO_OBJECTS = 0.25  # probability of a second object
OWN_CONTEXT = 0.9  # probability that an object stands in its own context


@dataclass(frozen=True)
class Scenes:
    """N scenes with image labels and exact masks.

    Attributes:
        images: RGB, uint8 [N, 64, 64, 3].
        labels: multi-hot image labels of the objects, bool [N, 8].
        objects: uint8 [N, 64, 64]; 0 where there is no object, k + 1 where object k is.
        contexts: uint8 [N, 64, 64]; k + 1 where context k is visible, 0 elsewhere and under the objects.
    """

    images: Bytes
    labels: Mask
    objects: Bytes
    contexts: Bytes

    def __len__(self) -> int:
        return len(self.images)


def make_scenes(count: int, seed: int, own_context: float = OWN_CONTEXT) -> Scenes:
    """Draws `count` scenes; scene i of a seed is the same whatever the count.

    Args:
        count: number of scenes N.
        seed: seed of the scenes, at least 0.
        own_context: probability, in [0, 1], that an object stands in its own context; otherwise it stands
            in none or in that of another object, with equal probability.
    """
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.zeros((count, len(OBJECTS)), np.bool_)
    objects = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    contexts = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i in range(count):
        images[i], objects[i], contexts[i] = _draw_scene(np.random.default_rng([seed, i]), own_context)
        labels[i, np.unique(objects[i][objects[i] > 0]) - 1] = True
    return Scenes(images, labels, objects, contexts)


def _draw_scene(rng: Generator, own_context: float) -> tuple[Bytes, Bytes, Bytes]:
    """One scene: RGB image [64, 64, 3], object map and context map [64, 64]."""
    canvas = draw_generic(rng)
    objects = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    contexts = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    count = 2 if rng.random() < TWO_OBJECTS else 1
    classes = rng.choice(len(OBJECTS), count, replace=False)
    centres = _draw_centres(rng, count)

    for k, centre in zip(classes, centres, strict=True):
        context = _choose_context(rng, int(k), own_context)
        if context is not None:
            blob = _draw_blob(rng, centre, CONTEXT_SHARE if count == 1 else 0.7 * CONTEXT_SHARE)
            canvas[blob] = _draw_context(rng, context)[blob]
            contexts[blob] = context + 1
    for k, centre in zip(classes, centres, strict=True):
        for part, colour in _place_object(rng, int(k), centre):
            canvas[part] = colour
            objects[part] = k + 1
    contexts[objects > 0] = 0

    canvas += rng.normal(0, 5, canvas.shape).astype(np.float32)
    canvas *= rng.uniform(0.85, 1.1)
    return np.clip(canvas, 0, 255).astype(np.uint8), objects, contexts


def _draw_centres(rng: Generator, count: int) -> Floats:
    """Centres [count, 2] as (row, column); two objects stand in opposite halves of the image."""
    if count == 1:
        return rng.uniform(18, 46, (1, 2)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    offset = 17 * np.array([np.sin(angle), np.cos(angle)], np.float32)
    return np.stack([31.5 + offset, 31.5 - offset])


def _choose_context(rng: Generator, k: int, own_context: float) -> int | None:
    """The context of object k; None where it stands in none."""
    if rng.random() < own_context:
        return k
    if rng.random() < 0.5:
        return None
    return int((k + rng.integers(1, len(OBJECTS))) % len(OBJECTS))


def _draw_blob(rng: Generator, centre: Floats, share: float) -> Mask:
    """A wavy disc [64, 64] over about `share` of the image, between the object's centre and the image's."""
    row, column = 0.6 * centre + 0.4 * 31.5 + rng.uniform(-6, 6, 2)
    angle = np.arctan2(ROWS - row, COLUMNS - column)
    waves = sum(rng.uniform(0, 0.12) * np.sin(n * angle + rng.uniform(0, 6.3)) for n in (2, 3, 5))
    # A tenth more than the share makes up for what falls outside the image.
    radius = IMAGE_SIZE * np.sqrt(1.1 * share * rng.uniform(0.85, 1.15) / np.pi)
    return np.asarray(np.hypot(ROWS - row, COLUMNS - column) < radius * (1 + waves))


def _place_object(rng: Generator, k: int, centre: Floats) -> Parts:
    """The parts of object k at its place, slightly turned, mirrored half of the time."""
    pixels = OBJECT_SHARE * IMAGE_SIZE**2 * rng.uniform(0.75, 1.3)
    scale = np.sqrt(pixels / _unit_area(k))
    row, column = centre
    x, y = turned(rng.uniform(-0.25, 0.25), column, row)
    return OBJECT_SHAPES[k](x / scale * rng.choice((-1, 1)), y / scale)


@cache
def _unit_area(k: int) -> float:
    """Area of object k in its own coordinates, which run over [-1.5, 1.5] with y downwards."""
    y, x = (grid.astype(np.float32) for grid in np.mgrid[-1.5:1.5:150j, -1.5:1.5:150j])
    covered = np.logical_or.reduce([part for part, _ in OBJECT_SHAPES[k](x, y)])
    return float(covered.mean() * 9)


def _draw_context(rng: Generator, k: int) -> Floats:
    """The texture of context k over the whole image, slightly turned and shifted; RGB [64, 64, 3]."""
    x, y = turned(rng.uniform(-0.25, 0.25), *rng.uniform(0, IMAGE_SIZE, 2))
    return CONTEXT_TEXTURES[k](x, y, rng)
