"""`semples patch`: puts SemPLeS into a checkout of a host."""

from __future__ import annotations

import argparse
from typing import Any

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.cli.arguments import add_command


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "patch",
        "put SemPLeS into a checkout of CLIMS, WeakTr or FMA-WSSS, or take it out",
        "CLIMS and WeakTr: applies a patch with git, pure insertions, at the pinned commit only; where "
        "files that it touches have local changes it refuses. FMA-WSSS: writes configs of the stages.",
    )
    parser.add_argument("host", choices=tuple(COMMITS), help="which code base")
    parser.add_argument("path", help="its git checkout")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", dest="action", action="store_const", const="check", help="say whether it is applied")
    action.add_argument("--revert", dest="action", action="store_const", const="revert", help="take the patch out")
    parser.set_defaults(run=run, action="apply")


def run(options: argparse.Namespace) -> None:
    """`semples patch`."""
    from semples_plugin.adapters.patching import patch

    print(patch(options.host, options.path, options.action))
