"""Standard output and error that outlive their readers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Where standard output or error is closed, or loses its reader, words are lost, and the work goes on."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # else the next file would get the number of a closed stream
        pass
    os.close(number)
    with contextlib.ExitStack() as stack:
        for redirect, stream in ((contextlib.redirect_stdout, sys.stdout), (contextlib.redirect_stderr, sys.stderr)):
            lasting = _LastingStream(stream or stack.enter_context(open(os.devnull, "w")))  # noqa: PTH123, of Windows, too
            stack.enter_context(redirect(lasting))
            stack.callback(lasting.flush)
        yield


class _LastingStream:
    """A stream whose reader may leave, as that of `semples eval ... | head` does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., Any], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            # What is left in its buffer would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):
                raise
