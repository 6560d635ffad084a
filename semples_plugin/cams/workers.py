"""One function over many images, on all cores."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 16
) -> Iterator[Result]:
    """Results in the order of the items; an interrupt stops after the chunks that are being worked on.

    Args:
        function: picklable; what it raises ends the whole.
        items: its arguments.
        workers: processes; with one, or few items, everything happens in this one.
        chunk: items that a process takes at once.
    """
    if workers < 2 or len(items) < 2 * workers:
        yield from map(function, items)
        return
    # Threads of torch don't survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    try:
        yield from pool.map(function, items, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
