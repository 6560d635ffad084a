"""Objects of the ground truth and what may make them hard: size, image border, contrast, classes beside them.

An object is here a region: all pixels of one class in one image. Masks of semantic segmentation have no instances, and
connected components would be a poor substitute: something in front cuts one object in two, neighbours of one class grow
together, and a false positive belongs to none of several components, so that they have no IoU of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.data.images import IGNORED, find_image, find_mask, read_image, read_mask
from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.utils.parallel import in_parallel

OBJECT = "all pixels of one class in one image"
CONTOUR = 5  # width in pixels of the ignored contour that VOC's masks draw around objects
GAP = 2  # pixels that SBD's masks leave between an object and the border that cuts it
RING = 0.05  # width of an object's surroundings, in diagonals of the image


@dataclass(frozen=True)
class Regions:
    """The R objects of the ground truth of N images, in the images' order.

    Attributes:
        names: of the N images.
        image: `[R]`, position of its image.
        label: `[R]`, k + 1 for class k.
        area: `[R]`, its share of the image's pixels, in (0, 1], so that an image's scale doesn't matter.
        border: `[R]`, whether it touches the image's border, see `labels_at_border`.
        contrast: `[R]`, see `colour_contrast`, in units of CIELAB; NaN where it has no surroundings, or its image
            couldn't be read; None where no images were given.
        classes: `[R]`, number of classes in its image, without background.
        failed: images that could not be measured, and why; where it is the photograph alone, their objects count
            everywhere but in `contrast`.
    """

    names: tuple[str, ...]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    area: NDArray[np.float64]
    border: NDArray[np.bool_]
    contrast: NDArray[np.float64] | None
    classes: NDArray[np.int64]
    failed: dict[str, str]


class _Task(NamedTuple):
    """An image to measure: its name and the labels of its objects."""

    name: str
    labels: tuple[int, ...]


class _Measured(NamedTuple):
    """What one image says of its objects: its pixels, and a value of each object; an error leaves the rest empty."""

    pixels: int
    border: tuple[bool, ...]
    contrast: tuple[float, ...]
    error: str


def find_regions(
    evaluation: FolderEvaluation, images: str | Path | None = None, *, workers: int = 1, progress: bool = True
) -> Regions:
    """The objects in the ground truth of the images that were judged.

    Args:
        evaluation: of any CAMs; its ground truth is read once more.
        images: folder of the photographs, for `contrast`.
        workers: processes; more than one want a script that guards its start with `if __name__ == "__main__"`.
        progress: show a progress bar.
    """
    tasks, areas = [], []
    for name, counts in evaluation.counts.items():
        shown = (counts.classes > 0) & (counts.annotated > 0)
        tasks.append(_Task(name, tuple(counts.classes[shown].tolist())))
        areas.append(counts.annotated[shown])
    results = in_parallel(partial(_measure, evaluation.ground_truth, images), tasks, workers)
    measured = list(tqdm(results, "strata", len(tasks), unit="image", disable=not progress))

    failed = {task.name: found.error for task, found in zip(tasks, measured, strict=True) if found.error}
    usable = [i for i, found in enumerate(measured) if found.pixels]
    sizes = [len(tasks[i].labels) for i in usable]
    area = [areas[i] / measured[i].pixels for i in usable]
    contrast = [value for i in usable for value in measured[i].contrast]
    return Regions(
        names=tuple(evaluation.counts),
        image=np.repeat(np.array(usable, np.int64), sizes),
        label=np.array([label for i in usable for label in tasks[i].labels], np.int64),
        area=np.concatenate(area) if area else np.empty(0),
        border=np.array([value for i in usable for value in measured[i].border], np.bool_),
        contrast=None if images is None else np.array(contrast, np.float64),
        classes=np.repeat(np.array(sizes, np.int64), sizes),
        failed=failed,
    )


def labels_at_border(mask: NDArray[np.uint8]) -> set[int]:
    """Labels of a mask `[H, W]`, 0 and 255 apart, of objects that touch the image's border.

    They come within two pixels of it, as the masks of SBD, most of `SegmentationClassAug`, end a pixel or two before
    the border (of 554 objects on 400 photographs 137 reach the last pixel, and 130 others the last but one); or nothing
    but ignored pixels lie between, at most five, as wide as VOC's own contour.

    Examples:
        >>> mask = np.zeros((12, 12), np.uint8)
        >>> mask[5, 5], mask[5, 2], mask[8, 3], mask[8, :3] = 1, 2, 3, 255
        >>> sorted(labels_at_border(mask))
        [2, 3]
    """
    found: set[int] = set()
    for side in (mask, mask[::-1], mask.T, mask.T[::-1]):
        strip = side[: CONTOUR + 1]
        first = (strip != IGNORED).argmax(0)  # 0, where 255 is found, in lines without any other
        found.update(np.unique(side[: GAP + 1]).tolist(), np.take_along_axis(strip, first[None], 0)[0].tolist())
    return found - {0, IGNORED}


def colour_contrast(lab: NDArray[np.uint8], mask: NDArray[np.uint8], label: int) -> float:
    """How much the colours of a region differ from those around it: 0 where both are the same, black and white 100.

    The surroundings are the pixels, other objects' as well, at a distance of up to 5 % of the image's diagonal; those
    that are ignored don't count. Of each of CIELAB's channels the earth mover's distance of the two distributions is
    taken: unlike an overlap of histograms it needs no bins, in which small regions, whose histograms are sparse, would
    differ from anything. The three are put together as in CIE 1976's colour difference, which the result is where both
    sides have one colour each.

    Args:
        lab: `[H, W, 3]`, CIELAB as OpenCV has it in bytes.
        mask: `[H, W]`, labels.
        label: of the region.

    Returns:
        NaN where there are no surroundings.
    """
    import cv2

    width = max(1, round(RING * float(np.hypot(*mask.shape))))
    left, top, box_width, box_height = cv2.boundingRect((mask == label).view(np.uint8))
    window = np.s_[max(top - width, 0) : top + box_height + width, max(left - width, 0) : left + box_width + width]
    region = mask[window] == label
    if region.all():
        return float("nan")
    distance = cv2.distanceTransform((~region).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ring = ~region & (distance <= width) & (mask[window] != IGNORED)
    if not ring.any():
        return float("nan")
    inside, outside = lab[window][region], lab[window][ring]
    distances = [_earth_mover(inside[:, c], outside[:, c]) for c in range(3)]
    return float(np.hypot(distances[0] * 100 / 255, np.hypot(distances[1], distances[2])))  # L's 100 are 255 in bytes


def _earth_mover(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """The distance of two sets of bytes as distributions: the area between their cumulative ones."""
    shares = [np.bincount(values, minlength=256) / len(values) for values in (first, second)]
    return float(np.abs(np.cumsum(shares[0] - shares[1])).sum())


def _measure(masks: str, images: str | Path | None, task: _Task) -> _Measured:
    """One bad file costs one image, or its contrast."""
    import cv2

    try:
        mask = read_mask(find_mask(masks, task.name))
    except (OSError, ValueError) as error:
        return _Measured(0, (), (), str(error))
    at_border = labels_at_border(mask)
    border = tuple(label in at_border for label in task.labels)
    unknown = (float("nan"),) * len(task.labels)
    if images is None:
        return _Measured(mask.size, border, unknown, "")
    image_file = find_image(images, task.name)
    try:
        image = read_image(image_file)
    except (OSError, ValueError) as error:
        return _Measured(mask.size, border, unknown, str(error))
    if image.shape[:2] != mask.shape:
        sizes = [f"{height} x {width}" for height, width in (image.shape[:2], mask.shape)]
        return _Measured(mask.size, border, unknown, f"{image_file} has {sizes[0]} pixels, its mask {sizes[1]}")
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    contrast = tuple(colour_contrast(lab, mask, label) for label in task.labels)
    return _Measured(mask.size, border, contrast, "")


def region_counts(evaluation: FolderEvaluation, regions: Regions) -> NDArray[np.int64]:
    """`[R, 3]`: pixels annotated, predicted and hit, at the chosen setting, of each object's class in its image."""
    found = np.zeros((len(regions.image), 3), np.int64)
    t = evaluation.chosen
    labels: Sequence[int] = regions.label.tolist()
    for row, image, label in zip(found, regions.image.tolist(), labels, strict=True):
        counts = evaluation.counts[regions.names[image]]
        k = int(np.searchsorted(counts.classes, label))
        row[:] = counts.annotated[k], counts.predicted[k, t], counts.hits[k, t]
    return found
