"""Several processes that train one model: what each rank must know of the others. In one process all of it is free."""

from __future__ import annotations

from typing import TypeVar

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
    """Whether this is the rank that writes files and talks."""
    return get_rank() == 0


def share_of_pairs(count: int, device: torch.device) -> Tensor | float:
    """The factor that makes a mean over this rank's pairs a part of the mean over all: R P_r / P.

    DDP averages the ranks' gradients; with this factor the average is the gradient of one process that has the whole
    batch, however the pairs are spread. Every rank must ask in the same step.

    Args:
        count: pairs of this rank, P_r; may be 0.
        device: where the backend exchanges numbers.

    Returns:
        1.0 in one process; else a float32 scalar on `device`, which nobody waits for.
    """
    if world_size() == 1:
        return 1.0
    total = torch.full((), float(count), device=device)
    dist.all_reduce(total)
    return world_size() * count / total.clamp(min=1.0)


def gather(value: T) -> list[T]:
    """The value of every rank, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    found: list[T] = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def from_first(value: T) -> T:
    """The first rank's value, on every rank."""
    if world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]
