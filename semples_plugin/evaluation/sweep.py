"""CAMs against masks: IoU at every background threshold from one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.images import IGNORED
from semples_plugin.utils import text

_CHUNK = 1 << 15  # pixels at once: their planes fit into a processor's cache

Counts = NDArray[np.int64]
Plane = NDArray[np.floating]


@dataclass(frozen=True)
class ThresholdSweep:
    """What `CamEvaluation.compute` found, in [0, 1]; rows are thresholds, columns classes, background first.

    Attributes:
        thresholds: `[T]`, background scores.
        iou: `[T, K + 1]`; NaN for a class that neither masks nor predictions hold.
        precision: `[T, K + 1]`; NaN for a class that isn't predicted.
        recall: `[T, K + 1]`; NaN for a class that no mask holds.
        miou: `[T]`, the mean of `iou` over the classes.
    """

    thresholds: NDArray[np.float64]
    iou: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    miou: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Position of the best threshold. It is chosen on the masks that it is reported on.

        Raises:
            ValueError: where no mask holds anything but 255.
        """
        if np.isnan(self.miou).all():
            raise ValueError("there is nothing to judge: no mask holds anything but 255")
        return int(np.nanargmax(self.miou))


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of one image, of the C classes that its mask or its CAMs hold, and of the background.

    Attributes:
        classes: `[C]`, 0 background, k + 1 class k.
        in_mask: `[C]`.
        predicted: `[C, T]`, at each threshold.
        hits: `[C, T]`, predicted and in the mask.
        cams: how many CAMs there are.
        empty: how many of them exceed the lowest threshold nowhere.
    """

    classes: Counts
    in_mask: NDArray[np.int32]
    predicted: NDArray[np.int32]
    hits: NDArray[np.int32]
    cams: int = 0
    empty: int = 0


class CamEvaluation:
    """Collects what IoU needs, per threshold, over a whole set.

    A pixel is background where no CAM of a present class exceeds the threshold, else the class of the highest CAM
    (of equal ones the first). Scores are counted in the bins between the thresholds, so T thresholds cost as much as
    one, and the result equals T separate evaluations exactly. Thresholds are rounded to the CAMs' precision, as they
    are where a host puts a plane of them beside its CAMs.

    Args:
        num_classes: K, without background; 254 at most.
        thresholds: background scores, see `check_thresholds`.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] | NDArray[np.floating]) -> None:
        if not 0 < num_classes < IGNORED:
            raise ValueError(f"num_classes: expected 1 to {IGNORED - 1}, as masks are bytes, got {num_classes}")
        self.thresholds = check_thresholds(thresholds)
        self.num_classes = num_classes
        shape = (num_classes + 1, len(self.thresholds))
        self._in_mask: Counts = np.zeros(num_classes + 1, dtype=np.int64)
        self._predicted: Counts = np.zeros(shape, dtype=np.int64)
        self._hits: Counts = np.zeros(shape, dtype=np.int64)

    def update(self, cams: Sequence[Plane], class_index: Sequence[int], mask: NDArray[np.integer]) -> ImageCounts:
        """Adds an image.

        Args:
            cams: P maps `[H, W]`, of the present classes; P may be 0.
            class_index: P classes, 0-based.
            mask: `[H, W]`, 0 background, k + 1 class k, 255 ignored.
        """
        counts = self.count(cams, class_index, mask)
        self.add(counts)
        return counts

    def add(self, counts: ImageCounts) -> None:
        """Adds an image that was counted before."""
        self._in_mask[counts.classes] += counts.in_mask
        self._predicted[counts.classes] += counts.predicted
        self._hits[counts.classes] += counts.hits

    def count(self, cams: Sequence[Plane], class_index: Sequence[int], mask: NDArray[np.integer]) -> ImageCounts:
        """Counts an image, as `update` takes it, without adding it."""
        if not all(isinstance(array, np.ndarray) for array in (*cams, mask)):
            kinds = {type(array).__name__ for array in (*cams, mask)}
            raise TypeError(f"cams, mask: expected numpy's arrays, got {', '.join(kinds)}; tensors have .cpu().numpy()")
        labels = self._labels(mask)
        if {cam.dtype.kind for cam in cams} - {"f"} or len({cam.dtype for cam in cams}) > 1:
            given = ", ".join(sorted({str(cam.dtype) for cam in cams}))
            raise TypeError(f"cams: expected floating point numbers of one precision, got {given}")
        if [cam.shape for cam in cams] != [mask.shape] * len(class_index):
            shapes = [cam.shape for cam in cams]
            raise ValueError(
                f"cams: expected {len(class_index)} maps {mask.shape} to fit the mask, got {text.shown(shapes)}"
            )
        wrong = [k for k in class_index if not 0 <= k < self.num_classes or list(class_index).count(k) > 1]
        if wrong:
            raise ValueError(
                f"class_index: expected different classes of 0 to {self.num_classes - 1}, got {text.shown(wrong)}"
            )
        bins = self._bins(cams, labels)
        in_mask, shown = bins.sum((1, 2)), np.array(class_index, dtype=np.int64) + 1
        foreground = _above(bins.sum(0))[: len(shown)]
        of_own = _above(bins[shown, np.arange(len(shown))])
        predicted, hits = (np.zeros_like(self._predicted) for _ in range(2))
        predicted[shown], hits[shown] = foreground, of_own
        predicted[0] = in_mask.sum() - foreground.sum(0)
        hits[0] = in_mask[0] - _above(bins[0]).sum(0)
        classes = np.union1d(np.flatnonzero(in_mask), np.append(shown, 0))
        pixels, predicted, hits = (part[classes].astype(np.int32) for part in (in_mask, predicted, hits))
        # Only one that wins no pixel is looked at again: another CAM may be higher.
        empty = sum(
            not wins and bool(cam.max(initial=-np.inf) <= self.thresholds.astype(cam.dtype)[0])
            for cam, wins in zip(cams, foreground[:, 0], strict=True)
        )
        return ImageCounts(classes, pixels, predicted, hits, len(cams), empty)

    def compute(self) -> ThresholdSweep:
        """The sweep over all images so far."""
        return self.sweep(self._in_mask, self._predicted, self._hits)

    def sweep(self, in_mask: Counts, predicted: Counts, hits: Counts) -> ThresholdSweep:
        """The sweep of pixel counts `[K + 1]`, `[K + 1, T]` and `[K + 1, T]`."""
        with np.errstate(invalid="ignore"):
            iou = hits / (predicted + in_mask[:, None] - hits)
            precision, recall = hits / predicted, hits / in_mask[:, None]
        miou = np.nanmean(iou, axis=0) if in_mask.any() else np.full(len(self.thresholds), np.nan)
        return ThresholdSweep(self.thresholds, iou.T, precision.T, recall.T, miou)

    def _labels(self, mask: NDArray[np.integer]) -> NDArray[np.uint8]:
        if mask.ndim != 2 or mask.dtype.kind not in "iu":
            raise ValueError(f"mask: expected integers [H, W], got {mask.dtype} of shape {list(mask.shape)}")
        if mask.dtype != np.uint8 and mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= IGNORED:
            self._refuse([value for value in np.unique(mask).tolist() if not 0 <= value <= IGNORED])
        return mask.astype(np.uint8, copy=False)

    def _bins(self, cams: Sequence[Plane], labels: NDArray[np.uint8]) -> Counts:
        """Pixels `[K + 1, max(P, 1), T + 1]` by label, class of the highest CAM and number of thresholds below."""
        import cv2

        planes, known = [cam.reshape(-1) for cam in cams], labels.reshape(-1)
        shape = (max(len(cams), 1), len(self.thresholds) + 1)
        # A pixel's place in the counts, in few bytes: those of a chunk stay in the processor's cache.
        rows = np.full(256, self.num_classes + 2)
        rows[: self.num_classes + 1], rows[IGNORED] = np.arange(self.num_classes + 1), self.num_classes + 1
        size = (self.num_classes + 3) * shape[0] * shape[1]
        first: NDArray[np.integer] = (rows * shape[0] * shape[1]).astype(np.uint16 if size <= 1 << 16 else np.int32)
        below = _Below(self.thresholds.astype(planes[0].dtype)) if planes else None
        found: Counts = np.zeros(size, dtype=np.int64)
        for start in range(0, known.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            place = cv2.LUT(known[part], first).reshape(-1)
            if below is not None:
                highest, winner = _highest([plane[part] for plane in planes])
                place += below(highest).astype(place.dtype, copy=False)
                place += np.multiply(winner, shape[1], dtype=place.dtype)
            found += np.bincount(place, minlength=size)
        found = found.reshape(-1, *shape)
        if found[-1].any():
            self._refuse([value for value in np.unique(known).tolist() if self.num_classes < value < IGNORED])
        return found[: self.num_classes + 1]

    def _refuse(self, values: list[int]) -> NoReturn:
        raise ValueError(f"mask: expected values of 0 to {self.num_classes} and {IGNORED}, got {text.shown(values)}")


def _highest(planes: Sequence[Plane]) -> tuple[Plane, NDArray[np.uint8]]:
    """The highest of P planes `[n]` at each place and the first that has it, much quicker than max and argmax."""
    highest = planes[0]
    winner = np.zeros(highest.shape, dtype=np.uint8)
    for p, plane in enumerate(planes[1:], 1):
        np.maximum(winner, (plane > highest).view(np.uint8) * np.uint8(p), out=winner)
        highest = np.maximum(highest, plane)
    return highest, winner


class _Below:
    """How many of ascending thresholds lie below each value, as `np.searchsorted`, at a tenth of its time.

    Values fall into 256 cells, in their order. Where none of them holds two thresholds, a table knows how many lie
    below a cell, and one comparison settles the one in it.
    """

    def __init__(self, thresholds: Plane) -> None:
        self.thresholds = thresholds
        self.quick = thresholds.dtype != np.float16 and thresholds[0] >= 0 and thresholds[-1] <= 1
        if self.quick:
            places = self._cell(thresholds)
            self.quick = len(np.unique(places)) == len(thresholds)
            self.fewer = np.searchsorted(places, np.arange(256)).astype(np.uint8)
            self.inside = np.full(256, np.inf, dtype=thresholds.dtype)
            self.inside[places] = thresholds

    def __call__(self, values: Plane) -> NDArray[np.integer]:
        import cv2

        if not np.isfinite(values.max()):
            raise ValueError("cams: NaN or infinite values")
        if not self.quick:
            return np.searchsorted(self.thresholds, values)
        cells = self._cell(values)
        found = cv2.LUT(cells, self.fewer).reshape(-1)
        found += (values > cv2.LUT(cells, self.inside).reshape(-1)).view(np.uint8)
        return np.asarray(found)

    def _cell(self, values: Plane) -> NDArray[np.uint8]:
        import cv2

        # Rounds and saturates; what is below 0 is below all thresholds, as 0 is.
        _, positive = cv2.threshold(values, 0, 0, cv2.THRESH_TOZERO)
        return np.asarray(cv2.convertScaleAbs(positive, alpha=255), dtype=np.uint8).reshape(-1)


def check_thresholds(thresholds: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Background scores as an array; a `ValueError` unless there is one at least, and all ascend from 0 to 1."""
    try:
        found = np.asarray(thresholds, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 1 or not len(found) or not (found[0] >= 0 and found[-1] <= 1 and (np.diff(found) > 0).all()):
        raise ValueError(
            f"thresholds: expected a list of background scores from 0 to 1, ascending, got {text.shown(thresholds)}"
        )
    return found


def power_thresholds(powers: Sequence[float]) -> NDArray[np.float64]:
    """Constant background scores that equal FMA-WSSS's (1 - m)^p, m being the highest CAM; descending as p rises.

    m > (1 - m)^p holds from some m on; that m is found in float32, in which FMA-WSSS compares.
    """
    found = []
    for power in powers:
        low: Plane = np.zeros(1, np.float32)  # never foreground
        high: Plane = np.ones(1, np.float32)  # always
        while True:
            middle: Plane = (low + high) / np.float32(2)
            if middle in (low, high):
                break
            # Of an array, as there: numpy's scalars and its operator round otherwise.
            above = middle > np.power(1 - middle, np.float32(power))
            low, high = (low, middle) if above else (middle, high)
        found.append(float(low[0]))
    return np.array(found)


def _above(bins: Counts) -> Counts:
    """`[..., T]`: how many scores exceed each threshold, from `[..., T + 1]`: how many lie in each bin."""
    return bins[..., :0:-1].cumsum(-1)[..., ::-1]
