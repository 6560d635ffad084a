"""mmsegmentation, the data: image labels, VOC and COCO as WSSS uses them, and the metric of CAMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.structures import LabelData
from mmseg.datasets.basesegdataset import BaseSegDataset
from mmseg.datasets.transforms import PackSegInputs
from mmseg.datasets.voc import PascalVOCDataset
from mmseg.registry import DATASETS, METRICS, TRANSFORMS
from numpy.typing import NDArray
from torch import Tensor

from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.data.image_labels import load_image_labels
from semples_plugin.data.image_names import ImageNames, file_stem, image_name, read_image_paths
from semples_plugin.data.images import IGNORED
from semples_plugin.data.make_labels import read_table
from semples_plugin.evaluation.folders import THRESHOLDS
from semples_plugin.evaluation.iou import CamEvaluation, ImageCounts, check_thresholds
from semples_plugin.presets import load_preset

LABELS_KEY = "gt_image_labels"


@TRANSFORMS.register_module(force=True)
class LoadImageLabels:
    """Multi-hot image labels `[K]`, float32, of an image, under `gt_image_labels`.

    Args:
        source: `cls_labels.npy` of CLIMS, IRNet or WeakTr; a `.csv` or `.txt` of `image,class[,class...]`
            rows, with `class_names`; or "mask", which derives them from the loaded ground truth: convenient
            for trials, but no longer supervision by labels that somebody assigned to images.
        class_names: K names in label order, for tables.
        num_classes: K, for "mask" and to check the width of the labels.

    Raises:
        FileNotFoundError: where there is no file `source`.
        KeyError: for an image without labels.
        ValueError: for labels of another width, two images of one name, or a wrong order of transforms.
    """

    def __init__(self, source: str, class_names: Sequence[str] | None = None, num_classes: int | None = None) -> None:
        self.source, self.num_classes = source, num_classes
        if num_classes is None and class_names:
            self.num_classes = len(class_names)
        if source == "mask" and self.num_classes is None:
            raise ValueError('source="mask" needs num_classes, without background')
        self.labels = {} if source == "mask" else _read_labels(Path(source), class_names)
        self._names = ImageNames()

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the labels to a pipeline's results."""
        if "data_samples" in results:
            raise ValueError("LoadImageLabels comes before PackCamInputs in the pipeline")
        labels = self._from_ground_truth(results) if self.source == "mask" else self._from_file(results)
        if self.num_classes not in (None, len(labels)):
            raise ValueError(
                f"{self.source}: labels have {len(labels)} columns, expected {self.num_classes}; COCO's come "
                "with 80 or 90, and none has a column for the background"
            )
        results[LABELS_KEY] = labels
        return results

    def _from_file(self, results: Mapping[str, Any]) -> NDArray[np.float32]:
        path = results.get("img_path")
        if not path:
            raise ValueError("an image that comes as an array has no name to look for labels: leave them out")
        name = self._names.of(path)
        if name not in self.labels:
            raise KeyError(
                f"{self.source} has no labels of {name} ({path}); it has {len(self.labels)} images, "
                f"such as {next(iter(self.labels), 'none')}"
            )
        return self.labels[name]

    def _from_ground_truth(self, results: Mapping[str, Any]) -> NDArray[np.float32]:
        if "gt_seg_map" not in results:
            raise KeyError('source="mask" comes after LoadAnnotations in the pipeline')
        assert self.num_classes is not None
        values = np.unique(results["gt_seg_map"]).astype(int)
        values = values[(values != 0) & (values != IGNORED)]
        wrong = values[(values < 0) | (values > self.num_classes)]
        if len(wrong):
            raise ValueError(
                f"the ground truth of {results.get('img_path')} holds {wrong[0]}, expected 0 to {self.num_classes}, "
                f"which num_classes says, and {IGNORED}"
            )
        labels = np.zeros(self.num_classes, np.float32)
        labels[values - 1] = 1
        return labels

    def __repr__(self) -> str:
        return f"{type(self).__name__}(source={self.source!r})"


@TRANSFORMS.register_module(force=True)
class PackCamInputs(PackSegInputs):
    """mmseg's `PackSegInputs`, with image labels as `data_sample.gt_image_labels.data` `[K]`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Packs the results of a pipeline."""
        if "pad_fixed_size" in results:  # Pad doesn't say which size the image had
            raise ValueError(
                "the transform Pad hides which pixels are padding, and CLIP would look at them: leave it out, and let "
                'the model pad, data_preprocessor=dict(type="SegDataPreProcessor", size=..., or size_divisor=...)'
            )
        packed: dict[str, Any] = super().transform(results)
        if LABELS_KEY in results:
            setattr(packed["data_samples"], LABELS_KEY, LabelData(data=torch.from_numpy(np.array(results[LABELS_KEY]))))
        return packed


