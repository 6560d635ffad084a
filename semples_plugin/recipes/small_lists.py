"""Lists of a few images for a miniature run: `python -m semples_plugin.recipes.small_lists LISTS OUT`.

Reads `train.txt` and `val.txt` of the folder LISTS and writes the first names of each to OUT. Where there is no
`val.txt`, the names behind those of training serve.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from semples_plugin.data.cam_files import read_image_list
from semples_plugin.recipes.layout import write_list


def write_small_lists(lists: str | Path, out: str | Path, count: int) -> dict[str, list[str]]:
    """Writes `train.txt` and `val.txt` of at most `count` names each, and returns these names.

    Raises:
        FileNotFoundError: where there is no `train.txt`.
        ValueError: where no name is left for `val.txt`.
    """
    lists, out = Path(lists), Path(out)
    names = read_image_list(lists / "train.txt")
    train = names[:count]
    val = (read_image_list(lists / "val.txt") if (lists / "val.txt").is_file() else names[count:])[:count]
    if not val:
        raise ValueError(f"{lists}: expected a val.txt, or more than {count} names in train.txt, got {len(names)}")
    for name, content in {"train": train, "val": val}.items():
        write_list(content, out / f"{name}.txt")
    return {"train": train, "val": val}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semples_plugin.recipes.small_lists", description=__doc__)
    parser.add_argument("lists", metavar="LISTS", help="folder of train.txt and, maybe, val.txt")
    parser.add_argument("out", metavar="OUT", help="folder to write the two to")
    parser.add_argument("--images", type=int, default=8, help="names in each (default: %(default)s)")
    options = parser.parse_args()
    for name, names in write_small_lists(options.lists, options.out, options.images).items():
        print(f"wrote {options.out}/{name}.txt, {len(names)} images")


if __name__ == "__main__":
    main()
