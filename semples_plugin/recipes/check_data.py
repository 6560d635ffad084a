"""Whether a recipe's data is whole, by the check of `semples doctor`: `python -m semples_plugin.recipes.check_data -h`.

It runs once the host's lists are there, and before anything that takes long.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from semples_plugin.compat.needs.check import MODULES, check_data, print_findings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 where images, masks, labels or lists are missing."""
    parser = argparse.ArgumentParser(prog="python -m semples_plugin.recipes.check_data", description=__doc__)
    parser.add_argument("host", choices=tuple(MODULES))
    parser.add_argument("checkout", help="the host's")
    parser.add_argument("data", choices=("voc", "coco"))
    parser.add_argument("--folder", help="the data set's, for a host that doesn't look for it in its checkout")
    parser.add_argument(
        "--lists", nargs="+", default=[], metavar="HOSTS=YOURS", help="lists of images in place of the host's"
    )
    options = parser.parse_args(arguments)
    lists = dict(pair.split("=", 1) for pair in options.lists)
    return print_findings(check_data(options.host, options.checkout, options.data, options.folder, lists))


if __name__ == "__main__":
    sys.exit(main())
