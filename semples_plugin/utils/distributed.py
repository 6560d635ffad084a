"""What the ranks of torch.distributed must know of each other; in one process no function here communicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from semples_plugin.utils.atomic_files import replacing

T = TypeVar("T")
_CHUNK_BYTES = 2**24  # that go from rank to rank at once


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Number of this rank; 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is rank 0, which writes files, warnings and progress bars."""
    return get_rank() == 0


def share_of_pairs(count: int, device: torch.device) -> Tensor | float:
    """The factor that makes a mean over this rank's pairs a part of the mean over all: R P_r / P.

    DDP averages the ranks' gradients; with this factor the average is the gradient of one process that has
    the whole batch, however the pairs are spread. Collective: every rank must call it in the same step.

    Args:
        count: number of pairs of this rank, P_r; may be 0.
        device: where the backend reduces tensors.

    Returns:
        1.0 in one process; else a float32 scalar on `device`, without waiting for the device.
    """
    if world_size() == 1:
        return 1.0
    total = torch.full((), float(count), device=device)
    dist.all_reduce(total)
    return world_size() * count / total.clamp(min=1.0)


def gather(value: T) -> list[T]:
    """The value of every rank, in the order of the ranks. Collective; values are pickled."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """The first rank's value, on every rank. Collective; the value is pickled."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_first(compute: Callable[[], T]) -> T:
    """Calls `compute` on the first rank alone; its result, or the exception that it raises, reaches every rank.

    Collective. An exception on one rank alone would leave the others waiting in their next exchange.
    """
    value: Any = None
    error: Exception | None = None
    if is_first():
        try:
            value = compute()
        except Exception as raised:
            error = raised
    value, error = from_first((value, error))
    if error is not None:
        raise error
    return value


def together(compute: Callable[[], T]) -> T:
    """Calls `compute` on every rank; where it raises on some, the first of these exceptions reaches every rank.

    Collective: nobody goes on before all have come here.
    """
    value: Any = None
    error: Exception | None = None
    try:
        value = compute()
    except Exception as raised:
        error = raised
    errors = [raised for raised in gather(error) if raised is not None]
    if errors:
        raise error or errors[0]
    result: T = value
    return result


def gather_rows(rows: Tensor) -> Tensor:
    """The rows `[P, ...]` of all ranks on the CPU, in the order of the ranks and the widest of their types.

    Collective; they go in chunks, as tensors, so that nothing as large as all of them is pickled.
    """
    if world_size() == 1:
        return rows
    kinds = gather((rows.dtype, len(rows)))
    dtype = kinds[0][0]
    for other, _ in kinds[1:]:
        dtype = torch.promote_types(dtype, other)
    gathered = torch.empty((sum(count for _, count in kinds), *rows.shape[1:]), dtype=dtype)
    start = 0
    for source, (_, count) in enumerate(kinds):
        own = gathered[start : start + count]
        if source == get_rank():
            own.copy_(rows)
        for chunk in own.split(max(_CHUNK_BYTES // max(own[:1].nbytes, 1), 1)):
            chunk.copy_(_broadcast(chunk, source))
        start += count
    return gathered


def copy_file(path: Path, size: int, source: int, write: bool) -> None:
    """Copies a file of one rank's into the folders of others, chunk by chunk. Collective.

    Args:
        path: of the file, in this rank's folder.
        size: in bytes.
        source: the rank that has it.
        write: whether this rank is to write it.

    Raises:
        OSError: on every rank, where one can't read or write.
    """
    chunks = _chunks_of(path, size, source)

    def receive() -> None:
        try:
            if write:
                with replacing(path) as temporary, temporary.open("wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
        finally:  # a rank that fails goes on taking part: the others would wait for it
            for _ in chunks:
                pass

    together(receive)


def _chunks_of(path: Path, size: int, source: int) -> Iterator[bytes]:
    """What `source` reads of its file, on every rank; an OSError on `source`, after the last chunk."""
    error: OSError | None = None
    for start in range(0, size, _CHUNK_BYTES):
        chunk = torch.zeros(min(_CHUNK_BYTES, size - start), dtype=torch.uint8)
        if get_rank() == source and error is None:
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    file.readinto(chunk.numpy().data)
            except OSError as raised:
                error = raised
        yield _broadcast(chunk, source).numpy().tobytes()
    if error is not None:
        raise error


def _broadcast(tensor: Tensor, source: int) -> Tensor:
    """One rank's tensor on the CPU of every rank, by the way of a GPU where the backend knows no other."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else tensor.device
    sent = tensor.to(device).contiguous()
    dist.broadcast(sent, source)
    return sent.to(tensor.device)
