"""`semples demo`: the method in a small world that comes with the package."""

from __future__ import annotations

import argparse
import os
from typing import Any

from semples_plugin.cli.arguments import add_command, add_device, add_quiet


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "demo",
        "train, refine and compare CAMs in a small world that comes with the package",
        "Trains a CAM network from image labels on generated scenes in which every object has its own "
        "co-occurring background, adds the three objectives of SemPLeS with a tiny CLIP, and prints what each of "
        "them changes. Writes pictures, prompts and figures to --out; stopped, the same command goes on with the seeds "
        "that are missing. Computes on one thread unless OMP_NUM_THREADS says otherwise.",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[100, 101, 102, 103], help="one run for each; the table averages"
    )
    parser.add_argument("--ablation", action="store_true", help="all rows of the paper's Table 5; half as long again")
    parser.add_argument("--additions", action="store_true", help="rows of what is not the paper's; twice as long")
    parser.add_argument("--out", default="demo-out", help="folder for grid.png, results.json and the prompts")
    add_device(parser)
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """`semples demo`."""
    import torch

    from semples_plugin.demo.run import run_demo

    if "OMP_NUM_THREADS" not in os.environ:  # several threads would mostly wait for each other in such small layers
        torch.set_num_threads(1)
    rows = {"ablation": options.ablation, "additions": options.additions}
    run_demo(options.seeds, options.out, options.device, **rows, progress=not options.quiet)