def _read_labels(source: Path, class_names: Sequence[str] | None) -> dict[str, NDArray[np.float32]]:
    if not source.is_file():
        raise FileNotFoundError(
            f"there is no file {source} of image labels; `semples labels` makes it from masks, COCO's JSON or a CSV"
        )
    if source.suffix == ".npy":
        return load_image_labels(source)
    if class_names is None:
        raise ValueError(f"{source}: a table of labels needs class_names, in label order")
    labels = {}
    for name, classes in read_table(source, list(class_names)).items():
        labels[name] = np.zeros(len(class_names), np.float32)
        labels[name][list(classes)] = 1
    return labels


def label_of(sample: Any, num_classes: int) -> Tensor | None:
    """Image labels `[K]` of a sample, or None where it has none."""
    if LABELS_KEY not in sample:
        return None
    labels: Tensor = getattr(sample, LABELS_KEY).data
    if labels.shape != (num_classes,):
        has_one_more = len(labels) == num_classes + 1
        hint = "; is one of the columns the background?" if has_one_more else ""
        raise ValueError(f"image labels have {len(labels)} columns, the model has {num_classes} classes{hint}")
    return labels


def labels_of(data_samples: Sequence[Any], num_classes: int) -> Tensor:
    """Image labels `[N, K]` of a batch, on the CPU; a `ValueError` where a sample has none.

    mmengine puts samples on the device, which is waited for here: call it before the model's work is queued there.
    """
    labels = []
    for sample in data_samples:
        label = label_of(sample, num_classes)
        if label is None:
            raise ValueError(
                'samples have no image labels: put dict(type="LoadImageLabels", source="cls_labels.npy") into the '
                'pipeline, and dict(type="PackCamInputs") in place of PackSegInputs'
            )
        labels.append(label)
    return torch.stack(labels).cpu()


@DATASETS.register_module(force=True)
class WsssDataset(BaseSegDataset):
    """Any other data, `metainfo=dict(classes=("background", ...))`, and what the two data sets below share.

    Lists hold names, or paths as FMA-WSSS's and IRNet's do, see `read_image_paths`. Folders in them don't
    count, and
    two images of one name are refused: labels and CAM files couldn't tell them apart.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry for each line of the list that isn't empty; without a list, for each image of the folder."""
        if Path(self.ann_file).is_file():
            return [self._entry(path) for path in read_image_paths(self.ann_file)]
        entries: list[dict[str, Any]] = super().load_data_list()
        names = ImageNames()  # refuses two images of one name
        for entry in entries:
            names.of(entry["img_path"])
        return entries

    def _entry(self, listed: str) -> dict[str, Any]:
        """mmseg's description of an image, of which a list holds a name or a path."""
        entry: dict[str, Any] = {
            "label_map": self.label_map,
            "reduce_zero_label": self.reduce_zero_label,
            "seg_fields": [],
        }
        for key, suffix in (("img_path", self.img_suffix), ("seg_map_path", self.seg_map_suffix)):
            folder = self.data_prefix.get(key)
            if folder is not None:
                entry[key] = str(Path(folder) / f"{self.file_name(file_stem(listed), key)}{suffix}")
        return entry

    def file_name(self, stem: str, key: str) -> str:
        """A file's name without its ending, for what a list calls an image."""
        return stem


@DATASETS.register_module(force=True)
class WsssVoc(WsssDataset):
    """PASCAL VOC 2012 with WSSS's lists (`train_aug.txt` and others, names or paths): 20 classes and background."""

    METAINFO = PascalVOCDataset.METAINFO


COCO_CLASSES = load_preset("coco").class_names


@DATASETS.register_module(force=True)
class WsssCoco(WsssDataset):
    """COCO 2014 for WSSS: 80 classes and background.

    Args:
        split: "train" or "val", where files are called `COCO_train2014_000000000009.jpg` and lists hold the
            digits alone; None where files are called as in the list.
        masks: what the ground truth holds: 80, classes 1 to 80 in order; or 90, WeakTr's, COCO's category ids
            from 1.
        kwargs: of mmseg's `BaseSegDataset`.
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": ("background", *COCO_CLASSES)}

    def __init__(self, split: str | None = None, masks: int = 80, **kwargs: Any) -> None:
        if masks not in (80, 90):
            raise ValueError(f"masks: expected 80 or 90, got {masks}")
        self.split, self.masks = split, masks
        super().__init__(**kwargs)

    def file_name(self, stem: str, key: str) -> str:
        """With a split, the digits, with COCO's prefix for images; otherwise the name that the list holds."""
        if not self.split:
            return stem
        digits = image_name(stem)
        return f"COCO_{self.split}2014_{digits}" if key == "img_path" else digits

    def load_data_list(self) -> list[dict[str, Any]]:
        """Entries that map category ids to classes where the ground truth holds ids."""
        entries = super().load_data_list()
        if self.masks == 90:
            label_map = _map_category_ids()
            for entry in entries:
                entry["label_map"] = label_map
        return entries


