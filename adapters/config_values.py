"""Numbers from a config, checked where the object is built: hours later their mistakes would cost a run."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from semples_plugin.text import shown


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, whole: bool = False, above: bool = False
) -> None:
    """Checks a field.

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
