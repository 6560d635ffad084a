"""Checks shared by the public functions: what was expected, what came, what to do."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

_warned: set[str] = set()


def check_tensor(name: str, value: Any, *, shape: str, floating: bool = True) -> Tensor:
    """Returns `value` if it is a tensor with as many dimensions as `shape` names, like "[N, K, h, w]"."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor {shape}, got {type(value).__name__}")
    if value.ndim != shape.count(",") + 1:
        raise ValueError(f"{name}: expected a tensor {shape}, got the shape {list(value.shape)}")
    if floating and not value.is_floating_point():
        raise TypeError(f"{name}: expected floating-point values {shape}, got {value.dtype}")
    return value


def warn_once(key: str, message: str) -> None:
    """Warns with `message` the first time that this process meets `key`; `stacklevel` points at the caller's caller."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, UserWarning, stacklevel=3)
