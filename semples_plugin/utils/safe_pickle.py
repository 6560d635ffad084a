"""Reads pickles, in which WSSS code bases keep labels, CAMs and prompts, as data and never as code.

The unpickler makes stand-ins for arrays and tensors. A pickle can refer to the same array many times, and so
describe far more data than the file holds: `_Converter` counts the bytes that it names before it makes the
arrays.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semples_plugin.utils.text import reason, shown

_NUMBERS = re.compile(r"[<>|=]?[fiub][1248]")
_BFLOAT16 = "bfloat16"  # a type that numpy doesn't have
_MAX_RATIO = 4  # bytes that a file may name, per byte that it holds: some hosts name the same maps twice


def read_pickled(path: str | Path) -> Any:
    """What `np.load(path, allow_pickle=True).item()` returns, for numbers, strings, containers, arrays and tensors.

    Returns:
        Mostly a dictionary; tensors become arrays.

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, is no pickled `.npy`, holds more than data, or would fill the memory.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            shape, _, dtype = read_header(file)
            if not dtype.hasobject:
                raise ValueError(f"expected a dictionary, got an array of {dtype} {list(shape)}")
            content = _DataUnpickler(file).load()
            if isinstance(content, _Array) and content.shape == () and isinstance(content.data, list):
                (content,) = content.data  # how np.save wraps a dictionary
            return _Converter(path.stat().st_size).convert(content)
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} is damaged, or holds more than data: {reason(error)}") from error


