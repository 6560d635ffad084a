"""`semples labels`: `cls_labels.npy`, as CLIMS, IRNet and WeakTr read it, from masks, COCO's JSON or a table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.data.coco_json import read_coco
from semples_plugin.data.image_names import ImageNames, key_of_name
from semples_plugin.data.images import IGNORED, read_mask
from semples_plugin.utils.atomic_files import read_lines, replacing
from semples_plugin.utils.checks import check_names, class_positions

Present = dict[str, set[int]]
"""Image name, see `semples_plugin.data.image_names`, to the classes that it shows, from 0."""


def make_labels(
    source: str | Path, out: str | Path, class_names: Sequence[str] | None = None, keys: str = "name"
) -> tuple[Present, tuple[str, ...]]:
    """Writes image labels and says what they hold.

    Args:
        source: a folder of masks (PNG: 0 background, k + 1 class k, 255 ignored), an `instances_*.json` of COCO's
            layout, or a CSV of `image,class[,class...]` rows, where an image may come again and a first row that
            begins with `image` is a header. Folders, endings of pictures and `COCO_train2014_` are no part of an
            image's name.
        out: the `.npy` to write: a pickled dictionary of float32 multi-hot arrays `[K]`. An existing file stays: with
            the same content there is nothing to do, and any other content is not overwritten.
        class_names: K names in label order. COCO's JSON brings its own, in the order of its ids, unless given.
        keys: "name" ("2007_000032", WeakTr's) or "integer" (2007000032, CLIMS's and IRNet's; 9 for COCO's
            "000000000009").

    Returns:
        The classes of each image, and the class names.

    Raises:
        FileExistsError: where `out` exists and holds anything else.
        FileNotFoundError: where there is no source.
        ValueError: for a damaged source, a class that is not among the names, a mask value above K, two images of one
            name, an image name that integers can't stand for where they are wanted, or a source without images;
            nothing is written then.

    Warns:
        UserWarning: of categories of COCO's JSON that the names leave out, and of names without a category.
    """
    source, out = Path(source), Path(out)
    if keys not in ("name", "integer"):
        raise ValueError(f'keys: expected "name" or "integer", got {keys!r}')
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}")
    class_names = None if class_names is None else check_names(class_names)
    present, class_names = _read_source(source, class_names)
    labels = {
        key_of_name(name) if keys == "integer" else name: _multi_hot(classes, len(class_names))
        for name, classes in sorted(present.items())
    }
    _write_once(out, labels)
    return present, class_names


def describe(present: Mapping[str, Iterable[int]], class_names: Sequence[str]) -> str:
    """How many images show each class, and how many show none."""
    counts = np.bincount([k for classes in present.values() for k in classes], minlength=len(class_names))
    lines = [f"{name:20} {count:6}" for name, count in zip(class_names, counts, strict=True)]
    empty = sum(not classes for classes in present.values())
    return "\n".join([*lines, f"{'images':20} {len(present):6}", f"{'without a label':20} {empty:6}"])


def _read_source(source: Path, class_names: tuple[str, ...] | None) -> tuple[Present, tuple[str, ...]]:
    if source.suffix == ".json":
        present, class_names = read_coco(source, class_names)
    elif class_names is None:
        raise ValueError(
            "class names are needed, in label order: --classes FILE, a text file with one name a line, or "
            "a preset's name"
        )
    elif source.is_dir():
        present = _read_masks(source, len(class_names))
    elif source.suffix == ".csv":
        present = read_table(source, class_names)
    else:
        raise ValueError(f"{source}: expected a folder of masks, COCO's .json or a .csv")
    if not present:
        missing = "PNG masks (subfolders are not searched)" if source.is_dir() else "images"
        raise ValueError(f"{source} holds no {missing}")
    return present, class_names


def _read_masks(folder: Path, num_classes: int) -> Present:
    present: Present = {}
    names = ImageNames()
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    for path in tqdm(files, "masks", unit="mask"):
        values = set(np.unique(read_mask(path)).tolist()) - {0, IGNORED}
        if values and max(values) > num_classes:
            raise ValueError(f"{path}: expected values of 0 to {num_classes} and {IGNORED}, got {max(values)}")
        present[names.of(path)] = {value - 1 for value in values}
    return present


def read_table(path: Path, class_names: Sequence[str]) -> Present:
    """The classes of each image of a CSV, see `make_labels`."""
    present: Present = {}
    names, column_of = ImageNames(), class_positions(class_names)
    for number, line in enumerate(read_lines(path), 1):
        try:
            cells = _cells(line)
            is_header = number == 1 and cells[:1] and cells[0].lower() == "image"
            if is_header or not any(cells):
                continue
            classes = present.setdefault(names.of(cells[0]), set())
            for name in filter(None, cells[1:]):
                k = column_of(name)
                if k is None:
                    hint = "; a row names the classes that its image shows, without 0 and 1" if name in "01" else ""
                    raise ValueError(f"{name!r:.100} is none of the {len(class_names)} class names{hint}")
                classes.add(k)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if present and not any(present.values()):
        raise ValueError(f"{path}: no row names a class; expected image,class[,class...] with commas")
    return present


def _cells(line: str) -> list[str]:
    """The cells of a row, which is one line: a quote that isn't closed takes no other lines along."""
    row = next(csv.reader([line], strict=True), [])
    cells = [cell.strip() for cell in row]
    if len(cells) == 1 and re.search("[,;\t]", cells[0]):
        raise ValueError(f"expected image,class[,class...] with commas, got {cells[0]!r:.100}")
    return cells


def _multi_hot(classes: Iterable[int], num_classes: int) -> NDArray[np.float32]:
    label = np.zeros(num_classes, np.float32)
    label[list(classes)] = 1
    return label


def _write_once(out: Path, labels: Mapping[str | int, NDArray[np.float32]]) -> None:
    """Writes a pickled dictionary unless the file exists; refuses to overwrite another content."""
    content = io.BytesIO()
    np.save(content, np.array(labels, dtype=object), allow_pickle=True)
    if not out.exists():
        with replacing(out) as temporary:
            temporary.write_bytes(content.getvalue())
    elif out.read_bytes() != content.getvalue():
        raise FileExistsError(f"{out} exists and holds something else: choose another name, or delete it first")
