"""mmsegmentation, stage two: scores merged over scales and flips, a dense CRF, and masks as palette PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS, MODELS
from torch import Tensor

from semples_plugin.data.dense_crf import import_crf, refine_scores
from semples_plugin.data.image_names import ImageNames
from semples_plugin.data.images import read_image, write_mask
from semples_plugin.utils.checks import check_number
from semples_plugin.utils.text import shown

SCORES = ("logits", "probabilities")
"""What a segmentation network's `seg_logits` are: for a softmax, or not negative, as Mask2Former's sums over masks."""


@MODELS.register_module(force=True)
class MergedScores(BaseTTAModel):
    """The mean over scales and flips of a network's scores, which stay in the predictions, for a CRF.

    mmseg's `SegTTAModel` merges segmentations alone: the scores that it leaves are those of its last view, and it takes
    the softmax of whatever they are.

    Args:
        module: the segmentation network, or its config.
        scores: "logits", whose softmax is averaged, as `SegTTAModel` does it; or "probabilities", averaged as they are,
            as Mask2Former's own code does it.
        data_preprocessor: of mmengine.

    Raises:
        ValueError: for other scores.
    """

    def __init__(self, module: Any, scores: str = "logits", data_preprocessor: Any = None) -> None:
        super().__init__(module, data_preprocessor)
        check_scores(scores)
        self.scores = scores

    def merge_preds(self, data_samples_list: Sequence[Sequence[Any]]) -> list[Any]:
        """One prediction for each image: `seg_logits` of the same kind `[C, H, W]`, and `pred_sem_seg` `[1, H, W]`."""
        merged = []
        for views in data_samples_list:
            mean = torch.zeros_like(views[0].seg_logits.data, dtype=torch.float32)
            for view in views:
                scores = view.seg_logits.data.float()
                mean += (scores.softmax(0) if self.scores == "logits" else scores) / len(views)
            if self.scores == "logits":
                mean = mean.clamp_min(torch.finfo(torch.float32).tiny).log()
            sample = views[0]
            sample.set_data({"seg_logits": PixelData(data=mean), "pred_sem_seg": PixelData(data=mean.argmax(0)[None])})
            merged.append(sample)
        return merged


@METRICS.register_module(force=True)
class SegmentationMetric(IoUMetric):
    """mmseg's `IoUMetric`, mIoU by default; a dense CRF before it, and the masks as PNGs with VOC's palette.

    Images without ground truth, such as a test server's, are only written.

    Args:
        crf: iterations of a dense CRF over the scores, with DeepLab v2's settings (10 is usual); 0 for none. It looks
            at the image in its own size, and takes a CPU a second or more.
        scores: what the network's `seg_logits` are, see `SCORES`; for the CRF.
        output_dir: folder for a mask of each image, at its size, named as `image_name` names it; 0 is background.
        options: of `IoUMetric`.

    Raises:
        ImportError: where `pydensecrf2` is missing for the CRF.
        TypeError, ValueError: where an option is of another kind or out of its range.
    """

    def __init__(self, *, crf: int = 0, scores: str = "logits", output_dir: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_number("crf", crf, 0, whole=True)
        check_scores(scores)
        if crf:
            import_crf()
        self.crf, self.scores = crf, scores
        self.masks = None if output_dir is None else Path(output_dir)
        self._names = ImageNames()

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Refines, writes and counts a batch."""
        for sample in data_samples:
            labels = sample["pred_sem_seg"]["data"].squeeze(0)
            if self.crf:
                labels = self._refined(sample)
            if self.masks is not None:
                name = self._names.of(sample["img_path"])
                write_mask(self.masks / f"{name}.png", labels.cpu().numpy().astype("uint8"))
            if "gt_sem_seg" in sample:
                super().process(data_batch, [{**sample, "pred_sem_seg": {"data": labels[None]}}])
            elif self.masks is None:
                raise ValueError(
                    "samples have no ground truth: put LoadAnnotations into the pipeline, or give output_dir"
                )

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """mmseg's figures, in percent; none where no image has ground truth."""
        return super().compute_metrics(results) if results else {}

    def _refined(self, sample: dict[str, Any]) -> Tensor:
        if "seg_logits" not in sample:
            raise ValueError("a CRF needs scores: the model predicts no seg_logits, take MergedScores for scales")
        scores = sample["seg_logits"]["data"].float()
        if self.scores == "logits":
            probabilities = scores.softmax(0)
        elif float(scores.min()) < 0:
            raise ValueError('scores="probabilities", but the model predicts negative ones; are they "logits"?')
        else:
            probabilities = scores / scores.sum(0, keepdim=True).clamp_min(1e-12)
        labels = refine_scores(probabilities.cpu().numpy(), read_image(sample["img_path"]), self.crf)
        return torch.from_numpy(labels.astype("int64")).to(scores.device)


def check_scores(scores: str) -> None:
    """Raises a `ValueError` for another kind of scores."""
    if scores not in SCORES:
        raise ValueError(f"scores: expected one of {', '.join(SCORES)}, got {shown(scores)}")
