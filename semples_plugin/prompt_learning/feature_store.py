"""Features of all pairs: in memory, or in half precision in the parts of a folder, which are mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semples_plugin.prompt_learning.parts import PART_STRIDE, Rows, map_part

CHUNK = 2048
"""Pairs that are read at once where all are looked at, one after the other."""


class Pairs(NamedTuple):
    """Some pairs: v_b `[B, D]`, v_f `[B, D]` or None, on the device, and their classes `[B]` on the CPU."""

    backgrounds: Tensor
    foregrounds: Tensor | None
    class_index: Tensor


class MemoryFeatures:
    """Features of all pairs of all ranks, in memory, as precise as they were encoded.

    Args:
        backgrounds: v_b `[P, D]`.
        foregrounds: v_f `[P, D]`; None where the host kept backgrounds alone.
        class_index: `[P]`, on the CPU, where a step looks for the classes that its pairs show.

    Attributes:
        digest: what tells them from others, in a folder alone; else empty.
    """

    digest = ""

    def __init__(self, backgrounds: Tensor, foregrounds: Tensor | None, class_index: Tensor) -> None:
        self.backgrounds, self.foregrounds, self.class_index = backgrounds, foregrounds, class_index.cpu()

    def __len__(self) -> int:
        return len(self.class_index)

    def to(self, device: torch.device) -> MemoryFeatures:
        """The same on a device, where all features stay."""
        foregrounds = None if self.foregrounds is None else self.foregrounds.to(device)
        return MemoryFeatures(self.backgrounds.to(device), foregrounds, self.class_index)

    def take(self, chosen: Tensor, foregrounds: bool = True) -> Pairs:
        """The pairs at positions `[B]`, on the CPU, without v_f where it isn't wanted."""
        rows = chosen.to(self.backgrounds.device, non_blocking=True)
        v_f = self.foregrounds[rows] if foregrounds and self.foregrounds is not None else None
        return Pairs(self.backgrounds[rows], v_f, self.class_index[chosen])

    def chunks(self) -> Iterator[Pairs]:
        """All pairs, `CHUNK` at a time."""
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            v_f = None if self.foregrounds is None else self.foregrounds[part]
            yield Pairs(self.backgrounds[part], v_f, self.class_index[part])

    def close(self) -> None:
        """Nothing is open."""


class StoredFeatures:
    """Features of all pairs of all ranks, in parts of a folder: no more of them is in memory than is asked for.

    Args:
        folder: of the parts.
        parts: their names and how many rows of each are known to be whole.
        width: D.
        rows: `[P]`, where each pair is, see `PART_STRIDE`.
        class_index: `[P]`.
        has_foregrounds: False where the host kept backgrounds alone.
        digest: of classes and features; None: it is computed, for which all rows are read.
    """

    def __init__(
        self,
        folder: Path,
        parts: list[tuple[str, int]],
        width: int,
        rows: Tensor,
        class_index: Tensor,
        has_foregrounds: bool,
        digest: str | None = None,
    ) -> None:
        self.parts, self.width, self.rows, self.class_index = parts, width, rows, class_index
        self.has_foregrounds = has_foregrounds
        self._device = torch.device("cpu")
        self._maps = [map_part(folder / name, count, width) for name, count in parts]
        self.digest = self._compute_digest() if digest is None else digest

    def __len__(self) -> int:
        return len(self.class_index)

    def to(self, device: torch.device) -> StoredFeatures:
        """Itself, whose `take` and `chunks` bring their pairs to a device from now on."""
        self._device = device
        return self

    def take(self, chosen: Tensor, foregrounds: bool = True) -> Pairs:
        """The pairs at positions `[B]`, on the CPU, in float32, without v_f where it isn't wanted."""
        features = torch.from_numpy(self._read(self.rows[chosen].numpy(), 1 + (foregrounds and self.has_foregrounds)))
        if self._device.type == "cuda":  # pinned, so that nobody waits for the copy
            features = features.pin_memory()
        features = features.to(self._device, non_blocking=True).float()
        v_f = features[:, 1] if features.shape[1] == 2 else None
        return Pairs(features[:, 0], v_f, self.class_index[chosen])

    def chunks(self) -> Iterator[Pairs]:
        """All pairs, `CHUNK` at a time."""
        for chosen in torch.arange(len(self)).split(CHUNK):
            yield self.take(chosen)

    def close(self) -> None:
        """Lets go of the files, so that they can be removed anywhere; nothing can be taken any more."""
        self._maps.clear()

    def _read(self, rows: Rows, halves: int) -> NDArray[np.float16]:
        """`[B, halves, D]`: v_b, or v_b and v_f."""
        part, row = np.divmod(rows, PART_STRIDE)
        found = np.empty((len(rows), halves, self.width), np.float16)
        for k in np.unique(part).tolist():
            own = part == k
            found[own] = self._maps[k][row[own], :halves]
        return found

    def _compute_digest(self) -> str:
        sha256 = hashlib.sha256(self.class_index.numpy().data)
        for chosen in torch.arange(len(self)).split(CHUNK):
            sha256.update(self._read(self.rows[chosen].numpy(), 1 + self.has_foregrounds).data)
        return sha256.hexdigest()[:16]


PairFeatures = MemoryFeatures | StoredFeatures
