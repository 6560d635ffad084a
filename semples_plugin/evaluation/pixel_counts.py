"""Pixels of an image by ground truth, highest CAM and score: all that IoU at every threshold needs, from one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.images import IGNORED

Counts = NDArray[np.int64]
Plane = NDArray[np.floating]

_CHUNK = 1 << 15  # pixels at once, whose planes fit into a processor's cache
_CELLS = 256  # into which `_CountBelow` sorts scores


def count_pixels(
    cams: Sequence[Plane], labels: NDArray[np.uint8], num_classes: int, thresholds: NDArray[np.float64]
) -> Counts | None:
    """Counts the pixels of an image that aren't ignored.

    Args:
        cams: P maps `[H, W]` of one precision, to which the thresholds are rounded.
        labels: `[H, W]`, ground truth: 0 background, k + 1 class k, 255 ignored.
        num_classes: K, without background.
        thresholds: T background scores, ascending.

    Returns:
        Pixels `[K + 1, max(P, 1), T + 1]` by label, highest CAM (of equal ones the first) and number of thresholds
        below its score; None where a label is neither a class nor ignored.

    Raises:
        ValueError: where a CAM holds NaN or infinite values.
    """
    import cv2

    # Every pixel gets an index into the flat counts: (row of its label, CAM, thresholds below).
    num_cams, num_bins = max(len(cams), 1), len(thresholds) + 1
    ignored_row, unknown_row = num_classes + 1, num_classes + 2
    size = (num_classes + 3) * num_cams * num_bins
    row_of_label = np.full(256, unknown_row)
    row_of_label[: num_classes + 1] = np.arange(num_classes + 1)
    row_of_label[IGNORED] = ignored_row
    # In few bytes, so that the indices of a chunk stay in the processor's cache.
    index_type = np.uint16 if size <= 1 << 16 else np.int32
    first_index: NDArray[np.integer] = (row_of_label * num_cams * num_bins).astype(index_type)

    planes, flat_labels = [cam.reshape(-1) for cam in cams], labels.reshape(-1)
    count_below = _CountBelow(thresholds.astype(planes[0].dtype)) if planes else None
    counts: Counts = np.zeros(size, dtype=np.int64)
    for start in range(0, flat_labels.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        index = cv2.LUT(flat_labels[chunk], first_index).reshape(-1)
        if count_below is not None:
            highest, winner = _highest([plane[chunk] for plane in planes])
            index += count_below(highest).astype(index.dtype, copy=False)
            index += np.multiply(winner, num_bins, dtype=index.dtype)
        counts += np.bincount(index, minlength=size)
    counts = counts.reshape(-1, num_cams, num_bins)
    return None if counts[unknown_row].any() else counts[:ignored_row]


def count_above(bins: Counts) -> Counts:
    """`[..., T]`: how many scores exceed each threshold, from `[..., T + 1]`: how many exceed just so many of them."""
    without_lowest = bins[..., 1:]
    return without_lowest[..., ::-1].cumsum(-1)[..., ::-1]


def _highest(planes: Sequence[Plane]) -> tuple[Plane, NDArray[np.uint8]]:
    """The highest of P planes `[n]` at each place and the first that has it, much quicker than max and argmax."""
    highest = planes[0]
    winner = np.zeros(highest.shape, dtype=np.uint8)
    for p, plane in enumerate(planes[1:], 1):
        # p exceeds the winners so far, so that the maximum replaces them where the plane is higher.
        higher = (plane > highest).view(np.uint8)
        np.maximum(winner, higher * np.uint8(p), out=winner)
        highest = np.maximum(highest, plane)
    return highest, winner


class _CountBelow:
    """How many of ascending thresholds lie below each value: `np.searchsorted` in a tenth of its time.

    Values are sorted into 256 cells, which keep their order. Where no cell holds two thresholds, a table says how many
    lie in the cells before a value's own, and one comparison decides about the threshold in that cell.
    """

    def __init__(self, thresholds: Plane) -> None:
        self.thresholds = thresholds
        self.has_tables = False
        if thresholds.dtype == np.float16 or thresholds[0] < 0 or thresholds[-1] > 1:
            return
        cells = self._cell(thresholds)
        self.has_tables = len(np.unique(cells)) == len(thresholds) < _CELLS  # a table's numbers are bytes
        self.in_cells_before = np.searchsorted(cells, np.arange(_CELLS)).astype(np.uint8)
        self.threshold_in_cell = np.full(_CELLS, np.inf, dtype=thresholds.dtype)
        self.threshold_in_cell[cells] = thresholds

    def __call__(self, values: Plane) -> NDArray[np.integer]:
        import cv2

        if not np.isfinite(values.max()):
            raise ValueError("cams: NaN or infinite values")
        if not self.has_tables:
            return np.searchsorted(self.thresholds, values)
        cells = self._cell(values)
        below = cv2.LUT(cells, self.in_cells_before).reshape(-1)
        below += (values > cv2.LUT(cells, self.threshold_in_cell).reshape(-1)).view(np.uint8)
        return np.asarray(below)

    def _cell(self, values: Plane) -> NDArray[np.uint8]:
        import cv2

        # A negative value is below all thresholds, as 0 is; the conversion rounds, and saturates at 255.
        _, positive = cv2.threshold(values, 0, 0, cv2.THRESH_TOZERO)
        return np.asarray(cv2.convertScaleAbs(positive, alpha=255), dtype=np.uint8).reshape(-1)
