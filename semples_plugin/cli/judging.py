"""CAMs judged beside the ground truth, as `eval`, `show` and `report` begin."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semples_plugin.cli.arguments import whole_number

if TYPE_CHECKING:
    from semples_plugin.evaluation.folders import FolderEvaluation

_NAMED = 10  # images that a command names one by one


def add_judging(parser: argparse.ArgumentParser) -> None:
    """The options of `judge`."""
    add = parser.add_argument
    add("cams", nargs="+", metavar="CAMS", help="a folder of CAM files or masks, or several, the one to beat first")
    add(
        "--gt",
        "--masks",
        dest="masks",
        required=True,
        metavar="FOLDER",
        help="ground truth: a folder of PNGs, 0 background, k + 1 class k, 255 ignored",
    )
    add("--classes", help="text file of class names, or a preset such as coco (default: classes.txt beside the folder "
        "of the masks where there is one, else voc)")  # fmt: skip
    add("--list", help="text file of image names, one a line (default: every image that has CAMs)")
    add(
        "--background", choices=("constant", "power"),
        help="a constant score, or FMA-WSSS's (1 - m)^p (default: what the host of the files does)",
    )  # fmt: skip
    add(
        "--setting", type=float, nargs="+", metavar="S",
        help="threshold or power to report at, for all folders or one for each (default: the best on these masks)",
    )  # fmt: skip
    add("--titles", nargs="+", help="what to call the folders (default: their names)")
    add("--workers", type=whole_number, default=os.cpu_count(), help="processes (default: one per core)")
    add("--quiet", action="store_true", help="no progress bar")


def judge(options: argparse.Namespace, where: str = "") -> tuple[list[FolderEvaluation], list[str], int]:
    """Evaluations of the images that all folders have, their titles, and the exit status; `where` as `tell_each`."""
    from semples_plugin.data.image_labels import classes_beside, read_class_names
    from semples_plugin.evaluation.comparison import on_common_images
    from semples_plugin.evaluation.folders import evaluate_folder

    folders, settings = options.cams, options.setting or [None]
    titles = options.titles or _titles(folders)
    if len(titles) != len(folders) or len(set(titles)) != len(titles):
        raise ValueError(f"--titles: expected {len(folders)} different ones, got {', '.join(titles)}")
    if len(settings) not in (1, len(folders)):
        raise ValueError(f"--setting: expected 1 or {len(folders)}, one for each folder, got {len(settings)}")
    options.classes = options.classes or str(classes_beside(options.masks) or "voc")
    names = read_class_names(options.classes)
    each = [
        evaluate_folder(
            folder, options.masks, names, image_list=options.list, background=options.background, setting=setting,
            workers=options.workers, progress=not options.quiet,
        )
        for folder, setting in zip(folders, settings * len(folders) if len(settings) == 1 else settings, strict=True)
    ]  # fmt: skip
    for one in each:
        _tell(f"{one.folder}: images without CAMs", one.missing)
        _tell(f"{one.folder}: CAMs of images that are not in {one.split}", one.extra)
        tell_each(f"{one.folder}: not judged", one.failed, where)
    together = on_common_images(each) if len(each) > 1 else each
    _tell("left out, not in every folder", sorted({name for one in together for name in one.left_out}))
    return together, titles, int(any(one.failed for one in each))


def _titles(folders: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [Path(folder).absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError(f"expected different folders, got {', '.join(folders)}")
    for depth in range(1, max(map(len, parts)) + 1):
        titles = ["/".join(part[-depth:]) for part in parts]
        if len(set(titles)) == len(titles):
            break
    return titles


def _tell(what: str, names: Sequence[str]) -> None:
    if names:
        from semples_plugin.viz.tables import shorten

        print(f"{what}: {len(names)}: {shorten(names)}", file=sys.stderr)


def tell_each(what: str, failed: Mapping[str, str], where: str = "") -> None:
    """A line each, of the first `_NAMED`; then how many more there are, and `where` all stand."""
    for name, why in list(failed.items())[:_NAMED]:
        print(f"{what}: {name}: {why}", file=sys.stderr)
    if len(failed) > _NAMED:
        print(f"{what}: ... and {len(failed) - _NAMED} more{where}", file=sys.stderr)
