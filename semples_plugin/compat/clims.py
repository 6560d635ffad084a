"""What CLIMS needs on today's Python and packages; each correction names the line of CLIMS that needs it."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from semples_plugin.compat.common import fill_packaging, restore_numpys_old_types
from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()
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
            self.ids = (Path(data_dir) / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()

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


@CORRECTIONS.in_source("step.make_clims")  # step/make_clims.py:123
@CORRECTIONS.in_source("step_coco.make_clims")
def count_below_twenty_images(source: str) -> str:
    """Progress is told in twentieths, of which fewer than twenty images have none."""
    return source.replace("(len(databin) // 20)", "max(1, len(databin) // 20)")


@CORRECTIONS.after("step_coco.train_clims")  # step_coco/train_clims.py:227
def take_the_rank_from_torchrun(module: Any) -> None:
    """torchrun gives the rank in the environment; with -1 no process would save the weights."""
    run = module.run

    def run_with_rank(args: SimpleNamespace) -> Any:
        if args.local_rank < 0 and "LOCAL_RANK" in os.environ:
            args.local_rank = int(os.environ["LOCAL_RANK"])
        return run(args)

    module.run = run_with_rank
