"""Pickled `.npy` dictionaries, as WSSS code bases keep labels and CAMs, read as data and never as code."""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_NUMBERS = re.compile(r"[<>|=]?[fiub][1248]")


def read_pickled(path: str | Path) -> Any:
    """What `np.load(path, allow_pickle=True).item()` gives, of numbers, strings, containers, arrays and tensors alone.

    Returns:
        Mostly a dictionary; tensors come back as arrays.

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, is no pickled `.npy`, or holds more than data.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if not dtype.hasobject:
                raise ValueError(f"expected a dictionary, got an array of {dtype} {list(shape)}")
            return _plain(_DataUnpickler(file).load())
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} is damaged, or holds more than data: {error}") from error


def _plain(found: Any, depth: int = 0) -> Any:
    """Stand-ins, wherever they are in containers, as what they stand for."""
    if isinstance(found, _Array):
        return _plain(found.value, depth)
    if not isinstance(found, (dict, list, tuple)):
        return found
    if depth == 2:  # lists that name one another often fill any memory once they are written out
        raise ValueError("expected numbers and arrays in one dictionary, got containers in containers")
    if isinstance(found, dict):
        return {_plain(key, depth + 1): _plain(value, depth + 1) for key, value in found.items()}
    return type(found)(_plain(part, depth + 1) for part in found)


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
            self.value = _shaped(dtype.read(data), shape, "F" if fortran else "C")


def _shaped(flat: NDArray[Any], shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    if flat.size != math.prod(shape):
        raise ValueError(f"an array of shape {shape} holds {flat.size} numbers")
    return flat.reshape(shape, order=order)


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    return _shaped(dtype.read(data), shape, order)


def _number(dtype: _Dtype, data: bytes | str) -> Any:
    return dtype.read(data)[0].item()


def _storage(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> NDArray[Any]:
    import torch

    whole = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)  # its own name for this is deprecated
    if math.prod(size) > whole.numel():
        raise ValueError(f"a tensor of size {list(size)} holds {whole.numel()} numbers")
    if whole.dtype == torch.bfloat16:
        whole = whole.float()
    return whole.as_strided(size, stride, offset).numpy()


# What numpy, under its names before and after numpy 2, and torch write into a pickled dictionary.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): dict,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _number
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _DataUnpickler(pickle._Unpickler):  # Python's own: the one in C reserves as much memory as the file asks for
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # reserves, too, and is in no host's file

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (_Array, _Dtype)):  # nothing else here has a state
            raise pickle.UnpicklingError(f"it sets the state of a {type(self.stack[-2]).__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return _STAND_INS[module, name]
