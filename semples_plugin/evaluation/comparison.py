"""Whether CAMs of one folder are better than those of another: a paired bootstrap over images."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.evaluation.iou import intersection_over_union

# From so many images on the bootstrap's 95 % intervals miss the truth in little more than 5 % of cases.
MIN_IMAGES_FOR_BOOTSTRAP = 50
MIN_GAIN = 0.001  # gain in mIoU worth the name: a tenth of a point, the last digit that papers print


def on_common_images(evaluations: Sequence[FolderEvaluation]) -> list[FolderEvaluation]:
    """The same evaluations of those images alone that all have, so that their figures can be compared.

    Raises:
        ValueError: where they have no image in common.
    """
    first = evaluations[0].counts
    names = [name for name in first if all(name in evaluation.counts for evaluation in evaluations)]
    if not names:
        folders = " and ".join(evaluation.folder for evaluation in evaluations)
        raise ValueError(f"{folders} have no image in common")
    return [evaluation.on_images(names) for evaluation in evaluations]


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same images.

    Attributes:
        images: how many.
        miou: of the first and the second, at the setting chosen for each.
        low, high: bounds of the 95 % bootstrap interval of the gain, over images.
        above: fraction of the resampled sets on which the second is better.
    """

    images: int
    miou: tuple[float, float]
    low: float
    high: float
    above: float


def compare(first: FolderEvaluation, second: FolderEvaluation, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Whether the second is better than the first, by a paired bootstrap over images.

    Sets of as many images are drawn with replacement, the same for both; the setting of each side stays as chosen.
    With few images such an interval is too narrow, see `MIN_IMAGES_FOR_BOOTSTRAP`.

    Args:
        first: the one to beat.
        second: another one, of the same images and classes.
        resamples: number of sets.
        seed: of the draws.

    Raises:
        ValueError: where the class lists or the images differ.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semples_plugin.data.cam_files import Cams, write_cams
        >>> from semples_plugin.data.images import write_mask
        >>> from semples_plugin.evaluation.folders import evaluate_folder
        >>> folder = TemporaryDirectory()
        >>> sides = []
        >>> for side, beside_the_object in (("before", 0.6), ("after", 0.2)):
        ...     for name in ("a", "b"):
        ...         plane = np.array([[0.5, beside_the_object]], np.float32)
        ...         write_cams(f"{folder.name}/{side}/{name}.npy", Cams([plane], (0,), "weaktr"))
        ...         write_mask(f"{folder.name}/gt/{name}.png", np.array([[1, 0]], np.uint8))
        ...     cams, ground_truth = f"{folder.name}/{side}", f"{folder.name}/gt"
        ...     sides.append(evaluate_folder(cams, ground_truth, ["cat"], setting=0.4, progress=False))
        >>> comparison = compare(*sides)
        >>> comparison.miou, comparison.low
        ((0.25, 1.0), 0.75)
        >>> folder.cleanup()
    """
    if first.class_names != second.class_names:
        raise ValueError(f"{first.folder} and {second.folder} were judged with different class names")
    if first.counts.keys() != second.counts.keys():
        raise ValueError(f"{first.folder} and {second.folder} were judged on different images, see on_common_images")
    images = len(first.counts)
    sides = [_Pixels(side, first.counts) for side in (first, second)]
    gains = []
    for draws in resampled(images, resamples, seed):
        before, after = (side.miou(draws) for side in sides)
        gains.append(after - before)
    low, high = np.percentile(gains, (2.5, 97.5))
    return Comparison(
        images=images,
        miou=(first.miou, second.miou),
        low=float(low),
        high=float(high),
        above=float(np.mean(np.array(gains) > 0)),
    )


def resampled(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """A bootstrap's sets of as many images, drawn with replacement: `[N]`, how often each image was drawn."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(images, size=images), minlength=images)


class _Pixels:
    """An evaluation's pixels at the chosen setting, of those classes alone that an image holds: few of all.

    Args:
        evaluation: of some images.
        names: those of the images, in the order in which they are drawn.
    """

    def __init__(self, evaluation: FolderEvaluation, names: Iterable[str]) -> None:
        image, classes = array("q"), array("q")
        annotated, predicted, hits = array("d"), array("d"), array("d")
        for position, name in enumerate(names):
            counts, t = evaluation.counts[name], evaluation.chosen
            image.extend([position] * len(counts.classes))
            classes.extend(counts.classes.tolist())
            annotated.extend(counts.annotated.tolist())
            predicted.extend(counts.predicted[:, t].tolist())
            hits.extend(counts.hits[:, t].tolist())
        self._image, self._classes = np.array(image), np.array(classes)
        self._pixels = np.array([annotated, predicted, hits])
        self._num_classes = len(evaluation.class_names) + 1

    def miou(self, draws: NDArray[np.int64]) -> np.floating:
        """mIoU where each image counts as often as it was drawn, `[N]`."""
        drawn = draws[self._image] * self._pixels
        annotated, predicted, hits = (np.bincount(self._classes, pixels, self._num_classes) for pixels in drawn)
        return np.nanmean(intersection_over_union(annotated, predicted, hits))
