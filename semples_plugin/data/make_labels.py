"""`semples labels`: `cls_labels.npy`, as CLIMS, IRNet and WeakTr read it, from masks, COCO's JSON or a table."""

from __future__ import annotations

import csv
import io
import json
import re
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

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
        out: the `.npy` to write: a pickled dictionary of float32 multi-hot arrays `[K]`. One that is there already
            stays: where it holds the same, there is nothing to do, and anything else is not overwritten.
        class_names: K names in label order. COCO's JSON brings its own, in the order of its ids, unless given.
        keys: "name" ("2007_000032", WeakTr's) or "integer" (2007000032, CLIMS's and IRNet's; 9 for COCO's
            "000000000009").

    Returns:
        The classes of each image, and the class names.

    Raises:
        FileExistsError: where `out` is there and holds anything else.
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
    if source.suffix == ".json":
        present, class_names = _read_coco(source, class_names)
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
        what = "PNG masks (subfolders are not searched)" if source.is_dir() else "images"
        raise ValueError(f"{source} holds no {what}")
    labels = {
        key_of_name(name) if keys == "integer" else name: _multi_hot(classes, len(class_names))
        for name, classes in sorted(present.items())
    }
    content = io.BytesIO()
    np.save(content, np.array(labels, dtype=object), allow_pickle=True)
    if not out.exists():
        with replacing(out) as temporary:
            temporary.write_bytes(content.getvalue())
    elif out.read_bytes() != content.getvalue():
        raise FileExistsError(f"{out} is there and holds something else: choose another name, or delete it first")
    return present, class_names


def describe(present: Mapping[str, Iterable[int]], class_names: Sequence[str]) -> str:
    """How many images show each class, and how many show none."""
    counts = np.bincount([k for classes in present.values() for k in classes], minlength=len(class_names))
    lines = [f"{name:20} {count:6}" for name, count in zip(class_names, counts, strict=True)]
    empty = sum(not classes for classes in present.values())
    return "\n".join([*lines, f"{'images':20} {len(present):6}", f"{'without a label':20} {empty:6}"])


def _read_masks(folder: Path, num_classes: int) -> Present:
    present: Present = {}
    names, files = ImageNames(), sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    for path in tqdm(files, "masks", unit="mask"):
        values = set(np.unique(read_mask(path)).tolist()) - {0, IGNORED}
        if values and max(values) > num_classes:
            raise ValueError(f"{path}: expected values of 0 to {num_classes} and {IGNORED}, got {max(values)}")
        present[names.of(path)] = {value - 1 for value in values}
    return present


def _read_coco(path: Path, class_names: tuple[str, ...] | None) -> tuple[Present, tuple[str, ...]]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"got a {type(content).__name__}")
        categories = _unique(sorted(_entries(content, "categories", ("id", int), ("name", str))), "categories")
        folded = [name.strip().lower() for name in categories.values()]
        if twice := [name for name in folded if folded.count(name) > 1]:
            raise ValueError(f"two of its categories are called {twice[0]!r:.80}")
        images = _unique(_entries(content, "images", ("id", (int, str)), ("file_name", str)), "images")
        annotations = _entries(content, "annotations", ("image_id", (int, str)), ("category_id", int))
        names = class_names or check_names([*categories.values()])
        in_files = ImageNames()
        image_names = {identifier: in_files.of(file) for identifier, file in images.items()}
    except RecursionError:
        raise ValueError(f"{path}: expected COCO's layout, got lists in lists without an end") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected COCO's images, annotations and categories; {error}") from error
    columns = _columns(names, categories)
    unknown = [name for k, name in enumerate(names) if k not in columns.values()]
    left_out = [name for identifier, name in categories.items() if identifier not in columns]
    if not columns:
        raise ValueError(
            f"{path} has none of the categories {', '.join(names):.150}; it has {', '.join(left_out):.150}"
        )
    if unknown:  # as with the ten of COCO's 90 that were never annotated
        warnings.warn(f"{path} has no category {', '.join(unknown)}: their columns stay 0", UserWarning, stacklevel=3)
    if left_out:
        warnings.warn(
            f"left out, for the class list has no such names: {', '.join(left_out)}", UserWarning, stacklevel=3
        )
    present: Present = {name: set() for name in image_names.values()}
    for image, category in tqdm(annotations, "annotations", unit="object"):
        if image not in image_names or category not in categories:
            raise ValueError(
                f"{path}: an annotation of image_id {image!r:.80} and category_id {category!r:.80} points to no image "
                "or no category"
            )
        if category in columns:  # a chosen list may leave classes out
            present[image_names[image]].add(columns[category])
    return present, names


def _entries(content: dict[str, Any], part: str, *fields: tuple[str, Any]) -> list[tuple[Any, ...]]:
    """The fields, by name and type, of each entry of a part of COCO's JSON."""
    entries = content.get(part)
    if not isinstance(entries, list):
        raise ValueError(f"{part!r} is no list in it")
    for entry in entries:
        for name, kind in fields:
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise ValueError(f"one of its {part} has no usable {name!r}: {reprlib.repr(entry):.200}")
    return [tuple(entry[name] for name, _ in fields) for entry in entries]


def _unique(entries: Iterable[tuple[Any, ...]], part: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for identifier, name in entries:
        if found.setdefault(identifier, name) != name:
            raise ValueError(f"{found[identifier]:.80} and {name:.80} of its {part} have one id, {identifier!r:.80}")
    return found


def _columns(names: Sequence[str], categories: Mapping[int, str]) -> dict[int, int]:
    """COCO's category ids to label columns, where a name and a category mean each other alone."""
    column, position = class_positions(names), class_positions([*categories.values()])
    found = {}
    for c, (identifier, name) in enumerate(categories.items()):
        k = column(name)
        if k is not None and position(names[k]) == c:
            found[identifier] = k
    return found


def read_table(path: Path, class_names: Sequence[str]) -> Present:
    """The classes of each image of a CSV, see `make_labels`."""
    present: Present = {}
    names, column = ImageNames(), class_positions(class_names)
    for number, line in enumerate(read_lines(path), 1):
        try:
            # A line is a row: a quote that isn't closed takes none of the lines behind it along.
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
            if not any(cells) or (number == 1 and cells[0].lower() == "image"):
                continue
            if len(cells) == 1 and re.search("[,;\t]", cells[0]):
                raise ValueError(f"expected image,class[,class...] with commas, got {cells[0]!r:.100}")
            found = present.setdefault(names.of(cells[0]), set())
            for name in filter(None, cells[1:]):
                k = column(name)
                if k is None:
                    hint = "; a row names the classes that its image shows, without 0 and 1" if name in "01" else ""
                    raise ValueError(f"{name!r:.100} is none of the {len(class_names)} class names{hint}")
                found.add(k)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if present and not any(present.values()):
        raise ValueError(f"{path}: no row names a class; expected image,class[,class...] with commas")
    return present


def _multi_hot(classes: Iterable[int], num_classes: int) -> np.ndarray:
    label = np.zeros(num_classes, np.float32)
    label[list(classes)] = 1
    return label
