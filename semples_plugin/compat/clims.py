"""What CLIMS needs on today's Python and packages; each correction names the line of CLIMS that needs it."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from semples_plugin.compat.common import fill_packaging, restore_numpys_old_types
from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()
_ONE = "max(1, args.num_workers)"
CORRECTIONS.stand_in("pkg_resources")(fill_packaging)  # clip-anytorch, for clip_utils.py:75
CORRECTIONS.after("numpy")(restore_numpys_old_types)  # voc12/dataloader.py:194, misc/pyutils.py:86


@CORRECTIONS.stand_in("cmapy")  # demo_utils.py:46, step/make_clims.py:31
def fill_cmapy(module: ModuleType) -> None:
    """Colour maps as OpenCV takes them; cmapy itself calls a function that matplotlib no longer has."""

    def cmap(name: str) -> Any:
        import numpy as np
        from matplotlib import colormaps

        colours = colormaps[name](np.arange(256), bytes=True)
        return np.ascontiguousarray(colours[:, None, 2::-1])

    module.cmap = cmap  # type: ignore[attr-defined]


@CORRECTIONS.stand_in("chainercv")  # step/eval_cam.py:2
def fill_chainercv(module: ModuleType) -> None:
    """chainercv no longer builds; its two parts that CLIMS uses stand below."""


@CORRECTIONS.stand_in("chainercv.datasets")
def fill_chainercv_datasets(module: ModuleType) -> None:
    """VOC's images and ground truth, where 255 becomes -1."""
    import numpy as np
    from PIL import Image

    class VOCSemanticSegmentationDataset:
        def __init__(self, data_dir: str, split: str = "train") -> None:
            self.data_dir = data_dir
            self.ids = (
                (Path(data_dir) / "ImageSets" / "Segmentation" / f"{split}.txt").read_text(encoding="utf-8").split()
            )

        def __len__(self) -> int:
            return len(self.ids)

        def get_example_by_keys(self, index: int, keys: tuple[int, ...]) -> tuple[Any, ...]:
            if tuple(keys) != (1,):
                raise ValueError(f"keys: expected (1,), the ground truth alone, got {keys}")
            path = Path(self.data_dir) / "SegmentationClass" / f"{self.ids[index]}.png"
            labels = np.asarray(Image.open(path)).astype(np.int32)
            return (np.where(labels == 255, -1, labels),)

    module.VOCSemanticSegmentationDataset = VOCSemanticSegmentationDataset  # type: ignore[attr-defined]


@CORRECTIONS.stand_in("chainercv.evaluations")
def fill_chainercv_evaluations(module: ModuleType) -> None:
    """Pixels `[n, n]`, ground truth by prediction, over the classes that occur; ground truth below 0 doesn't count."""
    import numpy as np

    def calc_semantic_segmentation_confusion(predictions: Any, ground_truths: Any) -> Any:
        pairs = [(np.ravel(p), np.ravel(g)) for p, g in zip(predictions, ground_truths, strict=True)]
        size = 1 + max(int(values.max(initial=0)) for pair in pairs for values in pair)
        confusion = np.zeros((size, size), dtype=np.int64)
        for predicted, truth in pairs:
            counted = truth >= 0
            places = size * truth[counted].astype(np.int64) + predicted[counted]
            confusion += np.bincount(places, minlength=size**2).reshape(size, size)
        return confusion

    module.calc_semantic_segmentation_confusion = calc_semantic_segmentation_confusion  # type: ignore[attr-defined]


@CORRECTIONS.stand_in("torchnet")  # segmentation/deeplabv2/main.py:23
def fill_torchnet(module: ModuleType) -> None:
    """torchnet brings a server for plots along; the one class of it that DeepLabV2 uses stands below."""


@CORRECTIONS.stand_in("torchnet.meter")
def fill_torchnet_meter(module: Any) -> None:
    """Mean and standard deviation of the last values."""
    import statistics
    from collections import deque

    class MovingAverageValueMeter:
        def __init__(self, windowsize: int) -> None:
            self.values: deque[float] = deque(maxlen=windowsize)

        def add(self, value: float) -> None:
            self.values.append(float(value))

        def value(self) -> tuple[float, float]:
            values = self.values or [0.0]
            return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    module.MovingAverageValueMeter = MovingAverageValueMeter


