"""Whether a data set is where a host looks for it: folders, lists, and an image, mask and label for each name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from semples_plugin.compat.needs.items import DataSet, Folder, ImageList, Labels
from semples_plugin.utils.atomic_files import read_lines
from semples_plugin.utils.text import reason

_SHOWN = 3  # files that are named where many are missing
_IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        status: "installed", "found", "missing" or "wrong".
        text: what, and what to do about it.
        fails: whether training could not begin.
    """

    status: str
    text: str
    fails: bool = False


class DataCheck:
    """The check of one data set.

    Args:
        data: what the host needs of it.
        checkout: the host's.
        place: fills the placeholders of a path, and makes it absolute.
        has_root: whether the data is anywhere; where it isn't, the checkout's own lists and labels are looked at.
    """

    def __init__(self, data: DataSet, checkout: Path, place: Callable[[str], Path], has_root: bool = True) -> None:
        self.data, self.checkout, self.place, self.has_root = data, checkout, place, has_root
        self.files: Callable[[str], frozenset[str]] = cache(_files)  # folders of 80,000 images are read once
        self.keys: dict[str, Callable[[str], bool] | None] = {}  # whether an image has a label, by label file

    def findings(self) -> Iterator[Finding]:
        """Folders, label files and lists, in this order."""
        labels = dict.fromkeys(item.labels for item in self.data.lists if item.labels)
        yield from (self._folder(folder) for folder in self.data.folders if self._can_see(folder.path))
        yield from (self._labels(item) for item in labels if self._can_see(item.path))
        for images in self.data.lists:
            if self._can_see(images.path):
                yield from self._list(images)

    def _can_see(self, path: str) -> bool:
        return self.has_root or not path.startswith("{")

    def _folder(self, folder: Folder) -> Finding:
        path = self.place(folder.path)
        if not path.is_dir():
            note = "optional, for evaluation alone: " if folder.optional else ""
            return Finding("missing", f"{path} ({note}{folder.source})", not folder.optional)
        count = sum(name.lower().endswith(_IMAGES) for name in self.files(str(path)))
        whole = "" if count >= folder.whole else f"; {self.data.title} has {folder.whole:,}"
        return Finding("found", f"{path}: {count:,} files{whole}")

    def _labels(self, labels: Labels) -> Finding:
        path = self.place(labels.path)
        if not path.is_file():
            return Finding("missing", f"{path} ({labels.how})", not labels.made)
        try:
            count, columns, self.keys[labels.path] = _read_labels(path, labels)
        except (OSError, ValueError) as error:
            return Finding("wrong", reason(error), True)
        expected = self._columns(labels)
        if columns != expected:
            return Finding("wrong", f"{path}: labels of {columns} columns, expected {expected} ({labels.how})", True)
        return Finding("found", f"{path}: labels of {count:,} images, {columns} columns")

    def _columns(self, labels: Labels) -> int:
        """Columns that the checkout's own code takes."""
        file, pattern = labels.columns_in
        source = self.checkout / file
        match = re.search(pattern, source.read_text(encoding="utf-8", errors="replace")) if source.is_file() else None
        return int(match[1]) if file and match else labels.columns

    def _list(self, images: ImageList) -> Iterator[Finding]:
        path = self.place(images.path)
        try:
            entries = _entries(path, images)
        except FileNotFoundError:
            yield Finding("missing", f"{path}, the list of {images.use}", True)
            return
        except (OSError, ValueError) as error:
            yield Finding("wrong", reason(error), True)
            return
        of_list = f"{len(entries):,} of {path}"
        problems = [*self._files_of(images, entries, of_list), *self._labels_of(images.labels, entries, of_list)]
        yield from problems
        if not problems:
            files = [what for what, there in (("image", images.image), ("mask", images.mask)) if there]
            seen = [*(files if self.has_root else []), *(["label"] if self._has_label(images.labels) else [])]
            each = f", each with {', '.join(seen)}" if seen else ""
            yield Finding("found", f"{path}: {len(entries):,} images for {images.use}{each}")

    def _files_of(self, images: ImageList, entries: list[dict[str, str]], of_list: str) -> Iterator[Finding]:
        """What a list names and isn't there."""
        for what, template in (("images", images.image), ("masks", images.mask)):
            lost = self._lost(template, entries) if template and self.has_root else []
            if lost:
                hint = f"; {self.data.hint}" if self.data.hint and what == "images" else ""
                yield Finding("missing", f"{what} for {len(lost):,} of the {of_list}: {_shown_files(lost)}{hint}", True)

    def _has_label(self, labels: Labels | None) -> Callable[[str], bool] | None:
        return self.keys.get(labels.path) if labels else None

    def _labels_of(self, labels: Labels | None, entries: list[dict[str, str]], of_list: str) -> Iterator[Finding]:
        """Names of a list without a label; a file that could not be read has been told."""
        has_label = self._has_label(labels)
        if not labels or not has_label:
            return
        path = self.place(labels.path)
        if labels.keys == "row":
            if not has_label(str(len(entries))):
                text = f"{path} has not one row for each of the {of_list}: delete it; {labels.how}"
                yield Finding("wrong", text, True)
            return
        lost = [entry["name"] for entry in entries if not has_label(entry["name"])]
        if lost:
            yield Finding("missing", f"labels for {len(lost):,} of the {of_list}: {_shown(lost)} in {path}", True)

    def _lost(self, template: str, entries: list[dict[str, str]]) -> list[str]:
        """Paths of files that aren't there."""
        root, _, rest = template.partition("/")  # a folder of the user's may have braces in its name
        base = str(self.place(root))
        lost = []
        for entry in entries:
            path = f"{base}/{rest.format(**entry)}"
            folder, _, name = path.rpartition("/")
            if name not in self.files(folder):
                lost.append(path)
        return lost


