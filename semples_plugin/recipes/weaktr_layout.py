"""VOC and COCO as WeakTr reads them, in its checkout, by links: `python -m semples_plugin.recipes.weaktr_layout -h`.

WeakTr's lists, in `voc12/` and `coco/` of its checkout, say which images; a miniature run writes lists of a few
images and their labels there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.cam_files import read_image_list
from semples_plugin.recipes.layout import annotated_images, draw_coco_masks, layout_parser, link, write_list
from semples_plugin.utils.atomic_files import replacing

_LISTS = {
    "voc12": {"train_aug_id": "train", "train_id": "train", "val_id": "val"},
    "coco": {"train_id": "train", "train_1250_id": "train", "val_id": "val", "val_5000": "val"},
}
"""Lists of WeakTr -> those of `small_lists`."""
_SPLITS = {
    "voc12": {"trainaug": "train_aug_id", "train": "train_id", "val": "val_id"},
    "coco": {"train": "train_id", "val": "val_id", "val_5000": "val_5000"},
}
"""Lists that WeakTr's second stage reads beside the images -> those of its first."""


def lay_out_voc(voc: str | Path, checkout: str | Path) -> Path:
    """Makes `data/voc12` of WeakTr's `docs/prepare_dataset.md`, and returns the folder VOC2012 in it.

    Raises:
        FileNotFoundError: where `voc` has no images or no masks.
    """
    voc, checkout = Path(voc), Path(checkout)
    folder = checkout / "data/voc12/VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClassAug"):
        _check_folder(voc / name)
        link(voc / name, folder / name)
    _copy_splits(checkout / "voc12", folder / "ImageSets/Segmentation")
    return folder


def lay_out_coco(coco: str | Path, checkout: str | Path, masks: str | Path) -> Path:
    """Makes `data/coco` of WeakTr's `docs/prepare_dataset.md`: images by their twelve digits; returns that folder.

    Args:
        coco: of `train2014` and `val2014`.
        checkout: WeakTr's.
        masks: folder of `ID.png` with 0 for background and COCO's category ids.

    Raises:
        FileNotFoundError: where a folder, or an image of WeakTr's lists, isn't there.
    """
    coco, checkout, masks = Path(coco), Path(checkout), Path(masks)
    folder = checkout / "data/coco"
    _check_folder(masks)
    link(masks, folder / "voc_format/class_labels")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        _check_folder(coco / f"{split}2014")
        for name in read_image_list(checkout / f"coco/{split}_id.txt"):
            image = coco / f"{split}2014/COCO_{split}2014_{name}.jpg"
            if not image.is_file():
                raise FileNotFoundError(f"there is no {image}, an image of {checkout}/coco/{split}_id.txt")
            link(image, folder / f"images/{name}.jpg")
    _copy_splits(checkout / "coco", folder / "voc_format")
    return folder


def write_lists(lists: str | Path, labels: str | Path, folder: Path) -> None:
    """Puts a miniature's lists and labels where WeakTr looks for its own.

    Args:
        lists: folder of `train.txt` and `val.txt`.
        labels: its `cls_labels.npy`, with names as keys.
        folder: `voc12` or `coco` of the checkout.
    """
    for name, part in _LISTS[folder.name].items():
        names = read_image_list(Path(lists) / f"{part}.txt")
        write_list(names, folder / f"{name}.txt")
    with replacing(folder / "cls_labels.npy") as temporary:
        shutil.copyfile(labels, temporary)


def _copy_splits(lists: Path, folder: Path) -> None:
    for name, source in _SPLITS[lists.name].items():
        write_list(read_image_list(lists / f"{source}.txt"), folder / f"{name}.txt")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")


def write_coco_miniature(coco: str | Path, out: str | Path, count: int) -> None:
    """Lists of `count` images that show something, labels of WeakTr's 90 columns and masks, for a miniature.

    Args:
        coco: of `annotations/instances_train2014.json` and `instances_val2014.json`.
        out: folder to write `lists/train.txt`, `lists/val.txt`, `cls_labels.npy` and `masks/` to.
        count: images in each list.
    """
    from semples_plugin.data.image_labels import read_class_names

    class_names, out = tuple(read_class_names("release-coco")), Path(out)
    labels: dict[str, NDArray[np.float32]] = {}
    for split in ("train", "val"):
        instances = Path(coco) / f"annotations/instances_{split}2014.json"
        present = annotated_images(instances, class_names, count)
        names = list(present)
        for name in names:
            labels[name] = np.zeros(len(class_names), np.float32)
            labels[name][list(present[name])] = 1
        write_list(names, out / f"lists/{split}.txt")
        draw_coco_masks(instances, out / "masks", names, lambda category: category["id"])
    with replacing(out / "cls_labels.npy") as temporary, temporary.open("wb") as file:
        np.save(file, labels, allow_pickle=True)  # type: ignore[arg-type]


def main() -> None:
    """The command."""
    parser, commands = layout_parser("weaktr_layout", __doc__, "WeakTr", "COCO's category ids")
    for command in commands.choices.values():
        command.add_argument("--lists", help="of a miniature: folder of train.txt and val.txt, see small_lists")
        command.add_argument("--labels", help="of a miniature: its cls_labels.npy")
    command = commands.add_parser("coco-miniature", help="write lists, labels and masks of a few images of COCO")
    command.add_argument("source", help="COCO's folder")
    command.add_argument("out", help="folder to write to")
    command.add_argument("--images", type=int, default=8, help="in each list (default: %(default)s)")
    options = parser.parse_args()
    if options.data == "coco-miniature":
        write_coco_miniature(options.source, options.out, options.images)
        print(f"wrote {options.out}")
        return
    if options.lists:
        own = {"voc": "voc12", "coco": "coco"}[options.data]
        write_lists(options.lists, options.labels, Path(options.checkout) / own)
    if options.data == "voc":
        print(f"made {lay_out_voc(options.source, options.checkout)}")
    else:
        print(f"made {lay_out_coco(options.source, options.checkout, options.masks)}")


if __name__ == "__main__":
    main()
