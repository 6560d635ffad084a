"""Whether CAMs of one folder are better than those of another: a paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.evaluation.sweep import CamEvaluation

# From so many images on the bootstrap's 95 % intervals miss the truth in little more than 5 % of cases.
MIN_IMAGES_FOR_BOOTSTRAP = 50
MIN_GAIN = 0.001  # gain in mIoU worth the name: a tenth of a point, the last digit that papers print


def on_common_images(evaluations: Sequence[FolderEvaluation]) -> list[FolderEvaluation]:
    """The same evaluations of those images alone that all have, so that their figures belong together."""
    names = [name for name in evaluations[0].counts if all(name in one.counts for one in evaluations)]
    if not names:
        raise ValueError(f"{' and '.join(one.folder for one in evaluations)} have no image in common")
    found = []
    for one in evaluations:
        again = CamEvaluation(len(one.class_names), one.sweep.thresholds)
        for name in names:
            again.add(one.counts[name])
        sweep = again.compute()
        chosen = sweep.best if one.chosen_here else one.chosen
        counts = {name: one.counts[name] for name in names}
        left_out = tuple(name for name in one.counts if name not in counts)
        found.append(replace(one, sweep=sweep, chosen=chosen, counts=counts, left_out=left_out))
    return found


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

    Raises:
        ValueError: where the class lists or the images differ.
    """
    if first.class_names != second.class_names:
        raise ValueError(f"{first.folder} and {second.folder} were judged with different class names")
    if first.counts.keys() != second.counts.keys():
        raise ValueError(f"{first.folder} and {second.folder} were judged on different images, see on_common_images")
    names = list(first.counts)
    sides = [_stack(side, names) for side in (first, second)]
    generator, gains = np.random.default_rng(seed), []
    for _ in range(resamples):
        draws = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        ious = [_iou(draws @ side) for side in sides]
        gains.append(np.nanmean(ious[1]) - np.nanmean(ious[0]))
    low, high = np.percentile(gains, (2.5, 97.5))
    miou = (first.miou, second.miou)
    return Comparison(len(names), miou, float(low), float(high), float(np.mean(np.array(gains) > 0)))


def _stack(evaluation: FolderEvaluation, names: Sequence[str]) -> NDArray[np.float64]:
    """`[N, 3 (K + 1)]`: pixels in the mask, predicted and hit, at the chosen setting."""
    stacked = np.zeros((len(names), 3, len(evaluation.class_names) + 1))
    for row, name in zip(stacked, names, strict=True):
        counts, t = evaluation.counts[name], evaluation.chosen
        row[:, counts.classes] = counts.in_mask, counts.predicted[:, t], counts.hits[:, t]
    return stacked.reshape(len(names), -1)


def _iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    in_mask, predicted, hits = sums.reshape(3, -1)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = hits / (in_mask + predicted - hits)
    return found
