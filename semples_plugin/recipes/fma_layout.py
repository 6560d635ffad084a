"""VOC and COCO as FMA-WSSS reads them: `python -m semples_plugin.recipes.fma_layout --help`.

FMA-WSSS's own `datasets.tar` holds the same: lists, image labels (made from the masks) and masks. Images and masks are
links. The folders serve as the data of the segmentation network, too.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from semples_plugin.data.cam_files import read_image_list
from semples_plugin.data.image_labels import read_class_names
from semples_plugin.data.images import IGNORED, read_mask
from semples_plugin.recipes.layout import annotated_images, layout_parser, link, write_list
from semples_plugin.utils.atomic_files import replacing

VALIDATION = 1250
"""Images of COCO's training set on which FMA-WSSS compares iterations; its own list of them isn't published apart."""


def lay_out_voc(voc: str | Path, checkout: str | Path, count: int | None = None) -> Path:
    """Makes `datasets/VOC2012` in FMA-WSSS's checkout, and returns it.

    Args:
        voc: of `JPEGImages`, `SegmentationClassAug` and `ImageSets/Segmentation`. Where there is no `train_aug.txt`,
            all images with a mask that `val.txt` leaves out are taken, which are the 10,582.
        checkout: FMA-WSSS's.
        count: for a miniature, images in each list: the first of `train.txt`, and the next of it for validation.

    Raises:
        FileNotFoundError: where a folder, a list, or a mask of a listed image is missing.
    """
    voc, folder = Path(voc), Path(checkout) / "datasets/VOC2012"
    masks = voc / "SegmentationClassAug"
    lists = _voc_lists(voc / "ImageSets/Segmentation", masks, count)
    names = sorted({name for part in lists.values() for name in part})
    shown = {name: _classes_of(masks / f"{name}.png") for name in tqdm(names, "masks", unit="mask")}
    ground_truth = voc / "SegmentationClass"
    links = {"JPEGImages": voc / "JPEGImages", "SegmentationClassAug": masks}
    links["SegmentationClass"] = ground_truth if ground_truth.is_dir() else masks
    for name, target in links.items():
        link(target, folder / name)
    for name, part in lists.items():
        write_list(part, folder / f"ImageSets/Segmentation/{name}.txt")
        pairs = [f"/JPEGImages/{image}.jpg /SegmentationClassAug/{image}.png" for image in part]
        write_list(pairs, folder / f"ImageSets/SegmentationAug/{name}.txt")
    _write_labels(shown, 20, folder / "third_party/seg_cls_labels.pkl")
    return folder


def lay_out_coco(coco: str | Path, checkout: str | Path, masks: str | Path, count: int | None = None) -> Path:
    """Makes `datasets/coco2014` in FMA-WSSS's checkout, with images that show one of the 80 classes; returns it.

    Args:
        coco: of `train2014`, `val2014` and `annotations`.
        checkout: FMA-WSSS's.
        masks: folder of the ground truth of both splits, `000000000009.png` with values 0 to 80.
        count: for a miniature, images in each list.

    Raises:
        FileNotFoundError: where a folder, or a listed image or mask, is missing.
    """
    coco, masks, folder = Path(coco), Path(masks), Path(checkout) / "datasets/coco2014"
    class_names, shown = tuple(read_class_names("coco")), {}
    for split in ("train", "val"):
        present = annotated_images(coco / f"annotations/instances_{split}2014.json", class_names, count)
        names = list(present)
        for name in names:
            image, mask = coco / f"{split}2014/COCO_{split}2014_{name}.jpg", masks / f"{name}.png"
            if not mask.is_file():
                raise FileNotFoundError(f"there is no {mask}")
            link(image, folder / f"images/{split}2014/{name}.jpg")
        link(masks, folder / f"annotations/{split}2014")
        link(coco / f"{split}2014", folder / f"{split}2014")
        lists = {split: names, **({"train_1250": names[:VALIDATION]} if split == "train" else {})}
        for name, part in lists.items():
            write_list(part, folder / f"imagesLists/{name}.txt")
        shown.update(present)
    link(masks, folder / "masks")
    link(folder / "imagesLists", folder / "lists")
    _write_labels(shown, 80, folder / "third_party/seg_cls_labels.pkl")
    return folder


def _voc_lists(folder: Path, masks: Path, count: int | None) -> dict[str, list[str]]:
    train = read_image_list(folder / "train.txt")
    if count is not None:
        if len(train) < 2 * count:
            raise ValueError(f"{folder}/train.txt: expected at least {2 * count} images, got {len(train)}")
        return {"train": train[:count], "train_aug": train[:count], "val": train[count : 2 * count]}
    val = read_image_list(folder / "val.txt")
    if (folder / "train_aug.txt").is_file():
        train_aug = read_image_list(folder / "train_aug.txt")
    else:
        train_aug = sorted({path.stem for path in masks.glob("*.png")} - set(val))
    return {"train": train, "train_aug": train_aug, "val": val}


def _classes_of(path: Path) -> set[int]:
    """Classes, from 0, that a mask shows."""
    return {int(value) - 1 for value in np.unique(read_mask(path)) if value not in (0, IGNORED)}


def _write_labels(shown: Mapping[str, Iterable[int]], num_classes: int, path: Path) -> None:
    """As FMA-WSSS reads them: name -> uint8 multi-hot, the background first."""
    labels = {}
    for name, classes in shown.items():
        labels[name] = np.zeros(1 + num_classes, np.uint8)
        labels[name][[0, *(1 + k for k in classes)]] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(pickle.dumps(labels))


def main() -> None:
    """The command."""
    parser, commands = layout_parser("fma_layout", __doc__, "FMA-WSSS", "values 0 to 80")
    for command in commands.choices.values():
        command.add_argument("--images", type=int, metavar="N", help="for a miniature: images in each list")
    options = parser.parse_args()
    if options.data == "voc":
        print(f"made {lay_out_voc(options.source, options.checkout, options.images)}")
    else:
        print(f"made {lay_out_coco(options.source, options.checkout, options.masks, options.images)}")


if __name__ == "__main__":
    main()
