"""Checks shared by the public functions: what was expected, what came, what to do."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_warned: set[str] = set()


def check_tensor(name: str, value: Any, *, shape: str, floating: bool = True) -> Tensor:
    """Returns `value` if it is a tensor with as many dimensions as `shape` names, like "[N, K, h, w]"."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor {shape}, got {type(value).__name__}")
    if value.ndim != shape.count(",") + 1:
        raise ValueError(f"{name}: expected a tensor {shape}, got the shape {list(value.shape)}")
    if floating and not value.is_floating_point():
        raise TypeError(
            f"{name}: expected floating-point values {shape}, got {value.dtype}; bytes from 0 to 255 become pixels by "
            "dividing by 255, and then want the host's mean and standard deviation"
        )
    return value


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple: a sequence, in the order of the label columns, of different strings."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"class_names: expected a list of strings, one for each label column and in their order, got {names!r:.80}"
        )
    plain = [name.strip().lower() for name in names]
    if not plain or "" in plain or len(set(plain)) < len(plain):
        found = next((repr(name) + " twice" for name in plain if plain.count(name) > 1), "an empty one")
        raise ValueError(f"class_names: expected different names, got {found if plain else 'none'}")
    if plain[0].strip("_") in ("background", "bg"):
        raise ValueError(
            f"class_names: begins with {names[0]!r}, but label columns belong to object classes alone: leave it out; "
            "with it every class takes its neighbour's column"
        )
    return tuple(names)


def check_known(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raises a `ValueError` that names near ones where `given` holds a name that isn't `known`."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"{what}: expected some of {', '.join(known)}, got {name}{hint}")


def plain_name(name: str) -> str:
    """A class name without case, spaces, hyphens and underscores: "TV monitor" and "tvmonitor" are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine and this build of torch have it."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises differs between builds
        raise ValueError(
            f"device {str(device)!r} can't be used here: {str(error).splitlines()[0]}; `semples doctor` lists the "
            "devices of this machine"
        ) from error
    return torch.device(device)


def warn_once(key: str, message: str) -> None:
    """Warns the first time that this process meets `key`, and points at the caller of the caller's caller."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, UserWarning, stacklevel=4)
