"""`semples`: the parser of all commands, and how one is run."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from semples_plugin.cli import (
    bench,
    convert,
    demo,
    doctor,
    eval,
    labels,
    patch,
    prompts,
    pseudo_masks,
    recipe,
    report,
    run,
    show,
)
from semples_plugin.cli.arguments import Parser
from semples_plugin.cli.streams import lasting_streams
from semples_plugin.version import __version__

# In the order of the help.
COMMANDS = (demo, doctor, labels, patch, run, recipe, bench, eval, show, report, convert, pseudo_masks, prompts)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, for `main` and for the tests."""
    parser = Parser(
        prog="semples",
        description="SemPLeS for any weakly-supervised segmentation code base.",
        epilog="Start with `semples demo` (some four minutes on a laptop, no download), then `semples doctor`.",
    )
    parser.add_argument("--version", action="version", version=f"semples-plugin {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status is 0, or 1 for bad input, which is explained in one sentence."""
    with lasting_streams(), warnings.catch_warnings():
        options = build_parser().parse_args(arguments)
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # some libraries' are UserWarnings as well
        warnings.showwarning = lambda message, *_, **__: print(f"semples {options.command}: {message}", file=sys.stderr)
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        status = int(options.run(options) or 0)
        sys.stdout.flush()
        return status
    except (ImportError, OSError, TypeError, ValueError, KeyboardInterrupt) as error:
        interrupted = _is_interrupt(error)
        print(f"semples {options.command}: {'interrupted' if interrupted else error}", file=sys.stderr)
        return 130 if interrupted else 1


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is an interrupt, or an error that a library raised on account of one while it was imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
