"""`semples show`: draws images with their CAMs."""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence
from typing import Any

from semples_plugin.cli.arguments import add_command, whole_number
from semples_plugin.cli.judging import add_judging, judge
from semples_plugin.cli.messages import keep_earlier


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "show",
        "draw images with their CAMs, before and after, and what is wrong with them",
        "Missed objects, backgrounds taken for an object and wrong classes get a colour each.",
    )
    add_judging(parser)
    parser.add_argument("--images", required=True, help="folder of the images")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--names", nargs="+", help="images to draw (default: the three best and the three worst)")
    chosen.add_argument("--best", type=whole_number, metavar="N", help="the N best, or most gained")
    chosen.add_argument("--worst", type=whole_number, metavar="N", help="the N worst, or most lost")
    parser.add_argument("--out", default="cams.png", help="picture to write; an earlier one is kept as NAME.before")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples show`."""
    from semples_plugin.data.cam_files import list_cams
    from semples_plugin.data.image_names import image_name
    from semples_plugin.data.images import check_images
    from semples_plugin.viz.examples import describe_image, draw_images, ranked
    from semples_plugin.viz.overlays import check_picture_name, write_picture

    options.names = [image_name(name) for name in options.names or ()]
    # What would fail at the end fails before the work.
    check_picture_name(options.out)
    _check_names(options.names, list_cams(options.cams[0], masks=True), f"the CAMs of {options.cams[0]}")
    evaluations, titles, status = judge(options)
    names = _choose(options, ranked(evaluations))
    check_images(options.images, names)
    picture = draw_images(evaluations, names, options.images, titles)
    keep_earlier(options.out)
    write_picture(options.out, picture)
    print("\n".join(describe_image(evaluations, name) for name in names))
    print(f"wrote {options.out}")
    return status


def _choose(options: argparse.Namespace, ranked: Sequence[str]) -> Sequence[str]:
    """The images to draw, of those that were judged, from best to worst."""
    if options.names:
        _check_names(options.names, ranked, f"the {len(ranked)} images that were judged")
        return options.names
    if options.best:
        return ranked[: options.best]
    if options.worst:
        return ranked[::-1][: options.worst]
    return ranked if len(ranked) <= 6 else [*ranked[:3], *ranked[-3:]]


def _check_names(names: Sequence[str], known: Container[str], what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {what}")
