"""Whether a tensor was changed in place since somebody last looked."""

from __future__ import annotations

import torch
from torch import Tensor


def version_of(tensor: Tensor) -> int | None:
    """Autograd's count of in-place changes; None where it keeps none, under `torch.compile` and in inference mode."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
