"""mmsegmentation, the configs of a run: another data folder, fragments, and how a trained network is tested."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from semples_plugin.data.image_names import image_name, read_image_paths
from semples_plugin.data.images import find_mask
from semples_plugin.utils.atomic_files import replacing

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
SUBMISSION = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where VOC's evaluation server looks for masks, of competition 6: trained with more than VOC's own data."""


@dataclass(frozen=True)
class Test:
    """How a trained network is tested.

    Attributes:
        tta: whether at several scales, and flipped: the config's `tta_model` and `tta_pipeline`.
        crf: iterations of a dense CRF; 0 for none.
        masks: folder for the predicted masks, palette PNGs.
        submit: folder for what VOC's evaluation server takes; images have no ground truth then.
        image_list: of images, instead of the config's.
    """

    tta: bool = False
    crf: int = 0
    masks: Path | None = None
    submit: Path | None = None
    image_list: Path | None = None

    def apply(self, config: Config) -> None:
        """Changes a config accordingly.

        Raises:
            ValueError: where the config can't be tested so.
        """
        evaluator = config.test_evaluator
        if (self.crf or self.masks or self.submit) and evaluator.get("type") != "SegmentationMetric":
            raise ValueError(
                f"a CRF and masks are SegmentationMetric's, and this config's test_evaluator is {evaluator.get('type')}"
            )
        data = config.test_dataloader.dataset
        if self.image_list is not None:
            data.ann_file = str(self.image_list.resolve())
        if self.tta:
            if "tta_model" not in config or "tta_pipeline" not in config:
                raise ValueError("this config has no tta_model and tta_pipeline to test at several scales with")
            data.pipeline = config.tta_pipeline
            config.model = {**config.tta_model, "module": config.model}
        if self.crf:
            evaluator.crf = self.crf
        if self.masks is not None:
            evaluator.output_dir = str(self.masks)
        if self.submit is not None:
            if data.type != "WsssVoc":
                raise ValueError(f"the evaluation server takes masks of VOC, and the config's data are {data.type}")
            if self.image_list is None:
                data.ann_file = "ImageSets/Segmentation/test.txt"
            data.pipeline = without_annotations(data.pipeline)
            evaluator.output_dir = str(self.submit / SUBMISSION)

    @property
    def name(self) -> str:
        """Of the file of its figures: test-tta-crf10, say."""
        return "test" + "-tta" * self.tta + f"-crf{self.crf}" * bool(self.crf)


def without_annotations(pipeline: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A pipeline, also of test-time augmentation, without the transform that loads ground truth."""
    kept = [step for step in pipeline if step["type"] != "LoadAnnotations"]
    for i, step in enumerate(kept):
        if step["type"] == "TestTimeAug":
            alternatives = [without_annotations(transforms) for transforms in step["transforms"]]
            kept[i] = {**step, "transforms": [transforms for transforms in alternatives if transforms]}
    return kept


def use_data(config: Config, root: Path | None = None, pseudo_masks: Path | None = None) -> None:
    """Other folders of the data set, and of the masks that are trained on, than the config's.

    Raises:
        FileNotFoundError: where a folder doesn't exist, or a listed image has no pseudo mask.
    """
    for folder in (root, pseudo_masks):
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    if root is not None:
        for loader in LOADERS:
            if loader in config:
                config[loader].dataset.data_root = str(root)
    if pseudo_masks is not None:
        config.train_dataloader.dataset.data_prefix.seg_map_path = str(pseudo_masks.resolve())


def check_whole(config: Config, name: str) -> None:
    """Raises a `ValueError` where a config can't be run by itself, as one that changes what it names in another."""
    model = config.get("model")
    if not isinstance(model, Mapping) or "type" not in model:
        raise ValueError(f"{name} is no whole config, as it names no type of model: give it as CONFIG --with {name}")


def check_data(config: Config, testing: bool) -> None:
    """Looks for the lists and folders of the data that a run reads, before anything is built.

    Args:
        config: of the run.
        testing: whether it tests a network, and trains none.

    Raises:
        FileNotFoundError: where they aren't there.
        ValueError: where the config has no data for it.
    """
    wanted = LOADERS[2:] if testing else LOADERS
    if wanted[0] not in config:
        raise ValueError(f"the config has no {wanted[0]}: there is nothing to {'test on' if testing else 'train on'}")
    for loader in wanted:
        data = config.get(loader, {}).get("dataset", {})
        root = Path(data.get("data_root") or "")
        for path in (root, root / (data.get("ann_file") or "")):
            if not path.exists():
                raise FileNotFoundError(f"{loader}: there is no {path}; --data FOLDER names the data set's folder")


def check_pseudo_masks(config: Config) -> None:
    """Raises a `FileNotFoundError` where an image of the training list has no mask: mmseg would, after hours."""
    data = config.train_dataloader.dataset
    if not data.type.startswith("Wsss") or not any(step.get("type") == "LoadAnnotations" for step in data.pipeline):
        return
    image_list = Path(data.data_root) / data.ann_file
    folder = Path(data.data_root) / data.data_prefix.seg_map_path
    names = [image_name(path) for path in read_image_paths(image_list)]
    missing = [name for name in names if not find_mask(folder, name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no mask of {len(missing)} of the {len(names)} images of {image_list}, such as "
            f"{missing[0]}.png; `semples pseudo-masks` writes them"
        )


def write_metrics(path: Path, metrics: Mapping[str, Any], **settings: Any) -> None:
    """Writes a test's figures, in percent, and what they are of, as JSON."""
    values = {name: round(float(value), 4) for name, value in metrics.items()}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**values, **settings}, indent=2) + "\n", encoding="utf-8")


def pack_submission(folder: Path, names: Iterable[str]) -> Path:
    """Packs the masks below a folder as VOC's evaluation server takes them, `results.tgz`.

    Args:
        folder: that `Test.submit` names.
        names: of all images of the test list.

    Raises:
        FileNotFoundError: where an image has no mask.
    """
    files = {name: folder / SUBMISSION / f"{name}.png" for name in names}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder / SUBMISSION} has no mask of {len(missing)} images, such as {missing[0]}")
    target = folder / "results.tgz"
    with replacing(target) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for name, file in files.items():
            archive.add(file, f"{SUBMISSION}/{name}.png")
    return target