def _map_category_ids() -> dict[int, int]:
    """COCO's category ids, which leave gaps among 90, to background and the 80 classes in order; gaps are ignored."""
    label_map = {0: 0}
    for category_id, name in enumerate(load_preset("release-coco").class_names, start=1):
        label_map[category_id] = COCO_CLASSES.index(name) + 1 if name in COCO_CLASSES else IGNORED
    return label_map


@METRICS.register_module(force=True)
class CamMetric(BaseMetric):
    """mIoU [%] of CAMs against ground truth: every background score in one pass, the best is reported.

    It reads the scores that `CamSegmentor` leaves in `seg_logits`, background first; 255 is ignored. The best
    background score is chosen on the ground truth that it is reported on: on another set give
    `thresholds=[...]` with the score that was chosen. It can write the CAMs as well, for `semples eval`,
    `report` and `pseudo-masks`. Merged predictions of test-time augmentation have no scores, and are refused.

    Args:
        thresholds: background scores in [0, 1], ascending; 0.00 to 0.99 by default.
        output_dir: folder for a CAM file of each image, in WeakTr's format; images without ground truth are
            only written.
        collect_device, prefix: of mmengine.
    """

    default_prefix = "cam"

    def __init__(
        self,
        thresholds: Sequence[float] | None = None,
        output_dir: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.thresholds = THRESHOLDS if thresholds is None else check_thresholds(thresholds)
        self._names = ImageNames()

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Counts, and writes, a batch."""
        evaluation = CamEvaluation(len(self.dataset_meta["classes"]) - 1, self.thresholds)
        for sample in data_samples:
            cams, present = _present_cams(sample)
            if self.output_dir is not None:
                path = self.output_dir / f"{self._names.of(sample['img_path'])}.npy"
                write_cams(path, Cams(cams, present, "weaktr"))
            if "gt_sem_seg" in sample:
                ground_truth = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
                self.results.append(evaluation.count(cams, present, ground_truth))
            elif self.output_dir is None:
                raise ValueError(
                    "samples have no ground truth: put LoadAnnotations into the pipeline, or give output_dir"
                )

    def compute_metrics(self, results: list[ImageCounts]) -> dict[str, float]:
        """`mIoU`, `precision` and `recall` in percent at the best background score, and that `threshold`."""
        if not results:
            return {}
        names = self.dataset_meta["classes"]
        evaluation = CamEvaluation(len(names) - 1, self.thresholds)
        for counts in results:
            evaluation.add(counts)
        sweep = evaluation.compute()
        best = sweep.best
        rows = []
        for name, iou in zip(names, sweep.iou[best], strict=True):
            if not np.isnan(iou):  # the class is neither in the ground truth nor predicted
                rows.append(f"{name:20} {100 * iou:6.2f}")
        logger: MMLogger = MMLogger.get_current_instance()
        logger.info("IoU [%%] of CAMs at the background score %g:\n%s", sweep.thresholds[best], "\n".join(rows))
        return {
            "mIoU": 100 * float(sweep.miou[best]),
            "precision": 100 * float(np.nanmean(sweep.precision[best])),
            "recall": 100 * float(np.nanmean(sweep.recall[best])),
            "threshold": float(sweep.thresholds[best]),
        }


def _present_cams(sample: Mapping[str, Any]) -> tuple[list[NDArray[np.float32]], tuple[int, ...]]:
    """CAMs `[H, W]` and indices of the classes that a prediction has scores of; absent ones have -1."""
    logits = sample["seg_logits"]["data"]
    segmentation = sample["pred_sem_seg"]["data"].view(1, *logits.shape[1:])
    if not torch.equal(logits.gather(0, segmentation), logits.amax(0, keepdim=True)):
        raise ValueError(
            "seg_logits don't give pred_sem_seg: mmseg's test-time augmentation merges the latter alone; judge "
            "that by IoUMetric"
        )
    scores = logits[1:].float().cpu().numpy()
    present = tuple(k for k, cam in enumerate(scores) if cam.max() >= 0)
    return [scores[k] for k in present], present
