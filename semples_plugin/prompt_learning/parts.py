"""Parts of a folder: features in half precision, which grow batch by batch, and outlive a kill.

A part is what one rank's walk wrote, two files: `NAME.bin`, rows `[2, D]` of float16, v_b and v_f of a pair at unit
length; and `NAME.jsonl`, a line on what the features depend on, then a line for each batch: its digest, its rows, and a
digest of both. The line follows the rows, so that a kill costs the batch that it cuts short, and no other.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from semples_plugin.utils.distributed import copy_file, gather, get_rank, world_size

PART_PREFIX, DATA, JOURNAL = "features.part-", ".bin", ".jsonl"

PART_STRIDE = 2**40
"""Row r of a folder's part k is numbered k * PART_STRIDE + r."""

_ROW_TYPE = np.dtype("<f2")
Rows = NDArray[np.int64]
CheckHeader = Callable[[dict[str, Any]], None]


class DamagedPartError(Exception):
    """A part that no kill left so, with the journal's name."""


class PartFolder:
    """The parts of a folder: those of earlier walks to read, and one to write.

    Args:
        path: of the folder.
        header: what features depend on, ready for `json.dumps`.
        width: D, of the features.

    Attributes:
        encoded: the first row, see `PART_STRIDE`, of each batch that earlier walks left, by the batch's digest.
        lost: how many batches they had begun to write when they ended.
        leads: whether this rank is the first of those that share the folder; known after `share`.
    """

    def __init__(self, path: Path, header: dict[str, Any], width: int) -> None:
        self.path = path
        self.encoded: dict[str, int] = {}
        self.lost = 0
        self.leads = True
        self._header = header
        self._width = width
        self._names: list[str] = []  # of parts, in the order of their numbers
        self._writer: PartWriter | None = None

    def read(self, check_header: CheckHeader) -> dict[str, int]:
        """How many rows of each part are whole; fills `encoded` and `lost`.

        Args:
            check_header: raises where features are none of this run's.

        Raises:
            DamagedPartError: where anything but a part's end is damaged.
        """
        whole: dict[str, int] = {}
        for journal in sorted(self.path.glob(f"{PART_PREFIX}*{JOURNAL}")):
            data = journal.with_suffix(DATA)
            content = read_part(data, self._width, check_header)
            start = len(self._names) * PART_STRIDE
            self.encoded |= {digest: start + first for digest, first in content.batches.items()}
            self.lost += content.lost
            self._names.append(data.name)
            whole[data.name] = content.rows
        return whole

    def add(self, digest: str, foregrounds: Tensor | None, backgrounds: Tensor) -> int:
        """Writes v_f and v_b of a batch `[P, D]`, and returns its first row, see `PART_STRIDE`."""
        writer = self._open()
        return self._names.index(writer.path.name) * PART_STRIDE + writer.add(digest, foregrounds, backgrounds)

    def close(self) -> None:
        """Ends the part that this rank writes."""
        if self._writer is not None:
            self._writer.close()

    def share(self, rows: array[int]) -> tuple[dict[str, int], Rows]:
        """Brings the rows of all ranks into every rank's folder. Collective.

        Ranks with the same folder find them there; those of another machine get them from rank to rank.

        Args:
            rows: of this rank's pairs.

        Returns:
            The parts that have them, by name, with the number of rows up to the last one that is used; and the rows of
            all ranks' pairs, numbered by these parts.
        """
        own = self._open().path.name  # by which the others see whether they share this folder
        self.close()
        parts, numbered = _number_parts(gather((self._names, np.array(rows, np.int64))))
        if world_size() > 1:
            self._send([*parts], gather(own))
        return parts, numbered

    def remove(self, keep: set[str]) -> None:
        """Removes all parts but some."""
        for path in [*self.path.glob(f"{PART_PREFIX}*")]:
            if path.suffix in (DATA, JOURNAL) and path.with_suffix(DATA).name not in keep and not path.is_dir():
                path.unlink(missing_ok=True)  # another rank may have removed it meanwhile

    def _open(self) -> PartWriter:
        if self._writer is None:
            name = f"{PART_PREFIX}{get_rank()}-{time.time_ns()}{DATA}"
            self._writer = PartWriter(self.path / name, self._header)
            self._names.append(name)
        return self._writer

    def _send(self, parts: list[str], own: list[str]) -> None:
        """Sends files to where they are missing; `own` are the parts that the ranks have written themselves."""
        self.leads = [(self.path / name).exists() for name in own].index(True) == get_rank()
        names = [name for part in parts for name in (part, str(Path(part).with_suffix(JOURNAL)))]
        sizes = {name: _size_of(self.path / name) for name in names}
        for name, of_ranks in zip(names, zip(*gather([sizes[name] for name in names]), strict=True), strict=True):
            size = max(of_ranks)
            if min(of_ranks) < size:
                write = self.leads and sizes[name] < size
                copy_file(self.path / name, size, of_ranks.index(size), write)


def _number_parts(of_ranks: list[tuple[list[str], Rows]]) -> tuple[dict[str, int], Rows]:
    """Parts that are in use, with their numbers of rows, and all ranks' rows, numbered by these parts."""
    parts: dict[str, int] = {}
    for names, rows in of_ranks:
        part, row = np.divmod(rows, PART_STRIDE)
        for k in np.unique(part).tolist():
            parts[names[k]] = max(parts.get(names[k], 0), int(row[part == k].max()) + 1)
    numbers = {name: number for number, name in enumerate(parts)}
    numbered = []
    for names, rows in of_ranks:
        part, row = np.divmod(rows, PART_STRIDE)
        number_of = np.array([numbers.get(name, -1) for name in names], np.int64)
        numbered.append(number_of[part] * PART_STRIDE + row)
    return parts, np.concatenate(numbered)


