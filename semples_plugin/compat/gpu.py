"""What `semples run` says on a machine without a GPU, unless it is asked for a trial on the CPU."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()


@CORRECTIONS.after("torch")
def tell_of_a_missing_gpu(torch: Any) -> None:
    """Once, in the script's own process; the host's error about CUDA comes later and tells less."""
    if multiprocessing.parent_process() is None and not torch.cuda.is_available():
        message = "semples run: torch finds no CUDA device; --device cpu maps CUDA calls to the CPU, for a trial"
        print(message, file=sys.stderr)
