"""`semples report`: everything on one HTML page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from semples_plugin.cli.arguments import add_clip, add_command, whole_number
from semples_plugin.cli.judging import add_judging, judge
from semples_plugin.cli.prompts import load_prompts, vocabulary_of

if TYPE_CHECKING:
    from semples_plugin.viz.prompt_maps import NearWords
    from semples_plugin.viz.report import PromptPictures


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands, "report", "put curve, classes, images and prompts on one HTML page",
        "Everything is inside of the file, so that it can be mailed.",
    )  # fmt: skip
    add_judging(parser)
    parser.add_argument("--images", help="folder of the images; without it the page has no pictures")
    parser.add_argument("--shown", type=whole_number, default=4, help="best and worst images each")
    parser.add_argument("--prompts", help="prompts file: adds near words, and where CLIP sees each class's prompt")
    add_clip(parser)
    parser.add_argument("--title", default="CAM report", help="heading of the page")
    parser.add_argument("--out", default="report.html", help="page to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples report`."""
    from semples_plugin.data.cam_files import list_cams
    from semples_plugin.data.images import check_images
    from semples_plugin.utils.checks import first_difference
    from semples_plugin.viz.report import prompt_panels, write_report

    if options.images:  # as above
        check_images(options.images, list_cams(options.cams[0], masks=True))
    words: list[NearWords] = []
    panels: list[PromptPictures] = []
    prompts = load_prompts(options) if options.prompts else None
    evaluations, titles, code = judge(options)
    if prompts is not None:
        if first_difference(prompts[0].class_names or (), evaluations[0].class_names) is not None:
            raise ValueError(
                f"{options.prompts} is of the classes {', '.join(prompts[0].class_names or ())}; the CAMs were judged "
                f"with {', '.join(evaluations[0].class_names)}: give --classes, or leave --prompts out"
            )
        from semples_plugin.viz.prompt_maps import nearest_words

        words = nearest_words(*prompts, vocabulary_of(options, prompts[1]))
        panels = prompt_panels(*prompts, evaluations[-1], options.images) if options.images else []
    write_report(
        options.out, evaluations, titles, images=options.images, shown=options.shown, words=words, prompts=panels,
        heading=options.title,
    )  # fmt: skip
    print(f"wrote {options.out}")
    return code
