"""The commands about CAMs: `semples eval`, `show`, `report`, `convert`, `pseudo-masks` and `prompts`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semples_plugin.cams.folders import FolderEvaluation
    from semples_plugin.cams.prompt_views import NearWords
    from semples_plugin.cams.report import PromptPictures
    from semples_plugin.clip import FrozenClip
    from semples_plugin.prompts import BackgroundPrompts

_FORMATS = ("clims", "weaktr", "fma")


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser's subparsers."""
    _add_eval(commands)
    _add_show(commands)
    _add_report(commands)
    _add_convert(commands)
    _add_pseudo_masks(commands)
    _add_prompts(commands)


def _add(commands: Any, name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}"
    )
    return parser


def _add_eval(commands: Any) -> None:
    parser = _add(
        commands,
        "eval",
        "judge CAMs against masks, at all background scores in one pass",
        "CAMS is a folder of .npy files of CLIMS, IRNet, WeakTr or MCTformer, or of .npz files of FMA-WSSS. With two "
        "folders it compares them, class by class, with a bootstrap over images that says whether the gain is noise.",
    )
    _add_judging(parser)
    parser.add_argument("--out", default="eval-out", help="folder for eval.json and curve.png (default: %(default)s)")
    parser.set_defaults(run=_eval)


def _add_show(commands: Any) -> None:
    parser = _add(
        commands, "show", "draw images with their CAMs, before and after, and what is wrong with them",
        "Missed objects, backgrounds taken for an object and wrong classes get a colour each.",
    )  # fmt: skip
    _add_judging(parser)
    parser.add_argument("--images", required=True, help="folder of the photographs")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--names", nargs="+", help="images to draw (default: the three best and the three worst)")
    chosen.add_argument("--best", type=int, metavar="N", help="the N best, or most gained")
    chosen.add_argument("--worst", type=int, metavar="N", help="the N worst, or most lost")
    parser.add_argument("--out", default="cams.png", help="picture to write (default: %(default)s)")
    parser.set_defaults(run=_show)


def _add_report(commands: Any) -> None:
    parser = _add(
        commands, "report", "put curve, classes, images and prompts on one HTML page",
        "Everything is inside of the file, so that it can be mailed.",
    )  # fmt: skip
    _add_judging(parser)
    parser.add_argument("--images", help="folder of the photographs; without it the page has no pictures of them")
    parser.add_argument("--shown", type=int, default=4, help="best and worst images each (default: %(default)s)")
    parser.add_argument("--prompts", help="prompts file: adds near words, and where CLIP sees each class's prompt")
    _add_clip(parser)
    parser.add_argument("--title", default="CAM report", help="heading of the page")
    parser.add_argument("--out", default="report.html", help="page to write (default: %(default)s)")
    parser.set_defaults(run=_report)


def _add_convert(commands: Any) -> None:
    parser = _add(
        commands, "convert", "turn CAM files of one host into another's",
        "clims: CLIMS and IRNet; weaktr: WeakTr and MCTformer; fma: FMA-WSSS, whose seeding takes them then. Files "
        "that are there already stay.",
    )  # fmt: skip
    parser.add_argument("cams", help="folder of CAM files; what they hold says whose they are")
    parser.add_argument("out", help="folder for the converted ones")
    parser.add_argument("--to", choices=_FORMATS, required=True, help="the format to write")
    parser.add_argument("--images", help="folder of the photographs, for their size; needed from fma to the others")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_convert)


def _add_pseudo_masks(commands: Any) -> None:
    parser = _add(
        commands, "pseudo-masks", "write palette PNGs from CAMs, for the segmentation network to learn from",
        "Interrupted, it goes on where it was.",
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
        help="N iterations of a dense CRF (10 is usual); needs pip install 'semples-plugin[crf]' and --images",
    )  # fmt: skip
    parser.add_argument("--images", help="folder of the photographs, for the CRF and for FMA-WSSS's CAMs")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_pseudo_masks)


def _add_prompts(commands: Any) -> None:
    prompts = _add(commands, "prompts", "look at learned prompts: where CLIP sees them, and which words are near")
    actions = prompts.add_subparsers(dest="action", metavar="show|words", required=True)
    words = _add(actions, "words", "name the words nearest to each class's prompt")
    words.add_argument("--vocabulary", help="text file with one word a line (default: some 120 words of scenes)")
    words.add_argument("--count", type=int, default=5, help="words per class (default: %(default)s)")
    show = _add(actions, "show", "draw where CLIP sees a class's prompt, its label, and texts of your own")
    show.add_argument("--class", dest="class_name", required=True, help="class name")
    show.add_argument("--images", nargs="+", required=True, help="photographs")
    show.add_argument("--beside", nargs="+", default=[], metavar="TEXT", help="hand-written background prompts")
    show.add_argument("--out", default="prompt.png", help="picture to write (default: %(default)s)")
    for parser in (words, show):
        parser.add_argument("prompts", help="prompts.safetensors, or the release's btp.pth with --classes")
        parser.add_argument("--classes", help="text file of class names, or a preset; prompts.safetensors has its own")
        _add_clip(parser)
    words.set_defaults(run=_prompt_words)
    show.set_defaults(run=_prompt_show)


