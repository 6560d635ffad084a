"""WeakTr's second stage, OnlineRetraining, which is written for mmsegmentation 0.x: what it uses of that, on today's.

Registered with `weaktr.CORRECTIONS`. Its data sets and transforms are those of mmsegmentation 1.x, whose old
names WeakTr's configs still use. xformers and apex serve EVA-02 and DINOv2 alone, which these commands don't
train.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from semples_plugin.compat.common import restore_numpys_old_types
from semples_plugin.compat.corrections import Corrections

DEIT = "https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth"  # main.py:128


def register(corrections: Corrections) -> None:
    """Adds what OnlineRetraining needs to the host's corrections."""
    corrections.stand_in("xformers")(_fill_nothing)  # segm/model/blocks.py:17, EVA-02's attention
    corrections.stand_in("xformers.ops")(_fill_nothing)
    corrections.stand_in("apex")(_fill_nothing)
    corrections.stand_in("apex.normalization")(fill_apex)
    corrections.stand_in("mmseg.core")(fill_mean_iou)
    corrections.stand_in("mmseg.datasets.builder")(fill_builder)
    corrections.stand_in("mmseg.datasets.custom")(fill_custom)
    corrections.after("mmseg.datasets")(add_build_dataset)
    corrections.after("mmcv.utils")(add_config)
    corrections.after("timm.models.vision_transformer")(name_deits_weights)
    corrections.after("timm.optim.nadam")(lambda module: _rename(module, "NAdamLegacy", "Nadam"))
    corrections.after("timm.optim.radam")(lambda module: _rename(module, "RAdamLegacy", "RAdam"))
    corrections.after("numpy")(restore_numpys_old_types)  # segm/metrics.py:113


def _fill_nothing(module: Any) -> None:
    """It is imported, and not used by what runs here."""


def _rename(module: Any, todays: str, former: str) -> None:
    """segm/optim/optim_factory.py:27, :30."""
    setattr(module, former, getattr(module, todays))


def fill_apex(module: Any) -> None:
    """segm/model/factory.py:20: EVA-02's norm, which computes what torch's does."""
    from torch import nn

    module.FusedLayerNorm = nn.LayerNorm


def add_config(utils: Any) -> None:
    """segm/data/base.py:11: `mmcv.utils.Config`, which mmengine has now."""
    from mmengine.config import Config

    utils.Config = Config


def name_deits_weights(vision_transformer: Any) -> None:
    """segm/model/factory.py:79: timm no longer lists DeiT's weights there; the same file as `--finetune`'s."""
    vision_transformer.default_cfgs["deit_small_patch16_224"] = {"url": DEIT, "num_classes": 1000}


def fill_mean_iou(module: Any) -> None:
    """segm/metrics.py:11: `mmseg.core.mean_iou`, of whole label maps, ground truth of `ignore_index` left out."""
    import numpy as np

    def mean_iou(results: Any, gt_seg_maps: Any, num_classes: int, ignore_index: int) -> dict[str, Any]:
        pixels = np.zeros((num_classes, num_classes), dtype=np.int64)
        for predicted, truth in zip(results, gt_seg_maps, strict=True):
            counted = truth != ignore_index
            places = num_classes * truth[counted].astype(np.int64) + predicted[counted]
            pixels += np.bincount(places, minlength=num_classes**2).reshape(pixels.shape)
        hits, truths = pixels.diagonal(), pixels.sum(1)
        with np.errstate(invalid="ignore"):  # a class that occurs nowhere is NaN, which doesn't count
            return {
                "aAcc": np.asarray(hits.sum() / pixels.sum()),
                "IoU": hits / (truths + pixels.sum(0) - hits),
                "Acc": hits / truths,
            }

    module.mean_iou = mean_iou


class _NoRegistry:
    """segm/datasets/coco.py:13 registers a class by which `LabelledImages` isn't found."""

    def register_module(self) -> Any:
        return lambda registered: registered


def fill_builder(module: Any) -> None:
    """segm/datasets/coco.py:3."""
    module.DATASETS = _NoRegistry()


def fill_custom(module: Any) -> None:
    """segm/datasets/coco.py:5."""
    module.CustomDataset = LabelledImages


