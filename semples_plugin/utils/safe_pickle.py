"""Pickles as WSSS code bases keep labels, CAMs and prompts in them, read as data and never as code.

A pickle can refer to one thing many times over, and so stand for far more than it holds: what is read is counted, and
arrays are made only then.
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
_BFLOAT16 = "bfloat16"  # which numpy doesn't have
_TIMES = 4  # as large as its file may be what it stands for; some hosts name the same maps twice


def read_pickled(path: str | Path) -> Any:
    """What `np.load(path, allow_pickle=True).item()` gives, of numbers, strings, containers, arrays and tensors alone.

    Returns:
        Mostly a dictionary; tensors come back as arrays.

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
            found = _DataUnpickler(file).load()
            if isinstance(found, _Array) and found.shape == () and isinstance(found.data, list):
                (found,) = found.data  # how np.save wraps a dictionary
            return _Plain(path.stat().st_size).of(found)
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(f"{path} is damaged, or holds more than data: {reason(error)}") from error


def read_saved(path: str | Path) -> Any:
    """What `torch.load(path, weights_only=True)` gives, as `read_pickled` gives it.

    Raises:
        OSError: where the file can't be read.
        ValueError: where it is damaged, is none of `torch.save`, holds more than data, or would fill the memory.
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
                read = functools.cache(lambda key: archive.read(f"{folder}data/{key}"))
                return _Plain(size).of(_DataUnpickler(io.BytesIO(archive.read(name)), read).load())
        except Exception as error:
            raise ValueError(f"{path} is damaged, or holds more than data: {reason(error)}") from error


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array in an `.npy`, of which nothing else is read yet."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # later ones allow headers of any length, for tables, which no host keeps
        raise ValueError(f"expected version 1.0 of .npy, got {'.'.join(map(str, version))}")
    return np.lib.format.read_array_header_1_0(file)


class _Plain:
    """Stand-ins as what they stand for, as long as a file of `size` bytes may hold so much."""

    def __init__(self, size: int) -> None:
        self.left = _TIMES * size

    def of(self, found: Any, depth: int = 0) -> Any:
        if isinstance(found, _Numbers):
            self._take(found.cost())
            array = found.made()
            return array.item() if array.shape == () else array
        if not isinstance(found, (dict, list, tuple)):
            if not isinstance(found, (str, int, float, bytes, type(None))):
                raise ValueError(f"expected numbers and arrays, got a {type(found).__name__}")
            return found
        if depth == 2:  # no host's file is as deep
            raise ValueError("expected numbers and arrays in one dictionary, got containers in containers")
        self._take(len(found))
        if isinstance(found, dict):
            return {self.of(key, depth + 1): self.of(value, depth + 1) for key, value in found.items()}
        return type(found)(self.of(part, depth + 1) for part in found)

    def _take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("it names the same things again and again, and would fill the memory")


class _Dtype:
    """Stands in for numpy's dtype: a pickled dtype of objects would hand out addresses that the file chose."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def of_numpy(self) -> np.dtype[Any]:
        if self.code == _BFLOAT16:
            return np.dtype("<u2")
        if not _NUMBERS.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"expected numbers, got the type {shown(self.code)}")
        return np.dtype(self.order + self.code.lstrip("<>|="))


class _Numbers:
    """Stands in for an array."""

    def cost(self) -> int:
        """Bytes of the file."""
        raise NotImplementedError

    def made(self) -> NDArray[Any]:
        raise NotImplementedError


class _Array(_Numbers):
    """Of numpy: made by `_reconstruct`, then told its state."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def cost(self) -> int:
        return len(self.data)

    def made(self) -> NDArray[Any]:
        array = _array(self.data, self.dtype, self.shape, order="F" if self.fortran else "C")
        if array.nbytes < len(self.data):
            raise ValueError(f"an array of shape {shown(self.shape)} holds {len(self.data)} bytes")
        return array


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


class _Tensor(_Numbers):
    """Of torch: made by `_rebuild_tensor_v2`, on its storage."""

    def __init__(
        self, storage: _Storage | _Record, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def cost(self) -> int:
        return len(self.storage.data)

    def made(self) -> NDArray[Any]:
        record = self.storage.record()
        array = _array(record.data, record.dtype, self.size, self.offset, self.stride)
        if array.nbytes > len(record.data):
            raise ValueError(f"a tensor of size {shown(self.size)} holds {len(record.data)} bytes")
        return (array.astype(np.uint32) << 16).view(np.float32) if record.dtype.code == _BFLOAT16 else array


@dataclass
class _Record:
    """The numbers of tensors, as they lie in a file."""

    dtype: _Dtype
    data: bytes

    def record(self) -> _Record:
        return self


class _Storage:
    """The numbers of tensors, as they are in a pickle: four pickles that say what follows, one more, a count, they."""

    def __init__(self, data: bytes | str) -> None:
        self.data = data

    def record(self) -> _Record:
        file = io.BytesIO(_bytes(self.data))
        _, _, _, found, _ = (_DataUnpickler(file, lambda _: b"").load() for _ in range(5))
        count, found.data = int.from_bytes(file.read(8), "little"), file.read()
        if count * found.dtype.of_numpy().itemsize != len(found.data):
            raise ValueError(f"a storage of {count} numbers holds {len(found.data)} bytes")
        return found


def _array(
    data: bytes | str, dtype: _Dtype, shape: Any, offset: int = 0, stride: Any = None, order: Any = "C"
) -> NDArray[Any]:
    """On the file's own bytes; numpy raises where it would reach beyond them."""
    kind = dtype.of_numpy()
    strides = None if stride is None else tuple(kind.itemsize * step for step in stride)
    return np.ndarray(shape, kind, _bytes(data), kind.itemsize * offset, strides, order)


def _bytes(data: bytes | str) -> bytes:
    """Pickles of protocol 2 have no bytes."""
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
_STORAGES = {"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": _BFLOAT16, "Long": "i8", "Int": "i4",
             "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "b1"}  # fmt: skip


class _DataUnpickler(pickle._Unpickler):  # Python's own: the one in C reserves as much memory as the file asks for
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # reserves, too, and is in no host's file

    def __init__(self, file: Any, read: Callable[[str], bytes] | None = None) -> None:
        super().__init__(file)
        self.read_record = read

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (_Array, _Dtype, _State)):  # nothing else here has a state
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
        """Where the numbers of a tensor are: its type and its name among the records."""
        if self.read_record is None:
            raise pickle.UnpicklingError("it refers to something outside")
        _, dtype, key = pid[:3]
        return _Record(dtype, self.read_record(key))