def read_pickle(path: str | Path) -> Any:
    """What `pickle.load` returns, for the same things in protocols up to 4, which is Python's own until 3.13.

    FMA-WSSS keeps its image labels so.

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, holds more than data, or would fill the memory.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            return _Converter(path.stat().st_size).convert(_DataUnpickler(file).load())
        except Exception as error:
            raise ValueError(f"{path} is damaged, or holds more than data: {reason(error)}") from error


def read_saved(path: str | Path) -> Any:
    """What `torch.load(path, weights_only=True)` returns, with arrays for tensors.

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, wasn't made by `torch.save`, holds more than data, or would fill the
            memory.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            size = path.stat().st_size
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    raise ValueError("it is compressed, which torch.save never does")
                (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
                folder = name.removesuffix("data.pkl")
                read_record = functools.cache(lambda key: archive.read(f"{folder}data/{key}"))
                content = _DataUnpickler(io.BytesIO(archive.read(name)), read_record).load()
                return _Converter(size).convert(content)
        except Exception as error:
            raise ValueError(f"{path} is damaged, or holds more than data: {reason(error)}") from error


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array in an `.npy`; leaves the file at the array's first byte."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # later versions, for tables, allow headers of any length
        raise ValueError(f"expected version 1.0 of .npy, got {'.'.join(map(str, version))}")
    return np.lib.format.read_array_header_1_0(file)


class _Converter:
    """Turns stand-ins into arrays, as long as they name no more than `_MAX_RATIO` times the bytes of the file."""

    def __init__(self, file_size: int) -> None:
        self.left = _MAX_RATIO * file_size

    def convert(self, value: Any, depth: int = 0) -> Any:
        """Numbers, arrays and strings, in at most two levels of containers."""
        if isinstance(value, _Numbers):
            self._count(value.size_in_file())
            array = value.to_array()
            return array.item() if array.shape == () else array
        if isinstance(value, (str, int, float, bytes, type(None))):
            return value
        if not isinstance(value, (dict, list, tuple)):
            raise ValueError(f"expected numbers and arrays, got a {type(value).__name__}")
        if depth == 2:  # no host's file is as deep
            raise ValueError("expected numbers and arrays in one dictionary, got containers in containers")
        self._count(len(value))
        if isinstance(value, dict):
            return {self.convert(key, depth + 1): self.convert(item, depth + 1) for key, item in value.items()}
        return type(value)(self.convert(item, depth + 1) for item in value)

    def _count(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError("it names the same things again and again, and would fill the memory")


class _Dtype:
    """Stands in for numpy's dtype: with one of objects, numbers of the file would be taken for addresses."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype[Any]:
        if self.code == _BFLOAT16:
            return np.dtype("<u2")
        if not _NUMBERS.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"expected numbers, got the type {shown(self.code)}")
        return np.dtype(self.order + self.code.lstrip("<>|="))


class _Numbers:
    """Stands in for an array."""

    def size_in_file(self) -> int:
        """How many bytes of the file hold its numbers."""
        raise NotImplementedError

    def to_array(self) -> NDArray[Any]:
        """The array; a ValueError where shape and bytes don't fit."""
        raise NotImplementedError


class _Array(_Numbers):
    """An array of numpy's: made by `_reconstruct`, which sets its state afterwards."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def size_in_file(self) -> int:
        return len(self.data)

    def to_array(self) -> NDArray[Any]:
        array = _array(self.data, self.dtype, self.shape, order="F" if self.fortran else "C")
        if array.nbytes < len(self.data):
            raise ValueError(f"an array of shape {shown(self.shape)} holds {len(self.data)} bytes")
        return array


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


class _Tensor(_Numbers):
    """A tensor of torch's: made by `_rebuild_tensor_v2`, on its storage."""

    def __init__(
        self, storage: _Storage | _Record, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def size_in_file(self) -> int:
        return len(self.storage.data)

    def to_array(self) -> NDArray[Any]:
        record = self.storage.record()
        array = _array(record.data, record.dtype, self.size, self.offset, self.stride)
        if array.nbytes > len(record.data):
            raise ValueError(f"a tensor of size {shown(self.size)} holds {len(record.data)} bytes")
        if record.dtype.code == _BFLOAT16:  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


@dataclass
class _Record:
    """The numbers of tensors, as a file of `torch.save` holds them: a type and its bytes."""

    dtype: _Dtype
    data: bytes

    def record(self) -> _Record:
        return self


class _Storage:
    """The numbers of tensors, as a pickle holds them: in the older format of `torch.save`.

    That is a magic number, a version, the system's properties, a record and the keys, each a pickle of its
    own; then a count in 8 bytes, and the numbers.
    """

    def __init__(self, data: bytes | str) -> None:
        self.data = data

    def record(self) -> _Record:
        file = io.BytesIO(_bytes(self.data))
        _magic, _version, _system, record, _keys = (_DataUnpickler(file, lambda _: b"").load() for _ in range(5))
        count = int.from_bytes(file.read(8), "little")
        data = file.read()
        if count * record.dtype.to_numpy().itemsize != len(data):
            raise ValueError(f"a storage of {count} numbers holds {len(data)} bytes")
        return _Record(record.dtype, data)


def _array(
    data: bytes | str, dtype: _Dtype, shape: Any, offset: int = 0, stride: Any = None, order: Any = "C"
) -> NDArray[Any]:
    """An array on the file's own bytes; numpy raises a ValueError where it would reach beyond them."""
    numbers = dtype.to_numpy()
    strides = None if stride is None else tuple(numbers.itemsize * step for step in stride)
    return np.ndarray(shape, numbers, _bytes(data), numbers.itemsize * offset, strides, order)


def _bytes(data: bytes | str) -> bytes:
    """The bytes that a pickle of protocol 2, which knows none, holds as a string."""
    return data.encode("latin1") if isinstance(data, str) else data


class _State(dict[Any, Any]):
    """Stands in for an ordered dictionary, in whose state torch keeps the versions of modules."""

    def __setstate__(self, _: Any) -> None:
        pass


# What numpy, under its names before and after numpy 2, and torch write into a pickled dictionary.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): lambda text, _: text,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("collections", "OrderedDict"): _State,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray", "scalar"] = lambda dtype, data: _from_buffer(data, dtype, (), "C")
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer
_STORAGES = {  # torch's names of types to numpy's
    "Double": "f8",
    "Float": "f4",
    "Half": "f2",
    "BFloat16": _BFLOAT16,
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "b1",
}


class _DataUnpickler(pickle._Unpickler):
    """Unpickles numbers, strings, containers and the stand-ins above; raises an error for anything else.

    It is built on the unpickler in Python, since that in C allocates as much memory as a file asks for.

    Args:
        file: opened for reading bytes.
        read_record: the bytes of a tensor by the name that `torch.save` gave them; None for a pickle without
            any.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # allocates as much as the file asks for, and is in no host's file

    def __init__(self, file: Any, read_record: Callable[[str], bytes] | None = None) -> None:
        super().__init__(file)
        self.read_record = read_record

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (_Array, _Dtype, _State)):  # other stand-ins have no state
            raise pickle.UnpicklingError(f"it sets the state of a {type(self.stack[-2]).__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.removesuffix("Storage") in _STORAGES:
            return _Dtype(_STORAGES[name.removesuffix("Storage")])
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {shown(f'{module}.{name}')}, which is no array")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> _Record:
        """The record that a tensor refers to by its type and name."""
        if self.read_record is None:
            raise pickle.UnpicklingError("it refers to something outside")
        _, dtype, key = pid[:3]
        return _Record(dtype, self.read_record(key))
