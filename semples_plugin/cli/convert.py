"""`semples convert`: turns one host's CAM files into another's."""

from __future__ import annotations

import argparse
from typing import Any

from semples_plugin.cli.arguments import add_command, add_quiet
from semples_plugin.cli.messages import print_failures


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "convert",
        "turn CAM files of one host into another's",
        "clims: CLIMS and IRNet; weaktr: WeakTr and MCTformer; fma: FMA-WSSS, whose seeding takes them then. Files of "
        "an interrupted call stay; files of other CAMs, or of these before they changed, are refused.",
    )
    parser.add_argument("cams", help="folder of CAM files; their content tells the host")
    parser.add_argument("out", help="folder for the converted ones")
    parser.add_argument("--to", choices=("clims", "weaktr", "fma"), required=True, help="the format to write")
    parser.add_argument("--images", help="folder of the images, for their size; needed from fma to the others")
    parser.add_argument("--list", help="text file of image names, to convert these alone")
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples convert`."""
    from semples_plugin.data.convert import convert_folder

    failed = convert_folder(
        options.cams,
        options.out,
        options.to,
        images=options.images,
        image_list=options.list,
        progress=not options.quiet,
    )
    print_failures("not converted", failed)
    print(f"CAMs of {options.cams} are in {options.out}" + (f", but for {len(failed)}" if failed else ""))
    return int(bool(failed))
