"""`semples labels`: `cls_labels.npy`, as CLIMS, IRNet and WeakTr read it, from masks, COCO's JSON or a table."""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from semples_plugin.cams.evaluation import IGNORED
from semples_plugin.cams.pictures import read_mask
from semples_plugin.checks import plain_name
from semples_plugin.files import replacing

Present = dict[str, set[int]]
"""Image name, without its ending, to the classes that it shows, from 0."""


def make_labels(
    source: str | Path, out: str | Path, class_names: Sequence[str] | None = None, keys: str = "name"
) -> tuple[Present, tuple[str, ...]]:
    """Writes image labels and says what they hold.

    Args:
        source: a folder of masks (PNG: 0 background, k + 1 class k, 255 ignored), an `instances_*.json` of COCO's
            layout, or a CSV of `image,class[,class...]` rows, where an image may come again and a first row that
            begins with `image` is a header. Folders, endings of pictures and `COCO_train2014_` are no part of an
            image's name.
        out: the `.npy` to write: a pickled dictionary of float32 multi-hot arrays `[K]`.
        class_names: K names in label order. COCO's JSON brings its own, in the order of its ids, unless given.
        keys: "name" ("2007_000032", WeakTr's) or "integer" (2007000032, CLIMS's and IRNet's; names of digits alone).

    Returns:
        The classes of each image, and the class names.

    Raises:
        FileNotFoundError: where there is no source.
        ValueError: for a class that is not among the names, a mask value above K, two files of one name, an image
            name that is no number where integers are wanted, or a source without images; nothing is written then.

    Warns:
        UserWarning: of categories of COCO's JSON that the names leave out, and of names without a category.
    """
    source = Path(source)
    if keys not in ("name", "integer"):
        raise ValueError(f'keys: expected "name" or "integer", got {keys!r}')
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}")
    if source.suffix == ".json":
        present, class_names = _read_coco(source, class_names)
    elif class_names is None:
        raise ValueError("class names are needed, in label order: --classes FILE, a text file with one name a line")
    elif source.is_dir():
        present = _read_masks(source, len(class_names))
    elif source.suffix == ".csv":
        present = read_table(source, class_names)
    else:
        raise ValueError(f"{source}: expected a folder of masks, COCO's .json or a .csv")
    if not present:
        what = "PNG masks (subfolders are not searched)" if source.is_dir() else "images"
        raise ValueError(f"{source} holds no {what}")
    labels = {_key(name, keys): _multi_hot(classes, len(class_names)) for name, classes in sorted(present.items())}
    if len(labels) < len(present):
        raise ValueError(f"{source}: different image names give the same integer; use names as keys")
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(labels, dtype=object), allow_pickle=True)
    return present, tuple(class_names)


def describe(present: Mapping[str, Iterable[int]], class_names: Sequence[str]) -> str:
    """How many images show each class, and how many show none."""
    counts = np.bincount([k for classes in present.values() for k in classes], minlength=len(class_names))
    lines = [f"{name:20} {count:6}" for name, count in zip(class_names, counts)]
    empty = sum(not classes for classes in present.values())
    return "\n".join([*lines, f"{'images':20} {len(present):6}", f"{'without a label':20} {empty:6}"])


def _read_masks(folder: Path, num_classes: int) -> Present:
    present: Present = {}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    for path in tqdm(files, "masks", unit="mask"):
        values = set(np.unique(read_mask(path)).tolist()) - {0, IGNORED}
        if values and max(values) > num_classes:
            raise ValueError(f"{path}: expected values of 0 to {num_classes} and {IGNORED}, got {max(values)}")
        present[path.stem] = {value - 1 for value in values}
    return present


def _read_coco(path: Path, class_names: Sequence[str] | None) -> tuple[Present, tuple[str, ...]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected COCO's images, annotations and categories; {error!r}") from error
    by_id = {category["id"]: category["name"] for category in sorted(categories, key=lambda c: c["id"])}
    names = tuple(class_names or by_id.values())
    unknown = [name for name in names if name not in by_id.values()]
    if len(unknown) == len(names):
        raise ValueError(f"{path} has none of the categories {', '.join(names)}; it has {', '.join(by_id.values())}")
    left_out = [name for name in by_id.values() if name not in names]
    if unknown:  # as with the ten of COCO's 90 that were never annotated
        warnings.warn(f"{path} has no category {', '.join(unknown)}: their columns stay 0", UserWarning, stacklevel=3)
    if left_out:
        warnings.warn(
            f"left out, for the class list has no such names: {', '.join(left_out)}", UserWarning, stacklevel=3
        )
    files = _Names()
    image_names = {image["id"]: files.of(image["file_name"]) for image in images}
    present: Present = {name: set() for name in image_names.values()}
    for annotation in tqdm(annotations, "annotations", unit="object"):
        try:
            image, name = image_names[annotation["image_id"]], by_id[annotation["category_id"]]
        except KeyError as error:
            raise ValueError(f"{path}: annotation {annotation} points to no image or no category") from error
        if name in names:  # a chosen list may leave classes out
            present[image].add(names.index(name))
    return present, names


def read_table(path: Path, class_names: Sequence[str]) -> Present:
    """The classes of each image of a CSV, see `make_labels`."""
    present: Present = {}
    files, columns = _Names(), {plain_name(name): k for k, name in enumerate(class_names)}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), 1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or (number == 1 and cells[0].lower() == "image"):
                continue
            if len(cells) == 1 and re.search("[;\t]", cells[0]):
                raise ValueError(
                    f"{path}, line {number}: expected image,class[,class...] with commas, got {cells[0]!r}"
                )
            found = present.setdefault(files.of(cells[0]), set())
            for name in filter(None, cells[1:]):
                if plain_name(name) not in columns:
                    hint = "; a row names the classes that its image shows, without 0 and 1" if name in "01" else ""
                    raise ValueError(
                        f"{path}, line {number}: {name!r} is none of the {len(class_names)} class names{hint}"
                    )
                found.add(columns[plain_name(name)])
    if present and not any(present.values()):
        raise ValueError(f"{path}: no row names a class; expected image,class[,class...] with commas")
    return present


class _Names:
    """Image names as the hosts' lists have them, from files' paths; two files never share one."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}

    def of(self, file: str) -> str:
        name = image_name(file)
        if self._files.setdefault(name, file) != file:
            raise ValueError(
                f"{self._files[name]} and {file} would both be called {name!r}; the hosts need unique names"
            )
        return name


def image_name(file: str) -> str:
    """An image's name as the hosts' lists have it, from its file's path."""
    path = Path(file)
    name = path.stem if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".webp") else path.name
    return re.sub(r"^COCO_(train|val)2014_", "", name)


def _key(name: str, keys: str) -> str | int:
    if keys == "name":
        return name
    digits = name.replace("_", "")
    if not re.fullmatch(r"\d+", digits):
        raise ValueError(f"{name!r} is no number; CLIMS's integer keys need names such as 2007_000032")
    return int(digits)


def _multi_hot(classes: Iterable[int], num_classes: int) -> np.ndarray:
    label = np.zeros(num_classes, np.float32)
    label[list(classes)] = 1
    return label
