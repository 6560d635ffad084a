"""Where CAMs fail: IoU and recall of objects by size, border, contrast and number of classes.

The paper names objects that are partially visible, small, or visually similar to their surroundings (section 6.1 and
Figure 7). What an object is here, and how it is measured, see `semples_plugin.evaluation.regions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semples_plugin.evaluation.comparison import MIN_IMAGES_FOR_BOOTSTRAP, resampled
from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.evaluation.iou import intersection_over_union
from semples_plugin.evaluation.regions import OBJECT, Regions, region_counts

_SIZES = ("smallest quarter", "second quarter", "third quarter", "largest quarter")
_BORDERS = ("inside the image", "touches the border")
_CONTRASTS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
_CLASSES = ("1 class", "2 classes", "3 or more")


class Interval(NamedTuple):
    """Bounds of a 95 % bootstrap interval, over images."""

    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """The objects of a stratum in one evaluation, at its chosen setting, in [0, 1].

    Attributes:
        iou: mean over the objects of the IoU of an object's class in its image.
        interval: of `iou`.
        pooled_iou: IoU of all their pixels together, in which large objects decide.
        recall: mean over the objects of the share of their pixels that were predicted as their class.
        pooled_recall: that share of all their pixels together.
        gain: `iou` less that of the first evaluation, and the interval of this difference, for which both are taken on
            the same resampled images; None of the first.
    """

    iou: float
    interval: Interval
    pooled_iou: float
    recall: float
    pooled_recall: float
    gain: tuple[float, Interval] | None


@dataclass(frozen=True)
class Stratum:
    """Objects that are alike.

    Attributes:
        group: what the stratum is of, see `Strata.groups`; empty for all objects.
        name: of what its objects share.
        objects: how many.
        images: in how many images; below `MIN_IMAGES_FOR_BOOTSTRAP` intervals are too narrow.
        span: lowest and highest value of what a quartile is of; None where they are no quartiles.
        scores: one for each evaluation.
    """

    group: str
    name: str
    objects: int
    images: int
    span: tuple[float, float] | None
    scores: tuple[Score, ...]

    @property
    def is_small(self) -> bool:
        """Whether there are too few images to rely on the intervals."""
        return self.images < MIN_IMAGES_FOR_BOOTSTRAP


@dataclass(frozen=True)
class Strata:
    """Objects in strata.

    Attributes:
        every: all of them.
        groups: strata by what they are of, each from what should be hard to what should be easy, or the other way
            round: "size", quartiles of `Regions.area`; "border", whether an object touches the image's; "contrast",
            quartiles of `Regions.contrast`, missing where no image was given or could be read; "classes", their
            number in the image.
        failed: images that could not be measured, and why.
    """

    every: Stratum
    groups: dict[str, tuple[Stratum, ...]]
    failed: dict[str, str]

    def to_dict(self, evaluation: int) -> dict[str, Any]:
        """What `eval.json` holds of one of the evaluations, by its position, ready for `json.dumps`.

        `object` says what one is, `all objects` is a stratum, and `size`, `border`, `contrast` (None where no image was
        given or could be read) and `classes` are lists of strata. Of each, `stratum` is the name, `from` and `to` the
        lowest and the highest value of a quartile (of size: the share of the image, of contrast: CIELAB's units),
        `objects` and `images` are numbers, `too few images` says not to rely on intervals, and the others are those of
        `Score`, in [0, 1]. Evaluations but the first have `beside the first`, the gain in `iou`. `not measured` are
        images, and why.
        """
        groups = {name: [_to_dict(one, evaluation) for one in strata] for name, strata in self.groups.items()}
        return {
            "object": OBJECT,
            "all objects": _to_dict(self.every, evaluation),
            "size": groups["size"],
            "border": groups["border"],
            "contrast": groups.get("contrast"),
            "classes": groups["classes"],
            "not measured": self.failed,
        }


def stratify(evaluations: Sequence[FolderEvaluation], regions: Regions, resamples: int = 2000, seed: int = 0) -> Strata:
    """The figures of each stratum in each evaluation, with a bootstrap over images.

    False positives in an image whose ground truth lacks their class belong to no object, and so to no stratum. A
    stratum without objects is left out; quartiles have equal numbers of objects, but where many are equal.

    Args:
        evaluations: of the same images; the one to beat comes first.
        regions: their objects, as `find_regions` has them.
        resamples: number of sets of images.
        seed: of the draws.

    Raises:
        ValueError: where the images are others, or none has an object.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semples_plugin.data.images import write_mask
        >>> from semples_plugin.evaluation.folders import evaluate_folder
        >>> from semples_plugin.evaluation.regions import find_regions
        >>> with TemporaryDirectory() as folder:
        ...     for name, found in (("small", 0), ("large", 1)):  # the small object is missed
        ...         mask = np.zeros((12, 12), np.uint8)
        ...         mask[4:8, 4 : 6 + 2 * found] = 1
        ...         write_mask(f"{folder}/gt/{name}.png", mask)
        ...         write_mask(f"{folder}/predicted/{name}.png", mask * np.uint8(found))
        ...     evaluation = evaluate_folder(f"{folder}/predicted", f"{folder}/gt", ["cat"], progress=False)
        ...     strata = stratify([evaluation], find_regions(evaluation, progress=False))
        >>> [(stratum.name, stratum.scores[0].iou) for stratum in strata.groups["size"]]
        [('smallest quarter', 0.0), ('largest quarter', 1.0)]
    """
    if any(tuple(evaluation.counts) != regions.names for evaluation in evaluations):
        folders = " and ".join(evaluation.folder for evaluation in evaluations)
        raise ValueError(f"{folders} were judged on other images than the objects are of, see on_common_images")
    if not len(regions.image):
        why = next(iter(regions.failed.values()), "all is background")
        raise ValueError(f"strata: no object in the ground truth of {len(regions.names)} images: {why}")
    members = {(group, name): member for group, name, member in _members(regions) if member.any()}
    counts = np.stack([region_counts(evaluation, regions) for evaluation in evaluations])  # [E, R, 3]
    iou, recall = intersection_over_union(*np.moveaxis(counts, -1, 0)), counts[..., 2] / counts[..., 0]
    sampled = _bootstrap(iou, regions, list(members.values()), resamples, seed)
    found: dict[str, list[Stratum]] = {}
    for (group, name), member, means in zip(members, members.values(), sampled, strict=True):
        scores = [
            _score(iou[:, member], recall[e, member], counts[e, member], means, e) for e in range(len(evaluations))
        ]
        value = {"size": regions.area, "contrast": regions.contrast}.get(group)
        span = None if value is None else (float(value[member].min()), float(value[member].max()))
        images = len(np.unique(regions.image[member]))
        found.setdefault(group, []).append(Stratum(group, name, int(member.sum()), images, span, tuple(scores)))
    (every,) = found.pop("")
    return Strata(every, {group: tuple(strata) for group, strata in found.items()}, regions.failed)


def _members(regions: Regions) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Each stratum with its group and which objects belong to it; that of all objects has no group."""
    yield "", "all objects", np.ones(len(regions.image), np.bool_)
    kinds = [("size", _SIZES, _quarter(regions.area)), ("border", _BORDERS, regions.border.astype(np.int64))]
    if regions.contrast is not None:
        kinds.append(("contrast", _CONTRASTS, _quarter(regions.contrast)))
    kinds.append(("classes", _CLASSES, np.minimum(regions.classes, len(_CLASSES)) - 1))
    for group, names, stratum in kinds:
        for k, name in enumerate(names):
            yield group, name, stratum == k


def _quarter(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 to 3, by quartiles; -1 where a value is NaN. Equal values stay together."""
    known = ~np.isnan(values)
    if not known.any():
        return np.full(len(values), -1)
    edges = np.quantile(values[known], (0.25, 0.5, 0.75))
    return np.where(known, np.searchsorted(edges, values), -1)


def _bootstrap(
    iou: NDArray[np.float64], regions: Regions, members: Sequence[NDArray[np.bool_]], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Mean IoU `[S, E, resamples]` of each stratum on resampled images; NaN where none of its objects was drawn.

    Args:
        iou: `[E, R]`.
        regions: the R objects.
        members: S times `[R]`, which of them belong to a stratum.
        resamples, seed: see `stratify`.
    """
    images = len(regions.names)
    # Of each image's objects in a stratum the sum of their IoU, and the number.
    sums = np.empty((images, len(members), len(iou) + 1))
    for s, member in enumerate(members):
        for e, weight in enumerate((*iou, 1.0)):
            sums[:, s, e] = np.bincount(regions.image, member * weight, images)
    flat, means = sums.reshape(images, -1), np.empty((resamples, len(members), len(iou)))
    for mean, draws in zip(means, resampled(images, resamples, seed), strict=True):
        drawn = (draws @ flat).reshape(sums.shape[1:])
        with np.errstate(invalid="ignore"):
            mean[:] = drawn[:, :-1] / drawn[:, -1:]
    return np.moveaxis(means, 0, -1)


def _score(
    iou: NDArray[np.float64], recall: NDArray[np.float64], counts: NDArray[np.int64], means: NDArray[np.float64], e: int
) -> Score:
    """The score of a stratum's n objects in evaluation `e`: `iou` `[E, n]` and `means` `[E, resamples]` are those of
    all evaluations, `recall` `[n]` and `counts` `[n, 3]` of this one."""
    annotated, predicted, hits = counts.sum(0)
    mean = float(iou[e].mean())
    return Score(
        iou=mean,
        interval=_interval(means[e]),
        pooled_iou=float(hits / (annotated + predicted - hits)),
        recall=float(recall.mean()),
        pooled_recall=float(hits / annotated),
        gain=None if e == 0 else (mean - float(iou[0].mean()), _interval(means[e] - means[0])),
    )


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


def _to_dict(stratum: Stratum, evaluation: int) -> dict[str, Any]:
    score, span = stratum.scores[evaluation], stratum.span
    found: dict[str, Any] = {"stratum": stratum.name}
    if span is not None:
        found |= {"from": span[0], "to": span[1]}
    found |= {"objects": stratum.objects, "images": stratum.images, "too few images": stratum.is_small}
    found |= {"iou": score.iou, "interval": list(score.interval), "pooled iou": score.pooled_iou}
    found |= {"recall": score.recall, "pooled recall": score.pooled_recall}
    if score.gain is not None:
        gain, interval = score.gain
        found["beside the first"] = {"gain": gain, "interval": list(interval)}
    return found
