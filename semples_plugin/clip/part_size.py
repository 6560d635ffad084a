"""`PartSize`: how many pairs CLIP takes at once where nobody says so, `max_pairs="auto"`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.utils.checks import CheckSchedule

CPU_BYTES = 10e6
"""Of the largest tensor that a part keeps for its gradient, for each thread: see docs/cost.md."""

GPU_SHARE = 0.8
"""Of the memory that is free beside the host's step; the rest is for what the allocator can't use."""


class Kept(NamedTuple):
    """Bytes that a pair's graph keeps for its gradient: all of its tensors', and the largest one's."""

    total: int
    largest: int

    @property
    def needed(self) -> int:
        """Bytes at most at once: what is computed on the way holds a few more of the largest tensors for a moment."""
        return self.total + 6 * self.largest


class PartSize:
    """Pairs of a part, a power of two, from what one pair is measured to keep for its gradient.

    On a CPU that and the number of threads decide, so that runs stay the same to the bit: larger parts are slower,
    their tensors being new pages of memory each time. On a GPU it is what fits into the memory that the host's step
    leaves free, so that small batches go as a whole; it is looked at in the first three steps, when shapes or types
    change, and then at an interval, and runs may differ in rounding. Ranks choose for themselves, without a word.

    Args:
        check_every: calls between two looks at a GPU's memory.

    >>> PartSize()(FrozenClip.load("demo")) == PartSize()(FrozenClip.load("demo"))
    True
    """

    def __init__(self, check_every: int = 100) -> None:
        self._looks = CheckSchedule(check_every)
        self._measured: tuple[Any, Kept] | None = None
        self._size = 1

    @torch.compiler.disable
    def __call__(self, clip: FrozenClip, kind: Any = None) -> int:
        """The number of pairs for this call; another `kind` of input restarts the interval.

        Raises:
            ValueError: for a device that is neither a CPU nor CUDA's.
        """
        if not self._looks.is_due(clip.device, (clip.device, kind)):
            return self._size
        key = id(clip.model), clip.device
        if self._measured is None or self._measured[0] != key:
            self._measured = key, kept_by_a_pair(clip)
        kept = self._measured[1]
        if clip.device.type not in ("cpu", "cuda"):
            raise ValueError(f'max_pairs: "auto" knows CPUs and CUDA devices, CLIP is on {clip.device}; give a number')
        if clip.device.type == "cuda":
            fitting = GPU_SHARE * free_bytes(clip.device) / kept.needed
        else:
            fitting = CPU_BYTES * torch.get_num_threads() / kept.largest
        self._size = 1 << max(int(fitting).bit_length() - 1, 0)
        return self._size


def kept_by_a_pair(clip: FrozenClip) -> Kept:
    """Measures what the graph of one pair's two views keeps, without CLIP's weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in clip.model.parameters()}
    found: list[Tensor] = []  # kept alive here, so that no two of them lie in the same place

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.inference_mode(False), torch.enable_grad():
        views = torch.zeros(2, 3, *clip.image_size, device=clip.device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            clip.encode_images(views)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    sizes = [size for place, size in storages.items() if place not in weights]
    return Kept(sum(sizes), max(sizes))


def free_bytes(device: torch.device) -> int:
    """A GPU's memory that nobody uses, and what torch's allocator holds of it without need."""
    unused: int = torch.cuda.mem_get_info(device)[0]
    return unused + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