def _files(folder: str) -> frozenset[str]:
    """Names of the files in a folder; links that lead nowhere are none."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(e.name for e in entries if not e.is_symlink() or Path(e.path).exists())
    except OSError:
        return frozenset()


def _entries(path: Path, images: ImageList) -> list[dict[str, str]]:
    """What the host makes of each line of a list, for the placeholders of `ImageList`."""
    if path.suffix == ".json":
        return _coco_entries(path)
    entries = []
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words:
            continue
        name = line.strip()
        if "{first}" in images.image:
            if len(words) != 2:
                raise ValueError(
                    f"{path}, line {number}: expected an image and a mask, such as /JPEGImages/2007_000032.jpg "
                    f"/SegmentationClassAug/2007_000032.png, got {line[:80]!r}"
                )
            name = words[0].rpartition("/")[2].partition(".")[0]
        entries.append({"name": name, "first": words[0][1:], "second": words[-1][1:]})
    if not entries:
        raise ValueError(f"{path} names no images")
    return entries


def _coco_entries(path: Path) -> list[dict[str, str]]:
    """Images of COCO's instances; of its 150 MB and more only their list is parsed."""
    try:
        text = path.read_text(encoding="utf-8").rstrip()
        start = re.search(r'"images"\s*:\s*(?=\[)', text)
        if start is None or not text.endswith("}"):
            raise ValueError("it is cut off, or is something else")
        images, _ = json.JSONDecoder().raw_decode(text, start.end())
        entries = [{"name": str(image["id"]), "first": image["file_name"]} for image in images]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected COCO's instances in JSON, with a list of images ({reason(error)})"
        ) from error
    if not entries:
        raise ValueError(f"{path} names no images")
    return entries


def _read_labels(path: Path, labels: Labels) -> tuple[int, int, Callable[[str], bool]]:
    """Images and columns of a label file, and whether it has a name; for rows, whether it has so many."""
    import numpy as np

    from semples_plugin.utils.safe_pickle import read_pickle, read_pickled

    if labels.keys == "row":
        try:
            rows = np.load(path, allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(f"{path} is damaged, or no array ({reason(error)})") from error
        if rows.ndim != 2:
            raise ValueError(f"{path}: expected an array [images, {labels.columns}], got {list(rows.shape)}")
        return len(rows), rows.shape[1], lambda count: count == str(len(rows))
    content = read_pickle(path) if path.suffix == ".pkl" else read_pickled(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a dictionary of image names and labels, got {type(content).__name__}")
    wants = int if labels.keys == "integer" else str
    for key in content:
        if not isinstance(key, wants):
            expected = "integers as keys, such as 2007000032 (semples labels --keys integer makes such a file)"
            if wants is str:
                expected = "names as keys, such as '2007_000032' (semples labels makes such a file)"
            raise ValueError(f"{path}: expected {expected}, got {key!r:.40}")
    return len(content), _columns_of(path, content.values()), _finder(content, labels.keys)


def _columns_of(path: Path, values: Iterable[Any]) -> int:
    import numpy as np

    try:
        labels = np.stack([np.asarray(value) for value in values])
    except ValueError:
        raise ValueError(f"{path}: expected labels of one length, got several") from None
    if labels.ndim != 2 or labels.dtype.kind not in "fiub" or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{path}: expected multi-hot labels of 0 and 1, got {labels.dtype} {list(labels.shape)[1:]}")
    return labels.shape[1]


def _finder(content: dict[Any, Any], keys: str) -> Callable[[str], bool]:
    """Looks an image up as the host does."""
    if keys == "integer":
        return lambda name: name.replace("_", "").isdecimal() and int(name.replace("_", "")) in content
    if keys == "name or file":
        return lambda name: name in content or f"{name}.jpg" in content
    return lambda name: name in content


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _shown_files(paths: list[str]) -> str:
    """The first of them, in the folder of the first one."""
    folder = paths[0].rpartition("/")[0]
    return f"{_shown([path.removeprefix(f'{folder}/') for path in paths])} in {folder}"
