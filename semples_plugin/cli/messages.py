"""What several commands say on standard error: of images that they left out or could not use, of earlier results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

MAX_FAILURES = 10  # that a command names one by one


def print_names(what: str, names: Sequence[str]) -> None:
    """One line with the number of images and the first of their names; nothing without images."""
    if names:
        from semples_plugin.viz.tables import shorten

        print(f"{what}: {len(names)}: {shorten(names)}", file=sys.stderr)


def print_failures(what: str, failed: Mapping[str, str], where: str = "") -> None:
    """A line for each of the first `MAX_FAILURES`; then the number of others, and `where` all of them are listed."""
    for name, reason in list(failed.items())[:MAX_FAILURES]:
        print(f"{what}: {name}: {reason}", file=sys.stderr)
    if len(failed) > MAX_FAILURES:
        print(f"{what}: ... and {len(failed) - MAX_FAILURES} more{where}", file=sys.stderr)


def keep_earlier(*paths: str | Path) -> None:
    """Sets an earlier result aside where a new one is about to take its name, and says so."""
    from semples_plugin.utils.atomic_files import set_aside

    kept = [Path(path).name for path in paths if set_aside(Path(path).resolve())]
    if kept:
        print(f"kept an earlier {', '.join(kept)} as {', '.join(f'{name}.before' for name in kept)}", file=sys.stderr)
