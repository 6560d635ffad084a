"""Image labels from an `instances_*.json` of COCO's layout."""

from __future__ import annotations

import json
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from semples_plugin.data.image_names import ImageNames
from semples_plugin.utils.checks import check_names, class_positions


@dataclass(frozen=True)
class _Instances:
    """What a file holds: category ids to names, in their order; image ids to names; image and category of each object.

    `class_names` are the given ones, or the categories.
    """

    categories: dict[int, str]
    image_names: dict[int | str, str]
    objects: list[tuple[Any, ...]]
    class_names: tuple[str, ...]


def read_coco(path: Path, class_names: tuple[str, ...] | None) -> tuple[dict[str, set[int]], tuple[str, ...]]:
    """The classes of each image, and the class names, see `semples_plugin.data.make_labels.make_labels`."""
    instances = _read_instances(path, class_names)
    columns = _match_columns(path, instances)
    present: dict[str, set[int]] = {name: set() for name in instances.image_names.values()}
    for image, category in tqdm(instances.objects, "annotations", unit="object"):
        if image not in instances.image_names or category not in instances.categories:
            raise ValueError(
                f"{path}: an annotation of image_id {image!r:.80} and category_id {category!r:.80} points to no image "
                "or no category"
            )
        if category in columns:  # a given list may leave classes out
            present[instances.image_names[image]].add(columns[category])
    return present, instances.class_names


def _read_instances(path: Path, class_names: tuple[str, ...] | None) -> _Instances:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"got a {type(content).__name__}")
        categories = _unique(sorted(_entries(content, "categories", ("id", int), ("name", str))), "categories")
        folded = [name.strip().lower() for name in categories.values()]
        if repeated := [name for name in folded if folded.count(name) > 1]:
            raise ValueError(f"two of its categories are called {repeated[0]!r:.80}")
        files = _unique(_entries(content, "images", ("id", (int, str)), ("file_name", str)), "images")
        objects = _entries(content, "annotations", ("image_id", (int, str)), ("category_id", int))
        class_names = class_names or check_names([*categories.values()])
        names = ImageNames()
        image_names = {identifier: names.of(file) for identifier, file in files.items()}
    except RecursionError:
        raise ValueError(f"{path}: expected COCO's layout, got lists in lists without an end") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected COCO's images, annotations and categories; {error}") from error
    return _Instances(categories, image_names, objects, class_names)


def _match_columns(path: Path, instances: _Instances) -> dict[int, int]:
    """Category ids to label columns; warns of classes without a category, and of categories without a class."""
    categories, class_names = instances.categories, instances.class_names
    columns = _columns(class_names, categories)
    unknown = [name for k, name in enumerate(class_names) if k not in columns.values()]
    left_out = [name for identifier, name in categories.items() if identifier not in columns]
    if not columns:
        raise ValueError(
            f"{path} has none of the categories {', '.join(class_names):.150}; it has {', '.join(left_out):.150}"
        )
    if unknown:  # as with the ten of COCO's 90 that were never annotated
        _warn(f"{path} has no category {', '.join(unknown)}: their columns stay 0")
    if left_out:
        _warn(f"left out, for the class list has no such names: {', '.join(left_out)}")
    return columns


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=6)  # at the caller of make_labels


def _entries(content: dict[str, Any], section: str, *fields: tuple[str, Any]) -> list[tuple[Any, ...]]:
    """The fields, by name and type, of each entry of a section of the JSON."""
    entries = content.get(section)
    if not isinstance(entries, list):
        raise ValueError(f"{section!r} is no list in it")
    for entry in entries:
        for name, kind in fields:
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise ValueError(f"one of its {section} has no usable {name!r}: {reprlib.repr(entry):.200}")
    return [tuple(entry[name] for name, _ in fields) for entry in entries]


def _unique(entries: Iterable[tuple[Any, ...]], section: str) -> dict[Any, Any]:
    """Ids to names; an entry may come again, but no id with another name."""
    names: dict[Any, Any] = {}
    for identifier, name in entries:
        first = names.setdefault(identifier, name)
        if first != name:
            raise ValueError(f"{first:.80} and {name:.80} of its {section} have one id, {identifier!r:.80}")
    return names


def _columns(class_names: Sequence[str], categories: Mapping[int, str]) -> dict[int, int]:
    """Category ids to label columns, where a class name and a category mean each other and nothing else."""
    column_of, category_of = class_positions(class_names), class_positions([*categories.values()])
    columns = {}
    for position, (identifier, name) in enumerate(categories.items()):
        k = column_of(name)
        if k is not None and category_of(class_names[k]) == position:
            columns[identifier] = k
    return columns