def _size_of(path: Path) -> int:
    """In bytes; -1 for a file that isn't there."""
    return path.stat().st_size if path.is_file() else -1


class PartWriter:
    """Writes a new part, batch by batch.

    Args:
        path: of its `.bin`, which doesn't exist yet.
        header: what its features depend on, ready for `json.dumps`.

    Raises:
        OSError: as all methods do, where the disk is full, with the file's name.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.rows = 0
        with _naming(path):
            self._data: IO[bytes] = path.open("xb")
            self._journal: IO[bytes] = path.with_suffix(JOURNAL).open("xb")
        self._write_line(header, b"")

    def add(self, batch: str, foregrounds: Tensor | None, backgrounds: Tensor) -> int:
        """Writes a batch's v_f and v_b `[P, D]` by its digest, and returns the first of its rows."""
        halves = [backgrounds, torch.zeros_like(backgrounds) if foregrounds is None else foregrounds]
        # Cosines are all that is read of them, and lengths that float16 can't hold are no harm so.
        unit = [F.normalize(half.detach().float(), dim=1).half().cpu() for half in halves]
        data = torch.stack(unit, dim=1).numpy().astype(_ROW_TYPE, copy=False).tobytes()
        first = self.rows
        with _naming(self.path):
            self._data.write(data)
            self._data.flush()
        self.rows += len(backgrounds)
        self._write_line({"batch": batch, "first": first, "pairs": len(backgrounds)}, data)
        return first

    def close(self) -> None:
        """Waits until the disk has everything."""
        for file in (self._data, self._journal):
            with _naming(self.path):
                if not file.closed:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()

    def _write_line(self, content: dict[str, Any], data: bytes) -> None:
        line = json.dumps({"digest": _digest_of(content, data), "content": content})
        with _naming(self.path):
            self._journal.write(f"{line}\n".encode())
            self._journal.flush()


class PartContent(NamedTuple):
    """What is whole of a part: the first row of each batch by the batch's digest, and how far rows go.

    `lost` is the number of batches at its end that were cut short.
    """

    batches: dict[str, int]
    rows: int
    lost: int


def read_part(path: Path, width: int, check_header: CheckHeader) -> PartContent:
    """Reads a part once, batch by batch, and compares all digests.

    Args:
        path: of its `.bin`; one that is missing has lost all batches.
        width: D.
        check_header: raises where the features are none of this run's.

    Raises:
        DamagedPartError: where anything but its end is damaged; a kill or a power cut damages the end alone.
    """
    journal_path = path.with_suffix(JOURNAL)
    try:
        with journal_path.open("rb") as journal:
            line = journal.readline()
            header = _parse_line(line, lambda _: b"") if line.endswith(b"\n") else None
    except (OSError, ValueError) as error:
        raise DamagedPartError(journal_path.name) from error
    if header is None:  # killed before the first batch
        return PartContent({}, 0, 0)
    check_header(header)
    try:
        with journal_path.open("rb") as journal:
            journal.readline()
            if not path.exists():
                return PartContent({}, 0, lost=sum(1 for _ in journal))
            with path.open("rb") as data:
                return _read_batches(journal, data, 2 * width * _ROW_TYPE.itemsize)
    except (OSError, ValueError) as error:
        raise DamagedPartError(journal_path.name) from error


def _read_batches(journal: IO[bytes], data: IO[bytes], row_bytes: int) -> PartContent:
    batches: dict[str, int] = {}
    rows = lost = 0

    def rows_of(block: dict[str, Any]) -> bytes:
        data.seek(block["first"] * row_bytes)
        return data.read(block["pairs"] * row_bytes)

    for line in journal:
        try:
            block = _parse_line(line, rows_of)
        except ValueError:
            lost += 1
            continue
        if lost:
            raise ValueError("a batch before the last one is damaged")
        batches[block["batch"]] = block["first"]
        rows = block["first"] + block["pairs"]
    return PartContent(batches, rows, lost)


def _parse_line(line: bytes, data_of: Callable[[dict[str, Any]], bytes]) -> dict[str, Any]:
    """The content of a journal's line; a ValueError unless it and its data are whole, and numbers."""
    try:
        written = json.loads(line)
        content: dict[str, Any] = written["content"]
        data = data_of(content)
        is_whole = written["digest"] == _digest_of(content, data) and line.endswith(b"\n")
    except (KeyError, TypeError, OSError, OverflowError) as error:
        raise ValueError(f"no line of a journal: {line!r:.80}") from error
    if not is_whole or not np.isfinite(np.frombuffer(data, _ROW_TYPE)).all():
        raise ValueError(f"a line of a journal and its data differ: {line!r:.80}")
    return content


def _digest_of(content: dict[str, Any], data: bytes) -> str:
    sha256 = hashlib.sha256(json.dumps(content).encode())
    sha256.update(data)
    return sha256.hexdigest()[:16]


def map_part(path: Path, rows: int, width: int) -> NDArray[np.float16]:
    """The first rows of a part `[rows, 2, D]`, of which the system reads what is looked at."""
    try:
        return np.asarray(np.memmap(path, _ROW_TYPE, "r", shape=(rows, 2, width)))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} was removed while this run used it: does another one have the same work_dir? Each wants its own"
        ) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives the error of a full disk the name of the file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise type(error)(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
