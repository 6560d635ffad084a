"""`semples run`: a host's own script, on today's Python and packages."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.cli.arguments import Parser, add_command

_WITH_VALUE = ("--device", "--seed", "--cfg")


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "run",
        "start a script of CLIMS, WeakTr or FMA-WSSS on today's Python and packages",
        "Becomes `python SCRIPT ...` with stand-ins for packages that are gone and corrections of lines "
        "that stop on today's ones, also in the processes that the script starts. No file of the host changes, and "
        "`semples patch` fits as before. Run it in the host's checkout.",
    )
    parser.add_argument("host", choices=tuple(COMMITS), help="which code base")
    _add_options(parser)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="its script and what that takes, or -m MODULE"
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cpu maps CUDA calls to the CPU, for trials alone")
    parser.add_argument("--any-commit", action="store_true", help="where the checkout isn't at the pinned commit")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of Python's, numpy's and torch's random numbers; WeakTr and FMA-WSSS set theirs after that by themselves",
    )
    parser.add_argument(
        "--cfg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="FMA-WSSS: an entry of the config, such as solver.max_iter=3; may be repeated",
    )


def run(options: argparse.Namespace) -> None:
    """`semples run`."""
    from semples_plugin.compat.run import run as start

    # argparse gives all that follows the host to the script; our own options may stand there, before the script.
    after_host = Parser(prog="semples run", add_help=False, allow_abbrev=False)
    _add_options(after_host)
    while options.arguments and options.arguments[0].split("=")[0] in ("--any-commit", *_WITH_VALUE):
        count = 2 if options.arguments[0] in _WITH_VALUE else 1
        after_host.parse_args(options.arguments[:count], options)
        options.arguments = options.arguments[count:]
    if options.device == "cpu":
        print("semples run: CUDA calls are mapped to the CPU: for a trial, not for figures", file=sys.stderr)
    start(options.host, options.arguments, options.device == "cpu", options.any_commit, options.seed, options.cfg)
