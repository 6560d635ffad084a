"""mmsegmentation, the data's side: image labels, VOC and COCO as WSSS knows them, and the metric of CAMs."""

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
from semples_plugin.evaluation.sweep import CamEvaluation, ImageCounts, check_thresholds
from semples_plugin.presets import load_preset

KEY = "gt_image_labels"


@TRANSFORMS.register_module(force=True)
class LoadImageLabels:
    """Multi-hot image labels `[K]`, float32, of an image, under `gt_image_labels`.

    Args:
        source: `cls_labels.npy` of CLIMS, IRNet or WeakTr; a `.csv` or `.txt` of `image,class[,class...]` rows, with
            `class_names`; or "mask", which takes them from the loaded annotation: supervision by masks' classes,
            convenient for trials and clearly no longer image labels that somebody wrote down.
        class_names: K names in label order, for tables.
        num_classes: K, for "mask" and to check the width of the labels.
    """

    def __init__(self, source: str, class_names: Sequence[str] | None = None, num_classes: int | None = None) -> None:
        self.source, self.num_classes = source, num_classes or (len(class_names) if class_names else None)
        self.labels = {} if source == "mask" else _read_labels(Path(source), class_names)
        self._names = ImageNames()
        if source == "mask" and self.num_classes is None:
            raise ValueError('source="mask" needs num_classes, without background')

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the labels to a pipeline's results."""
        if "data_samples" in results:
            raise ValueError("LoadImageLabels comes before PackCamInputs in the pipeline")
        if self.source == "mask":
            results[KEY] = self._from_mask(results)
        else:
            if not results.get("img_path"):
                raise ValueError("an image that comes as an array has no name to look for labels: leave them out")
            name = self._names.of(results["img_path"])
            if name not in self.labels:
                raise KeyError(
                    f"{self.source} has no labels of {name} ({results['img_path']}); it has {len(self.labels)} images, "
                    f"such as {next(iter(self.labels), 'none')}"
                )
            results[KEY] = self.labels[name]
        if self.num_classes not in (None, len(results[KEY])):
            raise ValueError(
                f"{self.source}: labels have {len(results[KEY])} columns, expected {self.num_classes}; COCO's come "
                "with 80 or 90, and none has a column for the background"
            )
        return results

    def _from_mask(self, results: Mapping[str, Any]) -> NDArray[np.float32]:
        if "gt_seg_map" not in results:
            raise KeyError('source="mask" comes after LoadAnnotations in the pipeline')
        assert self.num_classes is not None
        labels = np.zeros(self.num_classes, np.float32)
        values = np.unique(results["gt_seg_map"]).astype(int)
        values = values[(values != 0) & (values != IGNORED)]
        if len(wrong := values[(values < 0) | (values > self.num_classes)]):
            raise ValueError(
                f"the mask of {results.get('img_path')} holds {wrong[0]}, expected 0 to {self.num_classes}, which "
                f"num_classes says, and {IGNORED}"
            )
        labels[values - 1] = 1
        return labels

    def __repr__(self) -> str:
        return f"{type(self).__name__}(source={self.source!r})"


@TRANSFORMS.register_module(force=True)
class PackCamInputs(PackSegInputs):
    """mmseg's `PackSegInputs`, with image labels as `data_sample.gt_image_labels.data` `[K]`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Packs the results of a pipeline."""
        if "pad_fixed_size" in results:  # Pad doesn't say what was there before
            raise ValueError(
                "the transform Pad hides which pixels are padding, and CLIP would look at them: leave it out, and let "
                'the model pad, data_preprocessor=dict(type="SegDataPreProcessor", size=..., or size_divisor=...)'
            )
        packed: dict[str, Any] = super().transform(results)
        if KEY in results:
            setattr(packed["data_samples"], KEY, LabelData(data=torch.from_numpy(np.array(results[KEY]))))
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
    if KEY not in sample:
        return None
    labels: Tensor = getattr(sample, KEY).data
    if labels.shape != (num_classes,):
        hint = "; is one of the columns the background?" if len(labels) == num_classes + 1 else ""
        raise ValueError(f"image labels have {len(labels)} columns, the model has {num_classes} classes{hint}")
    return labels


def labels_of(data_samples: Sequence[Any], num_classes: int) -> Tensor:
    """Image labels `[N, K]` of a batch; a `ValueError` where a sample has none."""
    labels = [label_of(sample, num_classes) for sample in data_samples]
    found = [label for label in labels if label is not None]
    if len(found) < len(labels):
        raise ValueError(
            'samples have no image labels: put dict(type="LoadImageLabels", source="cls_labels.npy") into the '
            'pipeline, and dict(type="PackCamInputs") in place of PackSegInputs'
        )
    return torch.stack(found)


