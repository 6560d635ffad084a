"""Standard output and error whose loss doesn't end the work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Lets the work go on, without its messages, where standard output or error is closed or loses its reader."""
    _occupy_standard_numbers()
    with contextlib.ExitStack() as stack:
        for redirect, stream in ((contextlib.redirect_stdout, sys.stdout), (contextlib.redirect_stderr, sys.stderr)):
            if stream is None:  # it was closed when Python started
                stream = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            lasting = _LastingStream(stream)
            stack.enter_context(redirect(lasting))
            stack.callback(lasting.flush)
        yield


def _occupy_standard_numbers() -> None:
    """Opens the null device in place of closed streams; the next file to be opened would get their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)


class _LastingStream:
    """A stream whose reader may leave, as that of `semples eval ... | head` does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._attempt(self._stream.write, text)
        except UnicodeEncodeError as error:  # a locale may lack a sign of ours, or of a path
            self._attempt(self._stream.write, text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., Any], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            # The rest of its buffer would fail again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):
                raise
