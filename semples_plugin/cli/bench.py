"""`semples bench`: measures what a step costs."""

from __future__ import annotations

import argparse
from typing import Any

from semples_plugin.cli.arguments import add_command, add_device, add_quiet, whole_number

_DETAILS = (
    "Parts (--only): refinement, the step of (c) by the number of pairs, beside a plain one with the encoder passes of "
    "the authors' public code; savings, what each saving saves of that plain step; ablation, the library's own step "
    "with each of CLIP's fast paths taken away in turn; modes, that step without checks of values, in parts "
    "(max_pairs), and compiled; prompts, (b) for VOC; host, a host's own training step, without and with (a) and (c), "
    "its network in its usual size. Weights, images and masks are random. All but host take half an hour or so on a "
    "CPU, and minutes on a GPU; figures are written as they come, tables printed at the end."
)


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(commands, "bench", "measure what a step costs here, alone and beside a host's", _DETAILS)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("refinement", "savings", "ablation", "modes", "prompts", "host"),
        help="parts (default: all but host; with --host that alone)",
    )
    parser.add_argument("--clip", default="ViT-B-32-quickgelu", help="open_clip name of a native CLIP")
    add_device(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of CLIP")
    parser.add_argument(
        "--pairs",
        type=int,
        nargs="+",
        help="numbers of pairs of the parts refinement, ablation and modes (default: 1 6 16 96 of the first, 6 of the "
        "others; more on a GPU)",
    )
    parser.add_argument(
        "--host", nargs="+", choices=("clims", "weaktr", "resnet50"), help="hosts whose own step is measured"
    )
    parser.add_argument(
        "--batch", type=whole_number, help="images of a host's step (default: its own; 2 or 4 on a CPU)"
    )
    parser.add_argument(
        "--size", type=whole_number, help="side of a host's crop, a multiple of 16 (default: its own, 512 or 224)"
    )
    parser.add_argument(
        "--pairs-per-image", type=float, default=1.5, help="present classes of a host's image, in the mean"
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
        only=options.only,
        pairs=options.pairs,
        hosts=options.host,
        batch=options.batch,
        size=options.size,
        pairs_per_image=options.pairs_per_image,
        classes=options.classes,
        length=options.length,
        seconds=options.seconds,
        progress=not options.quiet,
    )