@DATASETS.register_module(force=True)
class WsssDataset(BaseSegDataset):
    """Data of one's own, `metainfo=dict(classes=("background", ...))`, and what the two below share.

    Lists hold names, or paths as FMA-WSSS's and IRNet's do, see `read_image_paths`. Folders in them don't count, and
    two images of one name are refused: labels and CAM files couldn't tell them apart.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry for each line of the list that isn't empty."""
        if not Path(self.ann_file).is_file():
            found: list[dict[str, Any]] = super().load_data_list()
            names = ImageNames()
            for entry in found:
                names.of(entry["img_path"])
            return found
        suffixes = {"img_path": self.img_suffix, "seg_map_path": self.seg_map_suffix}
        folders = {key: self.data_prefix[key] for key in suffixes if self.data_prefix.get(key) is not None}
        rest = {"label_map": self.label_map, "reduce_zero_label": self.reduce_zero_label}
        return [
            {
                key: str(Path(folder) / f"{self.file_name(file_stem(path), key)}{suffixes[key]}")
                for key, folder in folders.items()
            }
            | {**rest, "seg_fields": []}
            for path in read_image_paths(self.ann_file)
        ]

    def file_name(self, stem: str, key: str) -> str:
        """A file's name without its ending, for what a list calls an image."""
        return stem


@DATASETS.register_module(force=True)
class WsssVoc(WsssDataset):
    """PASCAL VOC 2012 with WSSS's lists (`train_aug.txt` and others, names or paths): 20 classes and background."""

    METAINFO = PascalVOCDataset.METAINFO


_COCO = load_preset("coco").class_names


@DATASETS.register_module(force=True)
class WsssCoco(WsssDataset):
    """COCO 2014 for WSSS: 80 classes and background.

    Args:
        split: "train" or "val", where files are called `COCO_train2014_000000000009.jpg` and lists hold the digits
            alone; None where files are called as in the list.
        masks: what masks hold: 80, classes 1 to 80 in order; or 90, WeakTr's, COCO's category ids from 1.
        kwargs: of mmseg's `BaseSegDataset`.
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": ("background", *_COCO)}

    def __init__(self, split: str | None = None, masks: int = 80, **kwargs: Any) -> None:
        if masks not in (80, 90):
            raise ValueError(f"masks: expected 80 or 90, got {masks}")
        self.split, self.masks = split, masks
        super().__init__(**kwargs)

    def file_name(self, stem: str, key: str) -> str:
        """Where there is a split, the digits, with COCO's prefix for images; else what the list has."""
        if not self.split:
            return stem
        return f"COCO_{self.split}2014_{image_name(stem)}" if key == "img_path" else image_name(stem)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Entries that map category ids to classes where masks hold ids."""
        found = super().load_data_list()
        if self.masks == 90:
            with_unused = load_preset("release-coco").class_names
            ids = {i: _COCO.index(name) + 1 if name in _COCO else IGNORED for i, name in enumerate(with_unused, 1)}
            for entry in found:
                entry["label_map"] = {0: 0, **ids}
        return found


@METRICS.register_module(force=True)
class CamMetric(BaseMetric):
    """mIoU of CAMs against masks at every background score, from one pass: `mIoU` at the best, and which that is.

    It reads the scores that `CamSegmentor` leaves in `seg_logits`, background first; 255 is ignored. The best score is
    chosen on the masks that it is reported on: on another set give `thresholds=[...]` with the one that was chosen. It
    can write the CAMs as well, for `semples eval`, `report` and `pseudo-masks`. What test-time augmentation
    merged has no scores of its own, and is refused.

    Args:
        thresholds: background scores in [0, 1], ascending; 0.00 to 0.99 by default.
        output_dir: folder for a CAM file of each image, in WeakTr's format; images without masks are only written.
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
        """Counts a batch."""
        evaluation = CamEvaluation(len(self.dataset_meta["classes"]) - 1, self.thresholds)
        for sample in data_samples:
            logits = sample["seg_logits"]["data"]
            segments = sample["pred_sem_seg"]["data"].view(1, *logits.shape[1:])
            if not torch.equal(logits.gather(0, segments), logits.amax(0, keepdim=True)):
                raise ValueError(
                    "seg_logits don't give pred_sem_seg: mmseg's test-time augmentation merges the latter alone; judge "
                    "that by IoUMetric"
                )
            scores = logits[1:].float().cpu().numpy()
            present = [k for k, plane in enumerate(scores) if plane.max() >= 0]
            planes = [scores[k] for k in present]
            if self.output_dir is not None:
                path = self.output_dir / f"{self._names.of(sample['img_path'])}.npy"
                write_cams(path, Cams(planes, tuple(present), "weaktr"))
            if "gt_sem_seg" in sample:
                mask = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
                self.results.append(evaluation.count(planes, present, mask))
            elif self.output_dir is None:
                raise ValueError("samples have no masks: put LoadAnnotations into the pipeline, or give output_dir")

    def compute_metrics(self, results: list[ImageCounts]) -> dict[str, float]:
        """`mIoU`, `precision` and `recall` in percent at the best background score, and that `threshold`."""
        if not results:
            return {}
        names = self.dataset_meta["classes"]
        evaluation = CamEvaluation(len(names) - 1, self.thresholds)
        for counts in results:
            evaluation.add(counts)
        sweep = evaluation.compute()
        t = sweep.best
        rows = [
            f"{name:20} {100 * iou:6.2f}" for name, iou in zip(names, sweep.iou[t], strict=True) if not np.isnan(iou)
        ]
        logger: MMLogger = MMLogger.get_current_instance()
        logger.info("IoU [%%] of CAMs at the background score %g:\n%s", sweep.thresholds[t], "\n".join(rows))
        return {
            "mIoU": 100 * float(sweep.miou[t]),
            "precision": 100 * float(np.nanmean(sweep.precision[t])),
            "recall": 100 * float(np.nanmean(sweep.recall[t])),
            "threshold": float(sweep.thresholds[t]),
        }
