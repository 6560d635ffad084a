"""`semples report`: everything on one HTML page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from semples_plugin.cli.arguments import add_clip, add_command, whole_number
from semples_plugin.cli.judging import add_judging, add_strata, judge, judge_strata
from semples_plugin.cli.messages import keep_earlier
from semples_plugin.cli.prompts import default_vocabulary, load_prompts

if TYPE_CHECKING:
    from semples_plugin.prompts import BackgroundPrompts
    from semples_plugin.viz.prompt_maps import NearWords
    from semples_plugin.viz.report import PromptPictures


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "report",
        "put curve, classes, images and prompts on one HTML page",
        "The page is one file, which can be mailed.",
    )
    add_judging(parser)
    add_strata(parser)
    parser.add_argument("--images", help="folder of the images; without it the page shows none")
    parser.add_argument("--shown", type=whole_number, default=4, help="best and worst images each")
    parser.add_argument("--prompts", help="prompts file: adds near words, and where CLIP sees each class's prompt")
    add_clip(parser)
    parser.add_argument("--title", default="CAM report", help="heading of the page")
    parser.add_argument("--out", default="report.html", help="page to write; an earlier one is kept as NAME.before")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples report`."""
    from semples_plugin.data.cam_files import list_cams
    from semples_plugin.data.images import check_images
    from semples_plugin.viz.report import prompt_panels, write_report

    if options.images:  # what would fail at the end fails before the work
        check_images(options.images, list_cams(options.cams[0], masks=True))
    loaded = load_prompts(options) if options.prompts else None
    evaluations, titles, status = judge(options)
    words: list[NearWords] = []
    panels: list[PromptPictures] = []
    if loaded is not None:
        from semples_plugin.viz.prompt_maps import nearest_words

        prompts, clip = loaded
        _check_classes(options.prompts, prompts, evaluations[0].class_names)
        words = nearest_words(prompts, clip, default_vocabulary(clip))
        if options.images:
            panels = prompt_panels(prompts, clip, evaluations[-1], options.images)
    strata, lacking = None, None
    if options.strata:
        try:
            strata, failed = judge_strata(options, evaluations)
            status = max(status, failed)
        except ValueError as error:  # costs the page its strata alone
            lacking = error
    keep_earlier(options.out)
    write_report(
        options.out,
        evaluations,
        titles,
        images=options.images,
        shown=options.shown,
        strata=strata,
        words=words,
        prompts=panels,
        heading=options.title,
    )
    print(f"wrote {options.out}{'' if lacking is None else ', without strata'}")
    if lacking is not None:
        raise lacking
    return status


def _check_classes(path: str, prompts: BackgroundPrompts, class_names: tuple[str, ...]) -> None:
    from semples_plugin.utils.checks import first_difference

    own = prompts.class_names or ()
    if first_difference(own, class_names) is not None:
        raise ValueError(
            f"{path} is of the classes {', '.join(own)}; the CAMs were judged with {', '.join(class_names)}: give "
            "--classes, or leave --prompts out"
        )
