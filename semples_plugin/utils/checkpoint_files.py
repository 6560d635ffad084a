"""Checkpoints of `torch.save`: read as data alone, and refused in a sentence where they are none or don't fit."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semples_plugin.utils.text import reason, shown

_NESTED = ("model", "state_dict")  # where trainings keep the weights in a checkpoint
_OLDER = b"\x80"  # a pickle, as torch wrote before 1.6


def check_saved(path: str | Path) -> None:
    """Looks at the two ends of a file, which cost nothing, before something else reads it.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is empty, cut short, or wasn't made by `torch.save`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    with path.open("rb") as file:
        start = file.read(40)
    if not start:
        raise ValueError(f"{path} is empty, expected a checkpoint of torch.save: get it again")
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):  # the directory of a zip archive is at its end
            raise ValueError(f"{path} is cut short, its end is missing: get it again")
    elif not start.startswith(_OLDER):
        raise ValueError(
            f"{path} is no checkpoint of torch.save, it begins with {shown(start)}: is it the page of a download?"
        )


def read_checkpoint(path: str | Path, allowed: Sequence[Any] = ()) -> Any:
    """What `torch.load(path, weights_only=True)` returns, on the CPU.

    Args:
        path: of the file.
        allowed: classes that it may hold beside tensors and plain values.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is no checkpoint, is damaged, or holds more than data.
    """
    check_saved(path)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(f"{path} holds more than data, namely {code[1]}, and isn't loaded") from error
        raise ValueError(f"{path} is damaged: get it again ({reason(error)})") from error


def weights_of(path: str | Path, checkpoint: Any) -> dict[str, Tensor]:
    """The weights by name in what `read_checkpoint` returned: itself, or its entry `model` or `state_dict`.

    The prefix `module.` of a network that was saved within DataParallel or DDP is taken off.

    Args:
        path: where it came from, for the error.
        checkpoint: what was read.

    Raises:
        ValueError: where it holds no weights by name.
    """
    found = checkpoint
    if isinstance(found, Mapping):
        found = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        kinds = sorted({type(value).__name__ for value in found.values()}) if isinstance(found, Mapping) else []
        got = f"a dictionary of {', '.join(kinds) or 'nothing'}" if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"{path}: expected weights by name, itself or as {' or '.join(_NESTED)}, got {got:.200}")
    names = [str(name) for name in found]
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): value for name, value in zip(names, found.values(), strict=True)}


def load_weights(network: nn.Module, path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Puts weights into a network, all of them or none.

    Raises:
        ValueError: where names or shapes are others.
    """
    own = network.state_dict()
    shapes = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    differences = {"it lacks": own.keys() - weights.keys(), "it alone has": weights.keys() - own.keys()}
    parts = [f"{what} {len(names)}, such as {min(names)}" for what, names in differences.items() if names]
    parts += [f"{name} is {list(weights[name].shape)} and not {list(own[name].shape)}" for name in shapes[:1]]
    if parts:
        raise ValueError(f"{path} holds the weights of another network: {'; '.join(parts)}")
    network.load_state_dict(weights)
