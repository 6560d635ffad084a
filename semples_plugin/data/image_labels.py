"""Image labels as WSSS code bases keep them: a pickled `.npy` dictionary, read as data and never as code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.class_names import CLASS_NAMES
from semples_plugin.data.image_names import name_of_key
from semples_plugin.utils.atomic_files import read_lines
from semples_plugin.utils.checks import check_names
from semples_plugin.utils.safe_pickle import read_pickled


def load_image_labels(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Reads a `cls_labels.npy` of CLIMS and IRNet (keys 2007000032) or of WeakTr (keys "2007_000032").

    Returns:
        Image name, see `semples_plugin.data.image_names`, to multi-hot labels `[K]`, float32; the integers
        2007000032 and 9 come back as VOC's "2007_000032" and COCO's "000000000009".

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, holds more than arrays, holds labels other than 0 and 1 or of several lengths,
            or has two keys for one image.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:  # as CLIMS and IRNet keep them
        ...     stored = {2007000032: np.array([1.0, 0.0, 1.0], np.float32)}
        ...     np.save(f"{folder}/cls_labels.npy", np.array(stored, dtype=object))
        ...     load_image_labels(f"{folder}/cls_labels.npy")
        {'2007_000032': array([1., 0., 1.], dtype=float32)}
    """
    content = read_pickled(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of image names and labels, got {type(content).__name__}")
    keys: dict[str, Any] = {}
    labels: dict[str, NDArray[np.float32]] = {}
    try:
        for key, value in content.items():
            name = name_of_key(key)
            if name in keys:
                raise ValueError(f"the keys {keys[name]!r:.80} and {key!r:.80} both mean the image {name:.80}")
            keys[name], labels[name] = key, _multi_hot(key, value)
        if len({len(label) for label in labels.values()}) > 1:
            raise ValueError("expected labels of one length K, got several")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no dictionary of image labels: {error}") from error
    return labels


def classes_beside(source: str | Path) -> Path | None:
    """The `classes.txt` beside a folder of masks, or beside a table of labels; None where it doesn't exist."""
    path = Path(source).absolute().parent / "classes.txt"
    return path if path.is_file() else None


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Class names of a preset, by its name, or from a text file, one a line, in label order; empty lines don't count.

    A file that is called like a preset is given with its folder, `./voc`.

    Raises:
        FileNotFoundError: where it is neither a preset nor a file.
        ValueError: where the file is no text in UTF-8, or its names are no class names.
    """
    if str(path) in CLASS_NAMES:
        return CLASS_NAMES[str(path)]
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no {path}: expected a text file with one class name a line, or a preset's name "
            f"({', '.join(CLASS_NAMES)})"
        )
    lines = [line.strip() for line in read_lines(path)]
    try:
        return check_names([line for line in lines if line])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _multi_hot(key: Any, value: Any) -> NDArray[np.float32]:
    array, expected = np.asarray(value), f"expected multi-hot labels [K] of 0 and 1 for {key!r:.80}"
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"{expected}, got {array.dtype} {list(array.shape)!r:.40}")
    others = array[~np.isin(array, (0, 1))]
    if others.size:
        raise ValueError(f"{expected}, got {others[0]}")
    return array.astype(np.float32)
