"""CAMs judged by ground truth: IoU at every background threshold from one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.images import IGNORED
from semples_plugin.evaluation.pixel_counts import Counts, Plane, count_above, count_pixels
from semples_plugin.utils import text


@dataclass(frozen=True)
class ThresholdSweep:
    """What `CamEvaluation.compute` returns, in [0, 1]; rows are thresholds, columns classes, background first.

    Attributes:
        thresholds: `[T]`, background scores.
        iou: `[T, K + 1]`; NaN for a class that neither ground truth nor predictions hold.
        precision: `[T, K + 1]`; NaN for a class that isn't predicted.
        recall: `[T, K + 1]`; NaN for a class that the ground truth lacks.
        miou: `[T]`, the mean of `iou` over the classes.
    """

    thresholds: NDArray[np.float64]
    iou: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    miou: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Position of the best threshold, which is chosen on the ground truth that it is reported on.

        Raises:
            ValueError: where the ground truth holds nothing but 255.
        """
        if np.isnan(self.miou).all():
            raise ValueError(f"there is nothing to judge: the ground truth holds nothing but {IGNORED}")
        return int(np.nanargmax(self.miou))


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of one image, of the C classes that its ground truth or its CAMs hold, and of the background.

    Attributes:
        classes: `[C]`, 0 background, k + 1 class k.
        annotated: `[C]`, pixels in the ground truth.
        predicted: `[C, T]`, at each threshold.
        hits: `[C, T]`, predicted and annotated.
        cams: number of CAMs.
        empty: number of CAMs that exceed the lowest threshold nowhere.
    """

    classes: Counts
    annotated: NDArray[np.int32]
    predicted: NDArray[np.int32]
    hits: NDArray[np.int32]
    cams: int = 0
    empty: int = 0


class CamEvaluation:
    """Collects what IoU needs, per threshold, over a whole set.

    A pixel is background where no CAM of a present class exceeds the threshold, else the class of the highest CAM
    (of equal ones the first). Scores are counted in the bins between the thresholds, so that T thresholds cost as much
    as one, and the result equals T separate evaluations exactly. Thresholds are rounded to the CAMs' precision, as
    they are where a host puts a plane of them beside its CAMs.

    Args:
        num_classes: K, without background; 254 at most.
        thresholds: background scores, see `check_thresholds`.

    Examples:
        >>> evaluation = CamEvaluation(num_classes=2, thresholds=[0.3, 0.7])
        >>> cam = np.array([[0.9, 0.5], [0.1, 0.0]])
        >>> ground_truth = np.array([[2, 2], [0, 0]])  # class 1, and background
        >>> counts = evaluation.update([cam], [1], ground_truth)
        >>> sweep = evaluation.compute()
        >>> sweep.iou[0]  # of background, class 0, which nothing shows, and class 1
        array([ 1., nan,  1.])
        >>> sweep.miou.round(2), sweep.best
        (array([1.  , 0.58]), 0)
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] | NDArray[np.floating]) -> None:
        if not 0 < num_classes < IGNORED:
            raise ValueError(f"num_classes: expected 1 to {IGNORED - 1}, as masks are bytes, got {num_classes}")
        self.thresholds = check_thresholds(thresholds)
        self.num_classes = num_classes
        shape = (num_classes + 1, len(self.thresholds))
        self._annotated: Counts = np.zeros(num_classes + 1, dtype=np.int64)
        self._predicted: Counts = np.zeros(shape, dtype=np.int64)
        self._hits: Counts = np.zeros(shape, dtype=np.int64)

    def update(
        self, cams: Sequence[Plane], class_index: Sequence[int], ground_truth: NDArray[np.integer]
    ) -> ImageCounts:
        """Adds an image.

        Args:
            cams: P maps `[H, W]`, of the present classes; P may be 0.
            class_index: P classes, 0-based.
            ground_truth: `[H, W]`, 0 background, k + 1 class k, 255 ignored.

        Raises:
            TypeError: where they are no arrays, or the CAMs no floating point numbers of one precision.
            ValueError: where sizes or classes don't fit together, or a CAM holds NaN or infinite values.
        """
        counts = self.count(cams, class_index, ground_truth)
        self.add(counts)
        return counts

    def add(self, counts: ImageCounts) -> None:
        """Adds an image that was counted before."""
        self._annotated[counts.classes] += counts.annotated
        self._predicted[counts.classes] += counts.predicted
        self._hits[counts.classes] += counts.hits

    def count(
        self, cams: Sequence[Plane], class_index: Sequence[int], ground_truth: NDArray[np.integer]
    ) -> ImageCounts:
        """Counts an image without adding it; arguments and errors are those of `update`."""
        _check_arrays(cams, ground_truth)
        labels = self._to_bytes(ground_truth)
        self._check_cams(cams, class_index, ground_truth.shape)
        bins = count_pixels(cams, labels, self.num_classes, self.thresholds)
        if bins is None:
            self._refuse([value for value in np.unique(labels).tolist() if self.num_classes < value < IGNORED])

        cam_labels = np.array(class_index, dtype=np.int64) + 1
        annotated: Counts = bins.sum((1, 2))
        won = count_above(bins.sum(0))[: len(cams)]  # [P, T], pixels of each CAM
        predicted, hits = np.zeros_like(self._predicted), np.zeros_like(self._hits)
        predicted[cam_labels] = won
        hits[cam_labels] = count_above(bins[cam_labels, np.arange(len(cams))])
        predicted[0] = annotated.sum() - won.sum(0)
        hits[0] = annotated[0] - count_above(bins[0]).sum(0)

        classes = np.union1d(np.flatnonzero(annotated), np.append(cam_labels, 0))
        return ImageCounts(
            classes,
            annotated[classes].astype(np.int32),
            predicted[classes].astype(np.int32),
            hits[classes].astype(np.int32),
            cams=len(cams),
            empty=self._count_empty(cams, won[:, 0]),
        )

    def compute(self) -> ThresholdSweep:
        """The sweep over all images so far."""
        return self.sweep(self._annotated, self._predicted, self._hits)

    def sweep(self, annotated: Counts, predicted: Counts, hits: Counts) -> ThresholdSweep:
        """The sweep of pixel counts `[K + 1]`, `[K + 1, T]` and `[K + 1, T]`."""
        iou = intersection_over_union(annotated[:, None], predicted, hits)
        with np.errstate(invalid="ignore"):
            precision, recall = hits / predicted, hits / annotated[:, None]
        miou = np.nanmean(iou, axis=0) if annotated.any() else np.full(len(self.thresholds), np.nan)
        return ThresholdSweep(self.thresholds, iou.T, precision.T, recall.T, miou)

    def _to_bytes(self, ground_truth: NDArray[np.integer]) -> NDArray[np.uint8]:
        if ground_truth.ndim != 2 or ground_truth.dtype.kind not in "iu":
            raise ValueError(
                f"ground_truth: expected integers [H, W], got {ground_truth.dtype} of shape {list(ground_truth.shape)}"
            )
        if ground_truth.dtype != np.uint8:
            outside = (ground_truth < 0) | (ground_truth > IGNORED)
            if outside.any():
                self._refuse(np.unique(ground_truth[outside]).tolist())
        return ground_truth.astype(np.uint8, copy=False)

    def _check_cams(self, cams: Sequence[Plane], class_index: Sequence[int], size: tuple[int, ...]) -> None:
        if {cam.dtype.kind for cam in cams} - {"f"} or len({cam.dtype for cam in cams}) > 1:
            given = ", ".join(sorted({str(cam.dtype) for cam in cams}))
            raise TypeError(f"cams: expected floating point numbers of one precision, got {given}")
        shapes = [cam.shape for cam in cams]
        if shapes != [size] * len(class_index):
            raise ValueError(
                f"cams: expected {len(class_index)} maps {size} to fit the ground truth, got {text.shown(shapes)}"
            )
        wrong = [k for k in class_index if not 0 <= k < self.num_classes or list(class_index).count(k) > 1]
        if wrong:
            raise ValueError(
                f"class_index: expected different classes of 0 to {self.num_classes - 1}, got {text.shown(wrong)}"
            )

    def _count_empty(self, cams: Sequence[Plane], pixels_won: Counts) -> int:
        """How many CAMs exceed the lowest threshold nowhere; `pixels_won` `[P]` are those at that threshold."""
        empty = 0
        for cam, won in zip(cams, pixels_won, strict=True):
            if not won:  # another CAM may be higher wherever this one exceeds it
                empty += bool(cam.max(initial=-np.inf) <= self.thresholds.astype(cam.dtype)[0])
        return empty

    def _refuse(self, values: list[int]) -> NoReturn:
        raise ValueError(
            f"ground_truth: expected values of 0 to {self.num_classes} and {IGNORED}, got {text.shown(values)}"
        )


