"""A folder in VOC's layout with lists of one's own: `python -m semples_plugin.recipes.voc_layout VOC OUT ...`.

Code that reads `ImageSets/Segmentation/train_aug.txt`, which the devkit lacks, finds it there; images and masks are
links to those of VOC, in which nothing is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from semples_plugin.data.cam_files import read_image_list
from semples_plugin.recipes.layout import link, write_list

LINKED = ("JPEGImages", "SegmentationClassAug")


def write_voc_layout(voc: str | Path, out: str | Path, train: str | Path, val: str | Path) -> None:
    """Writes OUT with links to `JPEGImages` and `SegmentationClassAug` of VOC, and the two lists.

    Args:
        voc: VOC's folder.
        out: folder to write; what is there of an earlier call is replaced.
        train: text file of image names, `train_aug.txt` then.
        val: text file of image names, `val.txt` then.

    Raises:
        FileNotFoundError: where one of the lists or folders isn't there.
        FileExistsError: where `out` holds images or masks that are no links.
    """
    voc, out = Path(voc).absolute(), Path(out)
    lists = {"train_aug": read_image_list(train), "val": read_image_list(val)}
    for name in LINKED:
        if not (voc / name).is_dir():
            raise FileNotFoundError(f"{voc} is no folder of VOC 2012: it has no {name}")
    for name in LINKED:
        link(voc / name, out / name)
    for name, images in lists.items():
        write_list(images, out / "ImageSets" / "Segmentation" / f"{name}.txt")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semples_plugin.recipes.voc_layout", description=__doc__)
    parser.add_argument("voc", metavar="VOC", help="folder of JPEGImages and SegmentationClassAug")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--train", required=True, help="list of the images to learn from")
    parser.add_argument("--val", required=True, help="list of the images to judge by")
    options = parser.parse_args()
    write_voc_layout(options.voc, options.out, options.train, options.val)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
