"""The command line: `semples COMMAND`; a file per command, in which its flags and its body stand together."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """What `semples` starts."""
    from semples_plugin.cli.app import main

    return main(arguments)