def add_build_dataset(datasets: Any) -> None:
    """segm/data/base.py:9: `mmseg.datasets.build_dataset`, for its PascalVOCDataset and COCODataset."""
    datasets.DATASETS = _NoRegistry()  # segm/data/coco.py:6
    datasets.build_dataset = lambda config: LabelledImages(config)


class LabelledImages:
    """A data set as mmsegmentation 0.x had them: images of a list, with label maps or scaled and flipped for a test.

    Args:
        config: of `segm/data/config`, its pipeline filled in by `segm/data/base.py`.
    """

    def __init__(self, config: Any) -> None:
        root = Path(config["data_root"])
        self.img_dir, self.ann_dir = root / config["img_dir"], root / config["ann_dir"]
        names = (root / config["split"]).read_text(encoding="utf-8").split()
        self.img_infos: list[dict[str, Any]] = [
            {"filename": f"{name}.jpg", "ann": {"seg_map": f"{name}.png"}} for name in names
        ]
        load, *rest = config["pipeline"]
        assert load["type"] == "LoadImageFromFile"
        self._test = rest[0] if rest[0]["type"] == "MultiScaleFlipAug" else None
        self._train = None if self._test else _todays_transforms(rest)

    def __len__(self) -> int:
        return len(self.img_infos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        info = self.img_infos[index]
        image = self.img_dir / info["filename"]
        if self._train is None:
            return _scaled_and_flipped(image, self._test)
        found = self._train({
            "img_path": str(image), "seg_map_path": str(self.ann_dir / info["ann"]["seg_map"]),
            "reduce_zero_label": False, "label_map": None, "seg_fields": [],
        })  # fmt: skip
        return {
            "img": _as_data(found["img"].transpose(2, 0, 1)),
            "gt_semantic_seg": _as_data(found["gt_seg_map"][None]),
        }


def _as_data(array: Any) -> SimpleNamespace:
    """What `DataContainer` was to segm/data/base.py:104: something with a tensor as `data`."""
    import numpy as np
    import torch

    return SimpleNamespace(data=torch.from_numpy(np.ascontiguousarray(array)))


def _todays_transforms(pipeline: Any) -> Any:
    """A training pipeline of mmsegmentation 0.x, by mmsegmentation 1.x."""
    import mmseg.datasets.transforms
    from mmcv.transforms import Compose, LoadImageFromFile, Normalize, Pad, RandomFlip, RandomResize

    ours = mmseg.datasets.transforms
    todays: dict[str, Any] = {
        "LoadAnnotations": lambda: ours.LoadAnnotations(),
        "Resize": lambda img_scale, ratio_range: RandomResize(img_scale, ratio_range, keep_ratio=True),
        "RandomCrop": lambda **options: ours.RandomCrop(**options),
        "RandomFlip": lambda prob: RandomFlip(prob),
        "PhotoMetricDistortion": lambda: ours.PhotoMetricDistortion(),
        "Normalize": lambda **options: Normalize(**options),
        "Pad": lambda size, pad_val, seg_pad_val: Pad(size, pad_val={"img": pad_val, "seg": seg_pad_val}),
    }
    transforms = [LoadImageFromFile()]
    for step in pipeline:
        options = dict(step)
        name = options.pop("type")
        if name not in ("DefaultFormatBundle", "Collect"):  # `_as_data`
            transforms.append(todays[name](**options))
    return Compose(transforms)


def _scaled_and_flipped(path: Path, config: Any) -> dict[str, Any]:
    """`MultiScaleFlipAug`: at each ratio of `img_scale`, and flipped where `flip` says so."""
    import mmcv
    import numpy as np
    import torch

    normalize = next(step for step in config["transforms"] if step["type"] == "Normalize")
    mean, std = (np.asarray(normalize[name], dtype=np.float32) for name in ("mean", "std"))
    image = mmcv.imread(str(path))
    images, metas = [], []
    for ratio in config.get("img_ratios") or [1.0]:
        scaled = mmcv.imrescale(image, tuple(int(side * ratio) for side in config["img_scale"]))
        for flip in (False, True) if config["flip"] else (False,):
            turned = mmcv.imnormalize(mmcv.imflip(scaled) if flip else scaled, mean, std, normalize["to_rgb"])
            images.append(torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1))))
            meta = {"ori_shape": image.shape, "ori_filename": path.name, "flip": flip}
            metas.append(SimpleNamespace(data=meta))
    return {"img": images, "img_metas": metas}
