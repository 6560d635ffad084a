"""CAMs judged by ground truth, as `eval`, `show` and `report` begin, and failure strata."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semples_plugin.cli.arguments import add_quiet, add_workers
from semples_plugin.cli.messages import print_failures, print_names

if TYPE_CHECKING:
    from semples_plugin.evaluation.folders import FolderEvaluation
    from semples_plugin.evaluation.strata import Strata


def add_judging(parser: argparse.ArgumentParser) -> None:
    """The options of `judge`."""
    parser.add_argument(
        "cams",
        nargs="+",
        metavar="CAMS",
        help="a folder of CAM files or pseudo masks, or several, the one to beat first",
    )
    parser.add_argument(
        "--gt",
        "--masks",
        dest="ground_truth",
        required=True,
        metavar="FOLDER",
        help="ground truth: a folder of PNGs, 0 background, k + 1 class k, 255 ignored",
    )
    parser.add_argument(
        "--classes",
        help="text file of class names, or a preset such as coco (default: classes.txt beside the folder of --gt where "
        "it exists, else voc)",
    )
    parser.add_argument("--list", help="text file of image names, one a line (default: every image that has CAMs)")
    parser.add_argument(
        "--background",
        choices=("constant", "power"),
        help="a constant score, or FMA-WSSS's (1 - m)^p (default: what the host of the files does)",
    )
    parser.add_argument(
        "--setting",
        type=float,
        nargs="+",
        metavar="S",
        help="threshold or power to report at, for all folders or one for each (default: the best on this ground "
        "truth)",
    )
    parser.add_argument("--titles", nargs="+", help="what to call the folders (default: their names)")
    add_workers(parser)
    add_quiet(parser)


def add_strata(parser: argparse.ArgumentParser) -> None:
    """The option of `judge_strata`, which looks at `--images`, too."""
    parser.add_argument(
        "--strata",
        action="store_true",
        help="say where CAMs fail: IoU and recall of objects by size, by touching the image's border, by contrast to "
        "their surroundings (with --images) and by the number of classes in the image",
    )


def judge(options: argparse.Namespace, where: str = "") -> tuple[list[FolderEvaluation], list[str], int]:
    """Judges the folders, and says which images don't count.

    Args:
        options: those of `add_judging`; `classes` becomes the file or preset that was used.
        where: see `print_failures`.

    Returns:
        Evaluations of the images that all folders have, their titles, and the exit status.
    """
    from semples_plugin.data.image_labels import classes_beside, read_class_names
    from semples_plugin.evaluation.comparison import on_common_images
    from semples_plugin.evaluation.folders import evaluate_folder

    folders = options.cams
    titles = _titles(folders, options.titles)
    settings = _settings(folders, options.setting)
    options.classes = options.classes or str(classes_beside(options.ground_truth) or "voc")
    class_names = read_class_names(options.classes)
    evaluations = [
        evaluate_folder(
            folder,
            options.ground_truth,
            class_names,
            image_list=options.list,
            background=options.background,
            setting=setting,
            workers=options.workers,
            progress=not options.quiet,
        )
        for folder, setting in zip(folders, settings, strict=True)
    ]
    for evaluation in evaluations:
        print_names(f"{evaluation.folder}: images without CAMs", evaluation.missing)
        print_names(f"{evaluation.folder}: CAMs of images that are not in {evaluation.split}", evaluation.extra)
        print_failures(f"{evaluation.folder}: not judged", evaluation.failed, where)
    status = int(any(evaluation.failed for evaluation in evaluations))
    if len(evaluations) > 1:
        evaluations = on_common_images(evaluations)
        left_out = {name for evaluation in evaluations for name in evaluation.left_out}
        print_names("left out, not in every folder", sorted(left_out))
    return evaluations, titles, status


def judge_strata(
    options: argparse.Namespace, evaluations: Sequence[FolderEvaluation], where: str = ""
) -> tuple[Strata, int]:
    """The failure strata of evaluations of the same images, and the exit status; it says which can't be measured.

    Args:
        options: those of `add_judging`, and `images`.
        evaluations: those of `judge`.
        where: see `print_failures`.
    """
    from semples_plugin.evaluation.regions import find_regions
    from semples_plugin.evaluation.strata import stratify

    progress = not options.quiet
    regions = find_regions(evaluations[0], options.images, workers=options.workers, progress=progress)
    print_failures("strata: not measured", regions.failed, where)
    return stratify(evaluations, regions), int(bool(regions.failed))


def _titles(folders: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """A title for each folder, all different."""
    titles = list(given or _path_ends(folders))
    if len(titles) != len(folders) or len(set(titles)) != len(titles):
        raise ValueError(f"--titles: expected {len(folders)} different ones, got {', '.join(titles)}")
    return titles


def _path_ends(folders: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    paths = [Path(folder).absolute().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"expected different folders, got {', '.join(folders)}")
    depth = 1
    while len({path[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def _settings(folders: Sequence[str], given: Sequence[float] | None) -> Sequence[float | None]:
    """A setting for each folder; None where the best is to be chosen."""
    if not given:
        return [None] * len(folders)
    if len(given) == 1:
        return list(given) * len(folders)
    if len(given) != len(folders):
        raise ValueError(f"--setting: expected 1 or {len(folders)}, one for each folder, got {len(given)}")
    return given
