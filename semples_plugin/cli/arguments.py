"""What the commands' parsers have in common."""

from __future__ import annotations

import argparse
import os
from typing import Any

EXIT_STATUS = (
    "Exit status: 0 done; 1 bad input, something missing, or some images failed; 2 wrong usage; 130 interrupted."
)


class _Help(argparse.HelpFormatter):
    """States an option's default once: where it has one, and its help doesn't state it in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_no_default = not action.default or action.nargs == 0
        return text if has_no_default or "(default" in text else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """A parser whose help explains the exit status, as do those of the commands below it."""

    def __init__(self, *, epilog: str = "", **options: Any) -> None:
        super().__init__(epilog=f"{epilog} {EXIT_STATUS}".strip(), formatter_class=_Help, **options)


def add_command(commands: Any, name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    """A command's parser; `summary` stands in the list of commands, and with `details` in the command's own help."""
    description = f"{summary[0].upper()}{summary[1:]}. {details}".strip()
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description)
    return parser


def whole_number(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option `--device`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The option `--workers`."""
    parser.add_argument(
        "--workers", type=whole_number, default=os.cpu_count(), help="processes (default: one per core)"
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """The option `--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_clip(parser: argparse.ArgumentParser) -> None:
    """The options of a CLIP, for prompts that say which one they belong to."""
    parser.add_argument(
        "--clip",
        help="open_clip name, local-dir:PATH, or demo for the demo's own (default: what the prompts file says)",
    )
    parser.add_argument(
        "--pretrained", help="its tag, or the path of its weights (default: what the prompts file says)"
    )
    add_device(parser)
