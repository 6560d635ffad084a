"""What the ranks of torch.distributed must know of each other; in one process no function here communicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


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
