"""One function over many images, on all cores."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
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

    Raises:
        ChildProcessError: where a process was killed.
    """
    if workers < 2 or len(items) < 2 * workers:
        yield from map(function, items)
        return
    # A fork begins at once, where a new interpreter imports everything again; but threads of torch don't survive it.
    method = "fork" if sys.platform == "linux" and "torch" not in sys.modules else "spawn"
    pool = ProcessPoolExecutor(workers, mp_context=get_context(method), initializer=_begin)
    try:
        yield from pool.map(function, items, chunksize=chunk)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {workers} processes was killed, perhaps because memory ran out: try again with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    import cv2

    cv2.setNumThreads(1)  # as many processes as cores are enough
    # Once a block of this size was freed, glibc keeps smaller ones for the next image, whose pages would cost as much
    # time as reading it.
    bytes(1 << 24)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A parent that is killed can tell nobody; without this its workers would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