def sweep_of(
    counts: Iterable[ImageCounts], num_classes: int, thresholds: Sequence[float] | NDArray[np.floating]
) -> ThresholdSweep:
    """The sweep over images that were counted before, with these thresholds."""
    evaluation = CamEvaluation(num_classes, thresholds)
    for image in counts:
        evaluation.add(image)
    return evaluation.compute()


def intersection_over_union(
    annotated: NDArray[Any], predicted: NDArray[Any], hits: NDArray[Any]
) -> NDArray[np.float64]:
    """IoU of pixel counts of any shape; NaN where a class is neither annotated nor predicted."""
    with np.errstate(invalid="ignore"):
        iou: NDArray[np.float64] = hits / (annotated + predicted - hits)
    return iou


def check_thresholds(thresholds: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Background scores as an array `[T]`.

    Raises:
        ValueError: unless there is one at least, and all ascend from 0 to 1.
    """
    try:
        scores = np.asarray(thresholds, dtype=np.float64)
    except (TypeError, ValueError):
        scores = np.empty(0)
    is_list = scores.ndim == 1 and len(scores) > 0
    if not is_list or not (scores[0] >= 0 and scores[-1] <= 1 and (np.diff(scores) > 0).all()):
        raise ValueError(
            f"thresholds: expected a list of background scores from 0 to 1, ascending, got {text.shown(thresholds)}"
        )
    return scores


def power_thresholds(powers: Sequence[float]) -> NDArray[np.float64]:
    """The constant background scores that equal FMA-WSSS's (1 - m)^p, m being the highest CAM; they fall as p rises.

    m > (1 - m)^p holds above a certain m, which is found in float32, in which FMA-WSSS compares.
    """
    return np.array([_power_threshold(power) for power in powers])


def _power_threshold(power: float) -> float:
    """Bisection: the highest m in float32 that is background still."""
    low: Plane = np.zeros(1, np.float32)  # always background
    high: Plane = np.ones(1, np.float32)  # always foreground
    while True:
        middle: Plane = (low + high) / np.float32(2)
        if middle in (low, high):
            return float(low[0])
        # Of an array, as FMA-WSSS computes it: numpy's scalars and its operator round otherwise.
        is_foreground = middle > np.power(1 - middle, np.float32(power))
        low, high = (low, middle) if is_foreground else (middle, high)


def _check_arrays(cams: Sequence[Plane], ground_truth: NDArray[np.integer]) -> None:
    kinds = {type(array).__name__ for array in (*cams, ground_truth) if not isinstance(array, np.ndarray)}
    if kinds:
        raise TypeError(
            f"cams, ground_truth: expected numpy's arrays, got {', '.join(sorted(kinds))}; tensors have .cpu().numpy()"
        )