@CORRECTIONS.after("libs.models")  # segmentation/deeplabv2/main.py:81, which no correction of a source reaches
def round_labels(_: Any) -> None:
    """`torch.LongTensor` no longer takes numpy's arrays of floats; DeepLabV2's resized labels are such."""
    import numpy as np
    import torch

    real = torch.LongTensor

    class OfArrays(type):
        def __call__(cls, *values: Any) -> Any:
            arrays = len(values) == 1 and isinstance(values[0], list) and isinstance(values[0][0], np.ndarray)
            return torch.from_numpy(np.stack(values[0]).astype(np.int64)) if arrays else real(*values)

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, real)

    torch.LongTensor = OfArrays("LongTensor", (), {})  # type: ignore[misc, assignment]


@CORRECTIONS.in_source("misc.torchutils")  # misc/torchutils.py:68, for mscoco/dataloader.py:122 and :161
def count_images_in_pythons_numbers(source: str) -> str:
    """torchvision's CocoDetection no longer takes numpy's integers."""
    return source.replace("np.arange(i, len(dataset), n_splits)", "range(i, len(dataset), n_splits)")


@CORRECTIONS.in_source("voc12.dataloader")  # voc12/dataloader.py:62
def read_names_as_text(source: str) -> str:
    """numpy no longer reads 2007_000032 as an integer."""
    return source.replace(
        "np.loadtxt(dataset_path, dtype=np.int32)",
        'np.array([int(name.replace("_", "")) for name in np.loadtxt(dataset_path, dtype=str, ndmin=1)], np.int32)',
    )


@CORRECTIONS.in_source("step.train_clims")  # step/train_clims.py:140
@CORRECTIONS.in_source("step_coco.train_clims")  # step_coco/train_clims.py:164
def keep_a_single_label(source: str) -> str:
    """A batch with one label in all gave a number in place of a list, and an IndexError."""
    return source.replace("as_tuple=False).squeeze()", "as_tuple=False).squeeze(1)")


def count_below_twenty_images(source: str) -> str:
    """Progress is told in twentieths, of which fewer than twenty images have none."""
    return source.replace("(len(databin) // 20)", "max(1, len(databin) // 20)")


for _step in (
    "make_cam",
    "make_clims",
    "cam_to_ir_label",
    "make_sem_seg_labels",
):  # step/make_clims.py:123 and the like
    for _steps in ("step", "step_coco"):
        CORRECTIONS.in_source(f"{_steps}.{_step}")(count_below_twenty_images)


@CORRECTIONS.in_source("step.cam_to_ir_label")  # step/cam_to_ir_label.py:58, :61
@CORRECTIONS.in_source("step_coco.cam_to_ir_label")  # step_coco/cam_to_ir_label.py:66, :68
def label_without_workers(source: str) -> str:
    """`--num_workers 0` started no process, and wrote nothing without a word."""
    source = source.replace(
        "torchutils.split_dataset(dataset, args.num_workers)", f"torchutils.split_dataset(dataset, {_ONE})"
    )
    return source.replace("nprocs=args.num_workers", f"nprocs={_ONE}").replace("args.num_workers - 1", f"{_ONE} - 1")


@CORRECTIONS.in_source("step.make_sem_seg_labels")  # step/make_sem_seg_labels.py:36, used in :50
@CORRECTIONS.in_source("step_coco.make_sem_seg_labels")  # step_coco/make_sem_seg_labels.py:32, used in :54
def crop_by_numbers(source: str) -> str:
    """numpy no longer takes `[[height], [width]]` for the ends of a slice."""
    return source.replace("np.asarray(pack['size'])", "np.asarray(pack['size']).ravel()")


@CORRECTIONS.in_source("step.make_sem_seg_labels")  # step/make_sem_seg_labels.py:48
@CORRECTIONS.in_source("step_coco.make_sem_seg_labels")  # step_coco/make_sem_seg_labels.py:52
def read_random_walk_as_numbers(source: str) -> str:
    """`--beta` and `--exp_times` have no type, and come as text from the command line."""
    source = source.replace("beta=args.beta", "beta=float(args.beta)")
    return source.replace("exp_times=args.exp_times", "exp_times=int(args.exp_times)")


@CORRECTIONS.in_source("step_coco.train_clims")  # step_coco/train_clims.py:115
def heed_clip(source: str) -> str:
    """Without the distributed launcher `--clip` was not heeded; its default is the same."""
    return source.replace('clip.load("ViT-B/32"', "clip.load(args.clip")


@CORRECTIONS.after("step_coco.train_clims")  # step_coco/train_clims.py:227
def take_the_rank_from_torchrun(module: Any) -> None:
    """torchrun gives the rank in the environment; with -1 no process would save the weights."""
    run = module.run

    def run_with_rank(args: SimpleNamespace) -> Any:
        if args.local_rank < 0 and "LOCAL_RANK" in os.environ:
            args.local_rank = int(os.environ["LOCAL_RANK"])
        return run(args)

    module.run = run_with_rank