def _add_judging(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("cams", nargs="+", metavar="CAMS", help="a folder of CAM files, or two: before and after")
    add("--masks", required=True, help="folder of PNGs: 0 background, k + 1 class k, 255 ignored")
    add("--classes", default="voc", help="text file of class names, or a preset such as coco (default: %(default)s)")
    add("--list", help="text file of image names, one a line (default: every image that has CAMs)")
    add(
        "--background", choices=("constant", "power"),
        help="a constant score, or FMA-WSSS's (1 - m)^p (default: what the host of the files does)",
    )  # fmt: skip
    add(
        "--setting", type=float, nargs="+", metavar="S",
        help="threshold or power to report at, one for each folder (default: the best on these masks)",
    )  # fmt: skip
    add("--titles", nargs="+", help="what to call the folders (default: their names)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    add("--quiet", action="store_true", help="no progress bar")


def _add_clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clip", default="ViT-B-32-quickgelu",
        help="open_clip name, local-dir:PATH, or demo for the demo's own (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--pretrained", default="openai", help="its tag, or a weights file (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")


def _judge(options: argparse.Namespace) -> tuple[list[FolderEvaluation], list[str]]:
    from semples_plugin.cams.folders import evaluate_folder
    from semples_plugin.labels import read_class_names

    folders, settings = options.cams, options.setting or []
    titles = options.titles or _titles(folders)
    if len(folders) > 2 or len(titles) != len(folders) or len(settings) not in (0, len(folders)):
        raise ValueError("expected one or two folders, with as many --titles and --setting as folders")
    names = read_class_names(options.classes)
    evaluations = [
        evaluate_folder(
            folder, options.masks, names, image_list=options.list, background=options.background, setting=setting,
            workers=options.workers, progress=not options.quiet,
        )
        for folder, setting in zip(folders, settings or [None] * len(folders))
    ]  # fmt: skip
    for one in evaluations:
        _tell(f"{one.folder}: images without CAMs", one.missing)
        _tell(f"{one.folder}: CAMs of images that are not in {one.split}", one.extra)
        _tell(f"{one.folder}: could not be judged", [f"{name} ({why})" for name, why in one.failed.items()])
    return evaluations, titles


def _titles(folders: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        titles = ["/".join(part[-depth:]) for part in parts]
        if len(set(titles)) == len(titles):
            break
    return titles


def _tell(what: str, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        print(f"{what}: {len(names)}: {shown}", file=sys.stderr)


def _eval(options: argparse.Namespace) -> None:
    from semples_plugin.cams.curves import write_curve
    from semples_plugin.cams.folders import compare, write_evaluation
    from semples_plugin.cams.report import describe_gain, describe_setting
    from semples_plugin.cams.tables import format_classes

    evaluations, titles = _judge(options)
    content: dict[str, Any] = {title: one.to_dict() for title, one in zip(titles, evaluations)}
    print(format_classes(evaluations, titles))
    for title, one in zip(titles, evaluations):
        what = f"{len(one.class_names)} classes ({options.classes}) and background; {describe_setting(one)}"
        print(f"{title}: mIoU {100 * one.miou:.2f} % on {len(one.counts)} images of {one.split}; {what}")
    if any(one.chosen_here for one in evaluations):
        print("The background score was chosen on the masks that it is reported on; to report a figure, choose it on "
              "other images and give --setting.")  # fmt: skip
    if len(evaluations) == 2:
        comparison = compare(evaluations[0], evaluations[1])
        print(describe_gain(comparison))
        content["comparison"] = {
            "images": comparison.images, "gain": comparison.miou[1] - comparison.miou[0],
            "interval": [comparison.low, comparison.high], "better on": comparison.above,
        }  # fmt: skip
    write_evaluation(options.out, content)
    write_curve(Path(options.out) / "curve.png", evaluations, titles)
    print(f"wrote eval.json and curve.png to {options.out}")


def _show(options: argparse.Namespace) -> None:
    from semples_plugin.cams.drawing import write_picture
    from semples_plugin.cams.show import draw_images, ranked

    evaluations, titles = _judge(options)
    names = ranked(evaluations)
    if options.names:
        unknown = [name for name in options.names if name not in names]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not among the {len(names)} images that were judged")
        names = options.names
    elif options.best or options.worst:
        names = names[: options.best] if options.best else names[: -options.worst - 1 : -1]
    elif len(names) > 6:
        names = [*names[:3], *names[-3:]]
    write_picture(options.out, draw_images(evaluations, names, options.images, titles))
    print(f"wrote {options.out}: {', '.join(names)}")


def _report(options: argparse.Namespace) -> None:
    from semples_plugin.cams.report import write_report

    evaluations, titles = _judge(options)
    words: list[NearWords] = []
    panels: list[PromptPictures] = []
    if options.prompts:
        words, panels = _describe_prompts(options, evaluations[-1])
    write_report(
        options.out, evaluations, titles, images=options.images, shown=options.shown, words=words, prompts=panels,
        heading=options.title,
    )  # fmt: skip
    print(f"wrote {options.out}")


def _describe_prompts(
    options: argparse.Namespace, evaluation: FolderEvaluation
) -> tuple[list[NearWords], list[PromptPictures]]:
    from semples_plugin.cams.prompt_views import nearest_words
    from semples_plugin.cams.report import prompt_panels

    clip = _load_clip(options)
    prompts = _load_prompts(options.prompts, options.classes, clip)
    words = nearest_words(prompts, clip, _vocabulary(options))
    return words, prompt_panels(prompts, clip, evaluation, options.images) if options.images else []


def _convert(options: argparse.Namespace) -> int:
    from semples_plugin.cams.convert import convert_folder

    failed = convert_folder(
        options.cams, options.out, options.to, images=options.images, progress=not options.quiet
    )  # fmt: skip
    _tell("could not be converted", [f"{name} ({why})" for name, why in failed.items()])
    print(f"wrote {options.out}")
    return int(bool(failed))


def _pseudo_masks(options: argparse.Namespace) -> int:
    from semples_plugin.cams.pseudo_masks import Recipe, write_pseudo_masks

    recipe = Recipe(tuple(options.threshold or ()), options.power, options.crf)
    failed = write_pseudo_masks(
        options.cams, options.out, recipe, images=options.images, workers=options.workers, progress=not options.quiet
    )
    _tell("have no mask", [f"{name} ({why})" for name, why in failed.items()])
    print(f"wrote {options.out}")
    return int(bool(failed))


def _prompt_words(options: argparse.Namespace) -> None:
    from semples_plugin.cams.prompt_views import nearest_words
    from semples_plugin.cams.tables import format_words

    clip = _load_clip(options)
    prompts = _load_prompts(options.prompts, options.classes, clip)
    print(format_words(nearest_words(prompts, clip, _vocabulary(options), options.count)))


def _prompt_show(options: argparse.Namespace) -> None:
    from semples_plugin.cams.drawing import draw_grid, write_picture
    from semples_plugin.cams.pictures import read_photograph
    from semples_plugin.cams.prompt_views import draw_prompt

    clip = _load_clip(options)
    prompts = _load_prompts(options.prompts, options.classes, clip)
    rows = [draw_prompt(prompts, clip, options.class_name, read_photograph(path), options.beside)
            for path in options.images]  # fmt: skip
    write_picture(options.out, draw_grid([[p for _, p in row] for row in rows], [c for c, _ in rows[0]]))
    print(f"wrote {options.out}")


def _vocabulary(options: argparse.Namespace) -> Sequence[str]:
    if options.clip == "demo":
        from semples_plugin.demo.data import CONTEXTS, OBJECTS

        return (*OBJECTS, *CONTEXTS)
    if getattr(options, "vocabulary", None):
        lines = Path(options.vocabulary).read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    from semples_plugin.cams.prompt_views import VOCABULARY

    return VOCABULARY


def _load_clip(options: argparse.Namespace) -> FrozenClip:
    if options.clip == "demo":
        from semples_plugin.demo.run import load_tiny_clip

        return load_tiny_clip(options.device)
    from semples_plugin.clip import FrozenClip

    return FrozenClip.load(options.clip, options.pretrained, device=options.device)


def _load_prompts(path: str, classes: str | None, clip: FrozenClip) -> BackgroundPrompts:
    from semples_plugin.labels import read_class_names
    from semples_plugin.prompts import BackgroundPrompts

    prompts = BackgroundPrompts.load(path)
    if prompts.class_names is None:
        if classes is None:
            raise ValueError(f"{path} doesn't say its classes, as the release's files don't: give --classes")
        prompts.claim(clip, read_class_names(classes))
    return prompts.to(clip.device)
