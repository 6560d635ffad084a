"""One function over many items, on several processes."""

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
_IMAGE_BYTES = 1 << 24  # more than the arrays of an image take one by one


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 16
) -> Iterator[Result]:
    """Yields a result for each item, in their order.

    An interrupt stops after the chunks in progress.

    Args:
        function: picklable; an exception that it raises ends the iteration.
        items: its arguments.
        workers: number of processes. With 1, or with fewer than two items for each, this process does the work.
        chunk: number of items that a process takes at once.

    Raises:
        ChildProcessError: where a process was killed.
    """
    if workers < 2 or len(items) < 2 * workers:
        yield from map(function, items)
        return
    # A fork starts at once, where a spawned interpreter imports everything again; torch's threads don't survive a fork.
    method = "fork" if sys.platform == "linux" and "torch" not in sys.modules else "spawn"
    pool = ProcessPoolExecutor(workers, mp_context=get_context(method), initializer=_set_up_worker)
    try:
        yield from pool.map(function, items, chunksize=chunk)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {workers} processes was killed, perhaps because memory ran out: try again with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _set_up_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles an interrupt
    import cv2

    cv2.setNumThreads(1)  # the processes use all cores already
    # Freeing a block raises glibc's threshold for giving memory back: smaller blocks are kept for the next image, whose
    # page faults would take as long as reading it.
    bytes(_IMAGE_BYTES)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this process when its parent is killed; the pool would leave it waiting for work."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
