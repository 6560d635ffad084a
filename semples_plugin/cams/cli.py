"""The commands about CAMs: `semples eval`, `show`, `report`, `convert`, `pseudo-masks` and `prompts`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from semples_plugin.cams import commands
from semples_plugin.utils.extras import how_to_install

_FORMATS = ("clims", "weaktr", "fma")


def add_commands(subparsers: Any) -> None:
    """Adds the commands to the parser's subparsers."""
    _add_eval(subparsers)
    _add_show(subparsers)
    _add_report(subparsers)
    _add_convert(subparsers)
    _add_pseudo_masks(subparsers)
    _add_prompts(subparsers)


def _add(subparsers: Any, name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}"
    )
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _add_eval(subparsers: Any) -> None:
    parser = _add(
        subparsers,
        "eval",
        "judge CAMs against masks, at all background scores in one pass",
        "CAMS is a folder of .npy files of CLIMS, IRNet, WeakTr or MCTformer, of .npz files of FMA-WSSS, or of pseudo "
        "masks as .png. Further folders are compared with the first, on the images that all have, with a bootstrap "
        "over images that says whether a gain is noise.",
    )
    _add_judging(parser)
    parser.add_argument(
        "--out", default="eval-out",
        help="folder for eval.json (all figures), images.csv (IoU per image) and curve.png",
    )  # fmt: skip
    parser.set_defaults(run=commands.evaluate)


def _add_show(subparsers: Any) -> None:
    parser = _add(
        subparsers, "show", "draw images with their CAMs, before and after, and what is wrong with them",
        "Missed objects, backgrounds taken for an object and wrong classes get a colour each.",
    )  # fmt: skip
    _add_judging(parser)
    parser.add_argument("--images", required=True, help="folder of the photographs")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--names", nargs="+", help="images to draw (default: the three best and the three worst)")
    chosen.add_argument("--best", type=_number, metavar="N", help="the N best, or most gained")
    chosen.add_argument("--worst", type=_number, metavar="N", help="the N worst, or most lost")
    parser.add_argument("--out", default="cams.png", help="picture to write")
    parser.set_defaults(run=commands.show)


def _add_report(subparsers: Any) -> None:
    parser = _add(
        subparsers, "report", "put curve, classes, images and prompts on one HTML page",
        "Everything is inside of the file, so that it can be mailed.",
    )  # fmt: skip
    _add_judging(parser)
    parser.add_argument("--images", help="folder of the photographs; without it the page has no pictures")
    parser.add_argument("--shown", type=_number, default=4, help="best and worst images each")
    parser.add_argument("--prompts", help="prompts file: adds near words, and where CLIP sees each class's prompt")
    _add_clip(parser)
    parser.add_argument("--title", default="CAM report", help="heading of the page")
    parser.add_argument("--out", default="report.html", help="page to write")
    parser.set_defaults(run=commands.report)


def _add_convert(subparsers: Any) -> None:
    parser = _add(
        subparsers, "convert", "turn CAM files of one host into another's",
        "clims: CLIMS and IRNet; weaktr: WeakTr and MCTformer; fma: FMA-WSSS, whose seeding takes them then. Files of "
        "an interrupted call stay; files of other CAMs, or of these before they changed, are refused.",
    )  # fmt: skip
    parser.add_argument("cams", help="folder of CAM files; what they hold says whose they are")
    parser.add_argument("out", help="folder for the converted ones")
    parser.add_argument("--to", choices=_FORMATS, required=True, help="the format to write")
    parser.add_argument("--images", help="folder of the photographs, for their size; needed from fma to the others")
    parser.add_argument("--list", help="text file of image names, to convert these alone")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=commands.convert)


def _add_pseudo_masks(subparsers: Any) -> None:
    parser = _add(
        subparsers, "pseudo-masks", "write palette PNGs from CAMs, for the segmentation network to learn from",
        "Interrupted, it goes on where it was; masks of other CAMs or settings in that folder are refused. "
        "`semples eval OUT --masks MASKS` judges them.",
    )  # fmt: skip
    parser.add_argument("cams", help="folder of CAM files of any host")
    parser.add_argument("out", help="folder for the masks")
    score = parser.add_mutually_exclusive_group(required=True)
    score.add_argument(
        "--threshold", type=float, nargs="+", metavar="T",
        help="background score; with two of them pixels in between become 255, which training ignores",
    )  # fmt: skip
    score.add_argument("--power", type=float, metavar="P", help="FMA-WSSS's background score (1 - m)^P")
    parser.add_argument(
        "--crf", type=int, default=0, metavar="N",
        help="N iterations of a dense CRF on the labels, with IRNet's settings (10 is usual); needs --images and "
        + how_to_install("crf"),
    )  # fmt: skip
    parser.add_argument("--images", help="folder of the photographs, for the CRF and for FMA-WSSS's CAMs")
    parser.add_argument("--list", help="text file of image names, to make masks of these alone")
    parser.add_argument("--workers", type=_number, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=commands.pseudo_masks)


def _add_prompts(subparsers: Any) -> None:
    prompts = _add(subparsers, "prompts", "look at learned prompts: where CLIP sees them, and which words are near")
    actions = prompts.add_subparsers(dest="action", metavar="show|words", required=True)
    words = _add(actions, "words", "name the words nearest to each class's prompt")
    words.add_argument("--vocabulary", help="text file with one word a line (default: some 120 words of scenes)")
    words.add_argument("--count", type=_number, default=5, help="words per class")
    show = _add(actions, "show", "draw where CLIP sees a class's prompt, its label, and texts of your own")
    show.add_argument("--class", dest="class_name", required=True, help="class name")
    show.add_argument("--images", nargs="+", required=True, help="photographs")
    show.add_argument("--beside", nargs="+", default=[], metavar="TEXT", help="hand-written background prompts")
    show.add_argument("--out", default="prompt.png", help="picture to write")
    for parser in (words, show):
        parser.add_argument("prompts", help="prompts.safetensors, or the release's btp.pth with --classes")
        parser.add_argument("--classes", help="text file of class names, or a preset; prompts.safetensors has its own")
        _add_clip(parser)
    words.set_defaults(run=commands.prompt_words)
    show.set_defaults(run=commands.prompt_show)


def _add_judging(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("cams", nargs="+", metavar="CAMS", help="a folder of CAM files or masks, or several, the one to beat first")
    add("--masks", required=True, help="folder of PNGs: 0 background, k + 1 class k, 255 ignored")
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
    add("--workers", type=_number, default=os.cpu_count(), help="processes (default: one per core)")
    add("--quiet", action="store_true", help="no progress bar")


def _add_clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clip",
        help="open_clip name, local-dir:PATH, or demo for the demo's own (default: what the prompts file says)",
    )
    parser.add_argument(
        "--pretrained", help="its tag, or the path of its weights (default: what the prompts file says)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
