"""CAMs against masks: mIoU at every background threshold from one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = 255


@dataclass(frozen=True)
class ThresholdSweep:
    """What `CamEvaluation.compute` found.

    Attributes:
        thresholds: `[T]`, background scores.
        iou: `[T, K + 1]`, background first; NaN for a class that neither masks nor predictions hold.
        miou: `[T]`, the mean over the classes, in [0, 1].
    """

    thresholds: NDArray[np.float64]
    iou: NDArray[np.float64]
    miou: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Position of the best threshold. It is chosen on the masks that it is reported on."""
        return int(np.nanargmax(self.miou))


class CamEvaluation:
    """Collects one confusion matrix per threshold over a whole set.

    A pixel is background where no CAM of a present class exceeds the threshold, else the class of the highest CAM.
    Scores are counted in bins between the thresholds, so T thresholds cost as much as one, and the result equals
    T separate evaluations exactly.

    Args:
        num_classes: K, without background.
        thresholds: ascending background scores.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] | NDArray[np.floating]) -> None:
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        if self.thresholds.ndim != 1 or len(self.thresholds) == 0 or (np.diff(self.thresholds) <= 0).any():
            raise ValueError("thresholds: expected at least one, ascending")
        self.num_classes = num_classes
        # [mask value, predicted class, number of thresholds below the score]
        self._counts = np.zeros((num_classes + 1, num_classes + 1, len(self.thresholds) + 1), dtype=np.int64)

    def update(self, cams: NDArray[np.floating], class_index: Sequence[int], mask: NDArray[np.integer]) -> None:
        """Adds an image.

        Args:
            cams: `[P, H, W]`, of the present classes; P may be 0.
            class_index: P classes, 0-based.
            mask: `[H, W]`, 0 background, k + 1 class k, 255 ignored.
        """
        cams = np.asarray(cams)
        if cams.shape != (len(class_index), *mask.shape):
            raise ValueError(f"cams: expected {(len(class_index), *mask.shape)} to fit the mask, got {cams.shape}")
        if len(set(class_index)) < len(class_index) or not all(0 <= k < self.num_classes for k in class_index):
            raise ValueError(
                f"class_index: expected different classes of 0 to {self.num_classes - 1}, got {class_index}"
            )
        if not np.isfinite(cams).all():
            raise ValueError("cams: NaN or infinite values")
        known = mask != IGNORED
        if known.any() and not 0 <= int(mask[known].min()) <= int(mask[known].max()) <= self.num_classes:
            raise ValueError(f"mask: expected values of 0 to {self.num_classes} and {IGNORED}, got {np.unique(mask)}")
        if len(class_index) == 0:
            predicted = np.zeros(mask.shape, dtype=np.int64)
            below = np.zeros(mask.shape, dtype=np.int64)
        else:
            predicted = np.asarray(class_index)[cams.argmax(0)] + 1
            below = np.searchsorted(self.thresholds, cams.max(0), side="left")
        index = np.ravel_multi_index((mask[known].astype(np.int64), predicted[known], below[known]), self._counts.shape)
        self._counts += np.bincount(index, minlength=self._counts.size).reshape(self._counts.shape)

    def compute(self) -> ThresholdSweep:
        """The sweep over all images so far."""
        # A score with `b` thresholds below it is foreground at exactly the first `b` of them.
        foreground = self._counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]
        foreground[:, 0] = 0
        in_mask = self._counts.sum(axis=(1, 2))
        background = in_mask[:, None] - foreground.sum(axis=1)
        hits = np.concatenate([background[:1], np.stack([foreground[k, k] for k in range(1, self.num_classes + 1)])])
        predicted = np.concatenate([background.sum(axis=0)[None], foreground.sum(axis=0)[1:]])
        union = predicted + in_mask[:, None] - hits
        with np.errstate(invalid="ignore"):
            iou = (hits / union).T
        return ThresholdSweep(self.thresholds, iou, np.nanmean(iou, axis=1))
