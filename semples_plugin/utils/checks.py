"""Checks shared by the public functions: what was expected, what came, what to do."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from semples_plugin.utils.text import shown

if TYPE_CHECKING:  # names are checked where torch isn't needed
    import torch
    from torch import Tensor

_warned: set[str] = set()


def check_tensor(name: str, value: Any, *, shape: str, floating: bool = True) -> Tensor:
    """Returns `value` if it is a tensor with as many dimensions as `shape` names, like "[N, K, h, w]"."""
    from torch import Tensor

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
        found = next((f"{name[:80]!r} twice" for name in plain if plain.count(name) > 1), "an empty one")
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


def class_positions(names: Sequence[str]) -> Callable[[str], int | None]:
    """Where a class stands in a list, by its name in whatever spelling.

    Case, spaces, underscores, and hyphens and slashes within words don't count: "TV monitor", "tv-monitor" and
    "tvmonitor" are one. Where names of the list differ in nothing else ("co op", "coop"), they are compared whole but
    for case. Other signs always count, so that "c", "c++" and "c#", or "ER+" and "ER-", are classes of their own.

    Returns:
        A function from a name to its position; None for one that isn't in the list, or could be several of it.
    """
    whole = {name.strip().lower(): k for k, name in enumerate(names)}
    plain: dict[str, int | None] = {}
    for k, name in enumerate(names):
        plain[_plain(name)] = None if _plain(name) in plain else k
    return lambda name: whole.get(name.strip().lower(), plain.get(_plain(name)))


def first_difference(a: Sequence[str], b: Sequence[str]) -> int | None:
    """The first position at which two class lists name different classes, see `class_positions`; None where none is."""
    there = class_positions(b)
    found = next((k for k, name in enumerate(a) if there(name) != k), len(a))
    return None if found == len(a) == len(b) else found


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "", re.sub(r"(?<=[^\W_])[-/](?=[^\W_])", "", name.lower()))


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, whole: bool = False, above: bool = False
) -> None:
    """Checks a number, such as a config's, before the work that it would spoil.

    Args:
        name: of the field.
        value: what the config gives.
        least: the least that it may be, or, with `above`, what it has to exceed.
        most: the largest that it may be; infinity is never allowed.
        whole: whether only whole numbers are.
        above: see `least`.

    Raises:
        TypeError: for what is no such number.
        ValueError: for one out of range, NaN or infinity.
    """
    words = "a whole number" if whole else "a finite number"
    if least > -math.inf:
        words += f" above {least:g}" if above else f" of at least {least:g}"
    if most < math.inf:
        words += f" and at most {most:g}"
    if not isinstance(value, Integral if whole else Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {words}, got {shown(value)}")
    number = float(value)
    if not least <= number <= most or not math.isfinite(number) or (above and number == least):
        raise ValueError(f"{name}: expected {words}, got {value}")


def check_integers(name: str, values: Sequence[int], *, least: int) -> None:
    """Raises a `ValueError` unless there are integers from `least` up, small enough for any seed, and none twice."""
    fit = all(isinstance(value, Integral) and least <= value < 2**31 for value in values)
    if not values or not fit or len(set(values)) < len(values):
        got = ", ".join(map(str, values)) or "none"
        raise ValueError(f"{name}: expected integers from {least} up, below 2^31 and none twice, got {got:.80}")


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine and this build of torch have it."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises differs between builds
        raise ValueError(
            f"device {str(device)!r} can't be used here: {str(error).splitlines()[0]}; `semples doctor` lists the "
            "devices of this machine"
        ) from error
    return torch.device(device)


class CheckSchedule:
    """When to make checks of values, which wait for the device: on a CPU always, as nothing waits there.

    Elsewhere at the first three calls for what is checked, and at every `every`-th from then on.
    """

    def __init__(self, every: int = 100) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            raise ValueError(
                f"check_every: expected a whole number of steps, 0 for the first three alone, got {every!r}"
            )
        self.every = every
        self._what: Any = None
        self._calls = 0

    def is_due(self, device: torch.device, what: Any = None) -> bool:
        """Whether to check now; `what` tells what is checked, such as shapes and types, and begins anew with it."""
        if what != self._what:
            self._what, self._calls = what, 0
        self._calls += 1
        return not waits(device) or self._calls <= 3 or (self.every > 0 and self._calls % self.every == 0)


def waits(device: torch.device) -> bool:
    """Whether reading a value from `device` stops the program until the device has done all that it was given."""
    return device.type != "cpu"


def check_triple(name: str, values: Any, *, positive: bool = False) -> tuple[float, float, float]:
    """Three finite numbers, one for each channel: a sequence, an array or a tensor."""
    try:
        triple = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        triple = ()
    if len(triple) != 3 or not all(math.isfinite(value) and (value > 0 or not positive) for value in triple):
        kind = "three positive numbers" if positive else "three numbers"
        raise ValueError(f"{name}: expected {kind}, one for each channel of RGB, got {values!r:.80}")
    return triple


def warn_once(key: str, message: str) -> None:
    """Warns the first time that this process meets `key`, and points at the caller of the caller's caller."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, UserWarning, stacklevel=4)
