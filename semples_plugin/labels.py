"""Image labels as WSSS code bases keep them: a pickled `.npy` dictionary, read as data and never as code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What numpy writes into a pickled dictionary of arrays, under its names before and after numpy 2.
_ALLOWED = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return super().find_class(module, name)


def load_image_labels(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Reads a `cls_labels.npy` of CLIMS and IRNet (keys 2007000032) or of WeakTr (keys "2007_000032").

    Returns:
        Image name to multi-hot labels `[K]`, float32; integer keys of ten digits come back as "2007_000032", twelve
        digits of COCO as they are.

    Raises:
        ValueError: where the file is damaged, holds more than arrays, or holds labels other than 0 and 1.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            read(file)
            found = _ArrayUnpickler(file).load()
        except (pickle.UnpicklingError, ValueError, EOFError, AttributeError, ImportError) as error:
            raise ValueError(f"{path} is damaged, or no dictionary of image labels: {error}") from error
    found = found.item() if isinstance(found, np.ndarray) and found.shape == () else found
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a dictionary of image names and labels, got {type(found).__name__}")
    labels = {_name(key): np.asarray(value, dtype=np.float32) for key, value in found.items()}
    for name, value in labels.items():
        if value.ndim != 1 or not np.isin(value, (0, 1)).all():
            raise ValueError(f"{path}: expected multi-hot labels [K] of 0 and 1 for {name}, got {value}")
    return labels


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key.removesuffix(".jpg")
    digits = str(int(key))
    return f"{digits[:4]}_{digits[4:]}" if len(digits) == 10 else digits
