"""What `semples run` says on a machine without a GPU, unless it is asked for a trial on the CPU."""

from __future__ import annotations

import functools
from typing import Any, NoReturn

from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()


@CORRECTIONS.after("torch")
def tell_of_a_missing_gpu(torch: Any) -> None:
    """A sentence in place of a traceback, and where CLIMS would start no process at all, one for each GPU."""
    if torch.cuda.is_available():
        return
    spawn = torch.multiprocessing.spawn

    @functools.wraps(spawn)
    def spawn_some(fn: Any, args: Any = (), nprocs: int = 1, *others: Any, **options: Any) -> Any:
        return spawn(fn, args, nprocs, *others, **options) if nprocs else _stop()

    torch.multiprocessing.spawn = spawn_some
    torch.cuda._lazy_init = _stop  # what all that wants CUDA calls first


def _stop() -> NoReturn:
    raise SystemExit(
        "semples run: the script wants a GPU, and torch finds no CUDA device; --device cpu, right behind the host's "
        "name, maps CUDA calls to the CPU, for a trial"
    )
