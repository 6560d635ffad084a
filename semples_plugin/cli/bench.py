"""`semples bench`: measures what a step costs."""

from __future__ import annotations

import argparse
from typing import Any

from semples_plugin.cli.arguments import add_command, add_device, add_quiet


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "bench",
        "measure what a step costs here, beside a straightforward one",
        "Times the refinement step and prompt learning, with memory and operations, beside plain steps "
        "with the encoder passes of the authors' public code, and shows what each saving saves. Weights are random. "
        "A quarter of an hour on a CPU; minutes on a GPU.",
    )
    parser.add_argument("--clip", default="ViT-B-32-quickgelu", help="open_clip name of a native CLIP")
    add_device(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of CLIP")
    parser.add_argument(
        "--pairs", type=int, nargs="+", help="numbers of pairs (default: 1 6 16 96; up to 256 on a GPU)"
    )
    parser.add_argument("--classes", type=int, default=20, help="K")
    parser.add_argument("--length", type=int, default=30, help="L")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the repeats of each measurement")
    parser.add_argument(
        "--out", default="bench.json", help="file for the figures; an earlier one is kept as NAME.before"
    )
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """`semples bench`."""
    from semples_plugin.bench.run import run_bench

    run_bench(
        options.out,
        clip=options.clip,
        device=options.device,
        precision=options.precision,
        pairs=options.pairs,
        classes=options.classes,
        length=options.length,
        seconds=options.seconds,
        progress=not options.quiet,
    )
