"""Names of images: one spelling, whether it comes from a file, a list's line or a key of a label file.

A name has neither folder nor ending, nor COCO's `COCO_train2014_` before twelve digits: those digits name one image in
all of COCO. Label files with integers as keys mean VOC's names by ten digits and COCO's by all others.
"""

from __future__ import annotations

import operator
import re
from pathlib import Path, PurePath
from typing import Any

from semples_plugin.utils.atomic_files import read_lines

_ENDINGS = re.compile(r"(?<=.)(\.(bmp|gif|jpe?g|npy|npz|png|tiff?|webp))+$", re.IGNORECASE)  # other dots stay
_COCO_PREFIXES = ("COCO_train2014_", "COCO_val2014_")
_COCO_DIGITS = re.compile(r"[0-9]{12}")
_SHOWN = 100  # characters of a path in a message


def file_stem(path: str | PurePath) -> str:
    """What a file is called without folder, of either kind of slash, and ending, of an image, mask or CAM file.

    Raises:
        ValueError: where nothing is left, or control characters are.
    """
    stem = _ENDINGS.sub("", re.split(r"[/\\]", str(path))[-1])
    if not stem.strip(". ") or re.search(r"[\x00-\x1f\x7f]", stem):
        raise ValueError(f"expected the name of an image, got {str(path)[-_SHOWN:]!r}")
    return stem


def image_name(path: str | PurePath) -> str:
    """An image's name, from the path, file name, stem or name of the image, its mask or its CAMs.

    Raises:
        ValueError: where nothing is left, or control characters are.

    Examples:
        >>> image_name("JPEGImages/2007_000032.jpg"), image_name("COCO_train2014_000000000009.jpg")
        ('2007_000032', '000000000009')
    """
    stem = file_stem(path)
    for prefix in _COCO_PREFIXES:
        digits = stem.removeprefix(prefix)
        if _COCO_DIGITS.fullmatch(digits):
            return digits
    return stem


def file_stems(name: str) -> tuple[str, ...]:
    """The stems that files of an image may have: its name and, before COCO's digits, the prefixes."""
    return (name, *(prefix + name for prefix in _COCO_PREFIXES if _COCO_DIGITS.fullmatch(name)))


def name_of_key(key: Any) -> str:
    """An image's name, from a key of a label file: a name, or an integer as CLIMS and IRNet have them.

    2007000032 is VOC's "2007_000032", for it has ten digits; 9 is COCO's "000000000009".

    Raises:
        TypeError: for a key that is neither.
        ValueError: for a negative integer, or a string that is no name.
    """
    if isinstance(key, str):
        return image_name(key)
    if isinstance(key, bool) or not hasattr(key, "__index__"):
        raise TypeError(f"expected image names or integers as keys, got {repr(key)[:_SHOWN]}")
    number = operator.index(key)
    if number < 0:
        raise ValueError(f"expected integers from 0 as keys, got {number}")
    digits = str(number)
    return f"{digits[:4]}_{digits[4:]}" if len(digits) == 10 else digits.zfill(12)


def key_of_name(name: str) -> int:
    """The integer that stands for an image in a label file of CLIMS or IRNet.

    Raises:
        ValueError: for a name that `name_of_key` would not make of it again.
    """
    digits = name.replace("_", "", 1)
    if not re.fullmatch("[0-9]{1,100}", digits) or name_of_key(int(digits)) != name:
        raise ValueError(
            f"{name[:_SHOWN]!r} is no number that hosts read back: integer keys need names like VOC's 2007_000032 or "
            "COCO's 000000000009; use names as keys"
        )
    return int(digits)


class ImageNames:
    """Names of images by their paths; two different paths never share one, for one would take the other's place."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    def of(self, path: str | PurePath) -> str:
        """The name of a path, see `image_name`; a `ValueError` names both where another one has it already."""
        path = str(path).replace("\\", "/")
        name = image_name(path)
        first = self._paths.setdefault(name, path)
        if first != path:
            raise ValueError(
                f"{first[-_SHOWN:]} and {path[-_SHOWN:]} would both be called {name[:_SHOWN]!r}: names of images have "
                "to differ in more than folder, ending and COCO's prefix"
            )
        return name


def read_image_paths(path: str | Path) -> list[str]:
    """Paths or names of images in a list file, one for each line that isn't empty.

    A line is one path, which may hold spaces, or FMA-WSSS's and IRNet's columns `/JPEGImages/a.jpg /Masks/a.png`: those
    of which each has the ending of an image or CAM file; the first is the image.

    Raises:
        OSError: where it can't be read.
        ValueError: where it is no text in UTF-8, names no images, or two different lines name an image alike.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no list {path} of image names") from None
    names, paths = ImageNames(), list[str]()
    other_columns: dict[str, str] = {}  # by image name
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.split()
        image, *others = parts if all(map(_ENDINGS.search, parts)) else [line.strip()]
        try:
            name, other = names.of(image), " ".join(others).replace("\\", "/")
            first = other_columns.setdefault(name, other) if other else other
            if first != other:
                raise ValueError(
                    f"{image[-_SHOWN:]} stands beside {first[-_SHOWN:]} and {other[-_SHOWN:]}; a file whose name has "
                    "spaces is listed without its ending"
                )
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        paths.append(image)
    if not paths:
        raise ValueError(f"{path} names no images")
    return paths
