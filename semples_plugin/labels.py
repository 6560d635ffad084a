"""Image labels as WSSS code bases keep them: a pickled `.npy` dictionary, read as data and never as code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semples_plugin.checks import check_names
from semples_plugin.class_names import CLASS_NAMES
from semples_plugin.pickled import read_pickled


def load_image_labels(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Reads a `cls_labels.npy` of CLIMS and IRNet (keys 2007000032) or of WeakTr (keys "2007_000032").

    Returns:
        Image name to multi-hot labels `[K]`, float32; integer keys of ten digits come back as "2007_000032", twelve
        digits of COCO as they are.

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, holds more than arrays, or holds labels other than 0 and 1.
    """
    found = read_pickled(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a dictionary of image names and labels, got {type(found).__name__}")
    try:
        return {_name(key): _multi_hot(key, value) for key, value in found.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no dictionary of image labels: {error}") from error


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, in label order; empty lines don't count. Or a preset's, by its name."""
    if not Path(path).exists():
        if str(path) in CLASS_NAMES:
            return CLASS_NAMES[str(path)]
        raise FileNotFoundError(
            f"there is no {path}: expected a text file with one class name a line, or a preset's name "
            f"({', '.join(CLASS_NAMES)})"
        )
    text = Path(path).read_text(encoding="utf-8-sig")  # spreadsheets and Windows' editors begin with a mark
    try:
        return check_names([line.strip() for line in text.splitlines() if line.strip()])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _multi_hot(key: Any, value: Any) -> NDArray[np.float32]:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "fiub" or not np.isin(array, (0, 1)).all():
        raise ValueError(f"expected multi-hot labels [K] of 0 and 1 for {key}, got {value}")
    return array.astype(np.float32)


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key.removesuffix(".jpg")
    digits = str(int(key))
    return f"{digits[:4]}_{digits[4:]}" if len(digits) == 10 else digits
