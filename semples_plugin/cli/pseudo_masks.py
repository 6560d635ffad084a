"""`semples pseudo-masks`: writes pseudo masks from CAMs."""

from __future__ import annotations

import argparse
from typing import Any

from semples_plugin.cli.arguments import add_command, add_quiet, add_workers
from semples_plugin.cli.messages import print_failures
from semples_plugin.utils.extras import how_to_install


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "pseudo-masks",
        "write palette PNGs from CAMs, for the segmentation network to learn from",
        "Interrupted, it goes on where it was; pseudo masks of other CAMs or settings in that folder are refused. "
        "`semples eval OUT --gt FOLDER` judges them.",
    )
    parser.add_argument("cams", help="folder of CAM files of any host")
    parser.add_argument("out", help="folder for the pseudo masks")
    score = parser.add_mutually_exclusive_group(required=True)
    score.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        metavar="T",
        help="background score; with two of them pixels in between become 255, which training ignores",
    )
    score.add_argument("--power", type=float, metavar="P", help="FMA-WSSS's background score (1 - m)^P")
    parser.add_argument(
        "--crf",
        type=int,
        default=0,
        metavar="N",
        help="N iterations of a dense CRF on the labels, with IRNet's settings (10 is usual); needs --images and "
        + how_to_install("crf"),
    )
    parser.add_argument("--images", help="folder of the images, for the CRF and for FMA-WSSS's CAMs")
    parser.add_argument("--list", help="text file of image names, to make pseudo masks of these alone")
    add_workers(parser)
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples pseudo-masks`."""
    from semples_plugin.data.pseudo_masks import Recipe, write_pseudo_masks

    recipe = Recipe(tuple(options.threshold or ()), options.power, options.crf)
    failed = write_pseudo_masks(
        options.cams,
        options.out,
        recipe,
        images=options.images,
        image_list=options.list,
        workers=options.workers,
        progress=not options.quiet,
    )
    print_failures("without a mask", failed)
    print(f"masks of {options.cams} are in {options.out}" + (f", but for {len(failed)}" if failed else ""))
    return int(bool(failed))
