"""Checks of arguments; each message says what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from semples_plugin.utils.text import shown

if TYPE_CHECKING:  # names are checked where torch isn't needed
    import torch
    from torch import Tensor

_warned: set[str] = set()


def check_tensor(name: str, value: Any, *, shape: str, floating: bool = True) -> Tensor:
    """Returns `value` if it is a tensor with as many dimensions as `shape` names.

    Args:
        name: of the argument, for the error.
        value: what the caller gave.
        shape: such as "[N, K, h, w]".
        floating: whether its values have to be floating-point numbers.

    Raises:
        TypeError: for anything but a tensor of such values.
        ValueError: for another number of dimensions.
    """
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
    lowered = [name.strip().lower() for name in names]
    if not lowered:
        raise ValueError("class_names: expected different names, got none")
    repeated = [name for name, count in Counter(lowered).items() if count > 1]
    if repeated:
        raise ValueError(f"class_names: expected different names, got {repeated[0][:80]!r} twice")
    if "" in lowered:
        raise ValueError("class_names: expected different names, got an empty one")
    if lowered[0].strip("_") in ("background", "bg"):
        raise ValueError(
            f"class_names: begins with {names[0]!r}, but label columns belong to object classes alone: leave it out; "
            "with it every class takes its neighbour's column"
        )
    return tuple(names)


def check_known(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raises a `ValueError` for the first of the given names that isn't known; it suggests similar ones."""
    for name in given:
        if name not in known:
            raise ValueError(f"{what}: expected some of {', '.join(known)}, got {name}{suggestion(name, known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error on a name that isn't known: similar names, or nothing where none is similar."""
    similar = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(similar)}?" if similar else ""


def class_positions(names: Sequence[str]) -> Callable[[str], int | None]:
    """Where a class is in a list, by its name in any spelling.

    Case, spaces, underscores, and hyphens and slashes within words are ignored: "TV monitor", "tv-monitor"
    and "tvmonitor" are the same class. Where names of the list differ in nothing else ("co op", "coop"), only
    case is ignored. Other signs always count, so that "c", "c++" and "c#", or "ER+" and "ER-", are different
    classes.

    Returns:
        A function from a name to its position; None for a name that isn't in the list, or fits several of it.
    """
    exact = {name.strip().lower(): k for k, name in enumerate(names)}
    simplified: dict[str, int | None] = {}
    for k, name in enumerate(names):
        key = _simplify(name)
        simplified[key] = None if key in simplified else k
    return lambda name: exact.get(name.strip().lower(), simplified.get(_simplify(name)))


def first_difference(a: Sequence[str], b: Sequence[str]) -> int | None:
    """The first position at which two lists name different classes, see `class_positions`; None for the same lists."""
    position_in_b = class_positions(b)
    for k, name in enumerate(a):
        if position_in_b(name) != k:
            return k
    return None if len(a) == len(b) else len(a)


def _simplify(name: str) -> str:
    within_words = r"(?<=[^\W_])[-/](?=[^\W_])"
    return re.sub(r"[\s_]+", "", re.sub(within_words, "", name.lower()))


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, whole: bool = False, above: bool = False
) -> None:
    """Checks a number, such as a config's.

    Args:
        name: of the field.
        value: what the config gives.
        least: the least allowed value or, with `above`, the bound that the value has to exceed.
        most: the largest allowed value; infinity is never allowed.
        whole: whether it has to be an integer.
        above: see `least`.

    Raises:
        TypeError: for anything but such a number, bools among them.
        ValueError: for a number out of range, NaN or infinity.
    """
    expected = "a whole number" if whole else "a finite number"
    if least > -math.inf:
        expected += f" above {least:g}" if above else f" of at least {least:g}"
    if most < math.inf:
        expected += f" and at most {most:g}"
    if not isinstance(value, Integral if whole else Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
    number = float(value)
    in_range = least < number <= most if above else least <= number <= most
    if not in_range or not math.isfinite(number):
        raise ValueError(f"{name}: expected {expected}, got {value}")


def check_integers(name: str, values: Sequence[int], *, least: int) -> None:
    """Raises a `ValueError` unless `values` are one or more different integers from `least` up to 2^31 - 1."""
    in_range = all(isinstance(value, Integral) and least <= value < 2**31 for value in values)
    if not values or not in_range or len(set(values)) < len(values):
        got = ", ".join(map(str, values)) or "none"
        raise ValueError(f"{name}: expected integers from {least} up, below 2^31 and none twice, got {got:.80}")


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine and this build of torch have it; a ValueError otherwise."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # depends on the build of torch
        raise ValueError(
            f"device {str(device)!r} can't be used here: {str(error).splitlines()[0]}; `semples doctor` lists the "
            "devices of this machine"
        ) from error
    return torch.device(device)


class CheckSchedule:
    """When to check values: always on a CPU; elsewhere, where reading a value waits for the device, now and then.

    There it is the first three calls for each kind of input, and every `every`-th call for it from then on.

    Args:
        every: number of calls; 0 for the first three alone.
    """

    def __init__(self, every: int = 100) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            raise ValueError(
                f"check_every: expected a whole number of steps, 0 for the first three alone, got {every!r}"
            )
        self.every = every
        self._calls: Counter[Any] = Counter()

    def is_due(self, device: torch.device, kind: Any = None) -> bool:
        """Whether to check now; each `kind` of input, such as other shapes or types, has a count of its own."""
        self._calls[kind] += 1
        calls = self._calls[kind]
        return not waits(device) or calls <= 3 or (self.every > 0 and calls % self.every == 0)


def waits(device: torch.device) -> bool:
    """Whether reading a value from `device` waits until the device has done all its pending work."""
    return device.type != "cpu"


def check_triple(name: str, values: Any, *, positive: bool = False) -> tuple[float, float, float]:
    """Three finite numbers, one for each channel, as floats.

    Args:
        name: of the argument, for the error.
        values: a sequence, an array or a tensor.
        positive: whether they have to be above 0.

    Raises:
        ValueError: for anything else.
    """
    try:
        triple = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        triple = ()
    fits = all(math.isfinite(value) and (value > 0 or not positive) for value in triple)
    if len(triple) != 3 or not fits:
        kind = "three positive numbers" if positive else "three numbers"
        raise ValueError(f"{name}: expected {kind}, one for each channel of RGB, got {values!r:.80}")
    return triple


def warn_once(key: str, message: str) -> None:
    """Warns once per process and `key`, three frames up: at the caller of the function that called the caller."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, UserWarning, stacklevel=4)
