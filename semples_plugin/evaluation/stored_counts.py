"""Pixel counts of many images in a file, so that memory doesn't grow by them."""

from __future__ import annotations

import contextlib
import mmap
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from semples_plugin.evaluation.iou import ImageCounts

_SIZES = struct.Struct("=4i")  # C, T, cams and empty of an image, before its arrays of int32


class StoredCounts(Mapping[str, ImageCounts]):
    """Image names to pixel counts, which lie in a temporary file and are read when they are asked for.

    The file has no name, or is removed by the system when the process ends, however it ends. It is mapped: pages that
    were read are the system's cache, which gives way to whoever needs memory. A pickle or a copy is a dictionary.

    Args:
        items: image names and counts, an image's last ones count; arrays of integers below 2^31.

    Raises:
        OSError: where the temporary folder can't be written into, or is full.
    """

    def __init__(self, items: Iterable[tuple[str, ImageCounts]]) -> None:
        self._starts: dict[str, int] = {}
        with _naming_the_folder(), tempfile.TemporaryFile() as file:
            end = 0
            for name, counts in items:
                self._starts[name] = end
                end += file.write(_to_bytes(counts))
            file.flush()
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if end else b""

    def __getitem__(self, name: str) -> ImageCounts:
        start = self._starts[name]
        size, thresholds, cams, empty = _SIZES.unpack_from(self._data, start)
        numbers = np.frombuffer(self._data, np.int32, size * (2 + 2 * thresholds), start + _SIZES.size)
        classes, annotated = numbers[: 2 * size].reshape(2, size)
        predicted, hits = numbers[2 * size :].reshape(2, size, thresholds)
        return ImageCounts(classes.astype(np.int64), annotated, predicted, hits, cams, empty)

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, name: object) -> bool:
        return name in self._starts

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (list(self.items()),)


class ChosenCounts(Mapping[str, ImageCounts]):
    """Some images of others' counts, which stay where they are.

    Args:
        counts: image names to pixel counts.
        names: those of the images, in their order.
    """

    def __init__(self, counts: Mapping[str, ImageCounts], names: Iterable[str]) -> None:
        self._counts, self._names = counts, dict.fromkeys(names)

    def __getitem__(self, name: str) -> ImageCounts:
        if name not in self._names:
            raise KeyError(name)
        return self._counts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _to_bytes(counts: ImageCounts) -> bytes:
    """An image's counts as `StoredCounts` reads them."""
    arrays = (counts.classes, counts.annotated, counts.predicted, counts.hits)
    sizes = _SIZES.pack(*counts.predicted.shape, counts.cams, counts.empty)
    return sizes + b"".join(array.astype(np.int32, copy=False).tobytes() for array in arrays)


@contextlib.contextmanager
def _naming_the_folder() -> Iterator[None]:
    """Gives the error of a full disk the name of the folder, and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:  # what the items come from has raised it
            raise
        message = f"{error.strerror}, where pixel counts of all images are kept; TMPDIR names another folder"
        raise type(error)(error.errno, message, tempfile.gettempdir()) from error
