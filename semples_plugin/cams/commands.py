"""What the commands about CAMs do, see `cli`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.evaluation.folders import FolderEvaluation
    from semples_plugin.prompts import BackgroundPrompts
    from semples_plugin.viz.prompt_maps import NearWords
    from semples_plugin.viz.report import PromptPictures

CLIP = ("ViT-B-32-quickgelu", "openai")
_TOLD = 10  # images that a command names one by one


def evaluate(options: argparse.Namespace) -> int:
    """`semples eval`."""
    from semples_plugin.evaluation.comparison import compare
    from semples_plugin.evaluation.folders import write_evaluation
    from semples_plugin.viz.curves import write_curve
    from semples_plugin.viz.tables import describe_gain, describe_judgement, format_classes

    evaluations, titles, code = _judge(options, "; eval.json lists all")
    content: dict[str, Any] = {title: one.to_dict() for title, one in zip(titles, evaluations, strict=True)}
    gains = [compare(evaluations[0], one) for one in evaluations[1:]]
    for title, gain in zip(titles[1:], gains, strict=True):
        content[title]["beside the first"] = {
            "images": gain.images, "gain": gain.miou[1] - gain.miou[0],
            "interval": [gain.low, gain.high], "better on": gain.above,
        }  # fmt: skip
    write_evaluation(options.out, content, evaluations, titles)
    write_curve(Path(options.out) / "curve.png", evaluations, titles)
    print(format_classes(evaluations, titles))
    for title, one in zip(titles, evaluations, strict=True):
        print(f"{title}: {describe_judgement(one)}")
    print(f"Classes are those of {options.classes}, and background; one that masks and predictions lack doesn't count.")
    if any(one.chosen_here for one in evaluations):
        print("The background score was chosen on the masks that it is reported on; to report a figure, choose it on "
              "other images and give --setting.")  # fmt: skip
    for title, gain in zip(titles[1:], gains, strict=True):
        print(f"{title} beside {titles[0]}: {describe_gain(gain)}")
    print(f"wrote eval.json, images.csv and curve.png to {options.out}")
    return code


def show(options: argparse.Namespace) -> int:
    """`semples show`."""
    from semples_plugin.data.cam_files import list_cams
    from semples_plugin.data.image_names import image_name
    from semples_plugin.data.images import check_photographs
    from semples_plugin.viz.examples import describe_image, draw_images, ranked
    from semples_plugin.viz.overlays import check_picture_name, write_picture

    options.names = [image_name(name) for name in options.names or ()]
    # What would fail at the end fails before the work.
    check_picture_name(options.out)
    _check_names(options.names, list_cams(options.cams[0], masks=True), f"the CAMs of {options.cams[0]}")
    evaluations, titles, code = _judge(options)
    names = ranked(evaluations)
    if options.names:
        _check_names(options.names, names, f"the {len(names)} images that were judged")
        names = options.names
    elif options.best or options.worst:
        names = names[: options.best] if options.best else names[: -options.worst - 1 : -1]
    elif len(names) > 6:
        names = [*names[:3], *names[-3:]]
    check_photographs(options.images, names)
    write_picture(options.out, draw_images(evaluations, names, options.images, titles))
    print("\n".join(describe_image(evaluations, name) for name in names))
    print(f"wrote {options.out}")
    return code


def report(options: argparse.Namespace) -> int:
    """`semples report`."""
    from semples_plugin.data.cam_files import list_cams
    from semples_plugin.data.images import check_photographs
    from semples_plugin.utils.checks import first_difference
    from semples_plugin.viz.report import prompt_panels, write_report

    if options.images:  # as above
        check_photographs(options.images, list_cams(options.cams[0], masks=True))
    words: list[NearWords] = []
    panels: list[PromptPictures] = []
    prompts = _load_prompts(options) if options.prompts else None
    evaluations, titles, code = _judge(options)
    if prompts is not None:
        if first_difference(prompts[0].class_names or (), evaluations[0].class_names) is not None:
            raise ValueError(
                f"{options.prompts} is of the classes {', '.join(prompts[0].class_names or ())}; the CAMs were judged "
                f"with {', '.join(evaluations[0].class_names)}: give --classes, or leave --prompts out"
            )
        from semples_plugin.viz.prompt_maps import nearest_words

        words = nearest_words(*prompts, _vocabulary(options, prompts[1]))
        panels = prompt_panels(*prompts, evaluations[-1], options.images) if options.images else []
    write_report(
        options.out, evaluations, titles, images=options.images, shown=options.shown, words=words, prompts=panels,
        heading=options.title,
    )  # fmt: skip
    print(f"wrote {options.out}")
    return code


def _check_names(names: Sequence[str] | None, known: Container[str], what: str) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {what}")


def _judge(options: argparse.Namespace, where: str = "") -> tuple[list[FolderEvaluation], list[str], int]:
    """Evaluations of the images that all folders have, their titles, and the exit status; `where` as `_tell_each`."""
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
        _tell_each(f"{one.folder}: not judged", one.failed, where)
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
        from semples_plugin.viz.tables import few

        print(f"{what}: {len(names)}: {few(names)}", file=sys.stderr)


def _tell_each(what: str, failed: Mapping[str, str], where: str = "") -> None:
    """A line each, of the first `_TOLD`; then how many more there are, and `where` all stand."""
    for name, why in list(failed.items())[:_TOLD]:
        print(f"{what}: {name}: {why}", file=sys.stderr)
    if len(failed) > _TOLD:
        print(f"{what}: ... and {len(failed) - _TOLD} more{where}", file=sys.stderr)


def convert(options: argparse.Namespace) -> int:
    """`semples convert`."""
    from semples_plugin.data.convert import convert_folder

    failed = convert_folder(
        options.cams, options.out, options.to, images=options.images, image_list=options.list,
        progress=not options.quiet,
    )  # fmt: skip
    _tell_each("not converted", failed)
    print(f"CAMs of {options.cams} are in {options.out}" + (f", but for {len(failed)}" if failed else ""))
    return int(bool(failed))


def pseudo_masks(options: argparse.Namespace) -> int:
    """`semples pseudo-masks`."""
    from semples_plugin.data.pseudo_masks import Recipe, write_pseudo_masks

    recipe = Recipe(tuple(options.threshold or ()), options.power, options.crf)
    failed = write_pseudo_masks(
        options.cams, options.out, recipe, images=options.images, image_list=options.list, workers=options.workers,
        progress=not options.quiet,
    )  # fmt: skip
    _tell_each("without a mask", failed)
    print(f"masks of {options.cams} are in {options.out}" + (f", but for {len(failed)}" if failed else ""))
    return int(bool(failed))


def prompt_words(options: argparse.Namespace) -> None:
    """`semples prompts words`."""
    from semples_plugin.viz.prompt_maps import nearest_words
    from semples_plugin.viz.tables import format_words

    prompts, clip = _load_prompts(options)
    print(format_words(nearest_words(prompts, clip, _vocabulary(options, clip), options.count)))


def prompt_show(options: argparse.Namespace) -> None:
    """`semples prompts show`."""
    from semples_plugin.data.images import read_photograph
    from semples_plugin.viz.overlays import check_picture_name, draw_grid, write_picture
    from semples_plugin.viz.prompt_maps import draw_prompt

    check_picture_name(options.out)
    prompts, clip = _load_prompts(options)
    rows = [draw_prompt(prompts, clip, options.class_name, read_photograph(path), options.beside)
            for path in options.images]  # fmt: skip
    write_picture(options.out, draw_grid([[p for _, p in row] for row in rows], [c for c, _ in rows[0]]))
    print(f"wrote {options.out}")


def _vocabulary(options: argparse.Namespace, clip: FrozenClip) -> Sequence[str]:
    from semples_plugin.clip.tiny import TINY_CLIP
    from semples_plugin.demo.data import CONTEXTS, OBJECTS
    from semples_plugin.utils.atomic_files import read_lines

    if getattr(options, "vocabulary", None):
        return [line.strip() for line in read_lines(options.vocabulary) if line.strip()]
    if clip.name == TINY_CLIP:  # it knows no other words
        return (*OBJECTS, *CONTEXTS)
    from semples_plugin.viz.prompt_maps import VOCABULARY

    return VOCABULARY


def _load_prompts(options: argparse.Namespace) -> tuple[BackgroundPrompts, FrozenClip]:
    """The prompts, checked to belong to the CLIP, and that CLIP: the given one, or the one that the file names."""
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.data.image_labels import read_class_names
    from semples_plugin.prompts import BackgroundPrompts

    prompts = BackgroundPrompts.load(options.prompts)
    if prompts.class_names is None and options.classes is None:
        raise ValueError(f"{options.prompts} doesn't say its classes, as the release's files don't: give --classes")
    name, pretrained = _named_clip(prompts.clip_name)
    clip = FrozenClip.load(options.clip or name, options.pretrained or pretrained, device=options.device)
    prompts.claim(clip, prompts.class_names or read_class_names(options.classes))
    return prompts.to(clip.device), clip


def _named_clip(name: str | None) -> tuple[str, str]:
    """Name and weights of what `FrozenClip.name` says; the release's CLIP where that is none that can be loaded."""
    from semples_plugin.clip.tiny import TINY_CLIP

    if name == TINY_CLIP:
        return "demo", ""
    if name is not None and name.startswith("local-dir:"):
        return name, CLIP[1]
    architecture, _, weights = (name or "").partition("/")
    return (architecture, weights) if weights else CLIP
