"""Shortening values and exceptions of any length for our own error messages."""

from __future__ import annotations

import reprlib
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 60, 60


def shown(value: Any) -> str:
    """`repr` of a value, in at most 80 characters."""
    return _cut(_REPR.repr(value), 80)


def reason(error: BaseException) -> str:
    """The message of an exception in one line of at most 200 characters; its type where it has none."""
    return _cut(" ".join(str(error).split()) or type(error).__name__, 200)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
