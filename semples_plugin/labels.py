"""Image labels as WSSS code bases keep them: a pickled `.npy` dictionary, read as data and never as code."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semples_plugin.checks import check_names
from semples_plugin.presets import PRESETS, load_preset

_NUMBERS = re.compile(r"[<>|=]?[fiub][1248]")


class _Dtype:
    """Stands in for numpy's dtype: a pickled dtype of objects would hand out addresses that the file chose."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def read(self, data: bytes | str) -> NDArray[Any]:
        if not _NUMBERS.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"expected numbers, got the type {self.code!r}")
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, np.dtype(self.order + self.code.lstrip("<>|=")))


class _Array:
    """Stands in for numpy's ndarray while it is unpickled."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if shape == () and isinstance(data, list):  # how np.save wraps a dictionary
            (self.value,) = data
        else:
            flat = dtype.read(data)
            if flat.size != math.prod(shape):
                raise ValueError(f"an array of shape {shape} holds {flat.size} numbers")
            self.value = flat.reshape(shape, order="F" if fortran else "C")


def _number(dtype: _Dtype, data: bytes | str) -> Any:
    return dtype.read(data)[0].item()


# What numpy writes into a pickled dictionary of arrays, under its names before and after numpy 2.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _STAND_INS[_core, "_reconstruct"] = _Array
    _STAND_INS[_core, "scalar"] = _number


class _ArrayUnpickler(pickle._Unpickler):  # Python's own: the one in C reserves as much memory as the file asks for
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return _STAND_INS[module, name]


def load_image_labels(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """Reads a `cls_labels.npy` of CLIMS and IRNet (keys 2007000032) or of WeakTr (keys "2007_000032").

    Returns:
        Image name to multi-hot labels `[K]`, float32; integer keys of ten digits come back as "2007_000032", twelve
        digits of COCO as they are.

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, holds more than arrays, or holds labels other than 0 and 1.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            read(file)
            found = _ArrayUnpickler(file).load().value
            if not isinstance(found, dict):
                raise TypeError(f"expected image names and labels, got {type(found).__name__}")
            labels = {_name(key): _multi_hot(key, value) for key, value in found.items()}
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} is damaged, or no dictionary of image labels: {error}") from error
    return labels


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, in label order; empty lines don't count. Or a preset's, by its name."""
    if not Path(path).exists():
        if str(path) in PRESETS:
            return load_preset(str(path)).class_names
        raise FileNotFoundError(
            f"there is no {path}: expected a text file with one class name a line, or a preset ({', '.join(PRESETS)})"
        )
    text = Path(path).read_text(encoding="utf-8-sig")  # spreadsheets and Windows' editors begin with a mark
    try:
        return check_names([line.strip() for line in text.splitlines() if line.strip()])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _multi_hot(key: Any, value: Any) -> NDArray[np.float32]:
    value = value.value if isinstance(value, _Array) else value
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "fiub" or not np.isin(array, (0, 1)).all():
        raise ValueError(f"expected multi-hot labels [K] of 0 and 1 for {key}, got {value}")
    return array.astype(np.float32)


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key.removesuffix(".jpg")
    digits = str(int(key))
    return f"{digits[:4]}_{digits[4:]}" if len(digits) == 10 else digits
