"""Measures in a process of its own, so that memory is its own: `python -m semples_plugin.bench.worker JSON`.

JSON is a list of groups, each an object of specs by name; the steps of a group take turns, so that what else the
machine does meets all of them alike. Each group prints a line, an object of rows by the same names, and before it lines
on its progress, which begin with `tasks.PROGRESS`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

from semples_plugin.bench.steps import AbsentPathError, Clips, prepare, seconds_of
from semples_plugin.bench.tables import Row
from semples_plugin.bench.tasks import PROGRESS, Advance
from semples_plugin.bench.whole import learn, profile
from semples_plugin.utils.text import reason

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Repeated:
    """A step with its backward pass, that can be timed again and again."""

    def __init__(self, spec: dict[str, Any], clips: Clips) -> None:
        self.step, self.differentiated = prepare(spec, clips)
        self.device = torch.device(spec["device"])
        self.counts_flops = "compile" not in spec  # a graph hides them from torch's counter
        self.seconds: list[float] = []

    def run(self) -> float:
        """Seconds of one step."""
        return seconds_of(self.step, self.device)

    def memory_and_flops(self) -> tuple[float, Row]:
        """Seconds of a step after the warm-up, and what it adds to the memory, with its operations.

        The first step's seconds are told as well, in which compiled steps make their graph.
        """
        first = self.run()  # warm-up: libraries allocate buffers, features of fixed prompts are kept
        flops = None
        if self.counts_flops:
            with FlopCounterMode(display=False) as counter:
                self.run()
            flops = float(counter.get_total_flops())
        self.forget()
        before = _memory(self.device, restart=True)
        seconds = self.run()  # gradients of weights stay from here on, as an optimiser would keep them
        peak = _memory(self.device)
        memory = None if before is None or peak is None else float(peak - before)
        return seconds, {"first": first, "memory": memory, "flops": flops}

    def forget(self) -> None:
        """Frees the gradients."""
        for tensor in self.differentiated:
            tensor.grad = None


def measure(spec: dict[str, Any]) -> Row:
    """Median seconds, added peak memory in bytes and floating-point operations of a step with its backward pass."""
    return measure_in_turns({"": spec})[""]


def measure_in_turns(
    specs: Mapping[str, dict[str, Any]], clips: Clips | None = None, advance: Advance = lambda _: None
) -> dict[str, Row]:
    """`measure` of several steps that take turns.

    Args:
        specs: of the steps, by name; their `seconds` is for the repeats of each.
        clips: as for `prepare`.
        advance: for its progress.

    Returns:
        A row for each: "absent" where this CLIP takes no such path, and why it "failed" where nothing here compiles it.
    """
    clips = {} if clips is None else clips
    steps: dict[str, _Repeated] = {}
    first: dict[str, float] = {}
    rows: dict[str, Row] = {}
    for name, spec in specs.items():
        try:
            steps[name] = _Repeated(spec, clips)
        except AbsentPathError:
            rows[name] = {"absent": True}
    for name in list(steps):
        try:
            first[name], rows[name] = steps[name].memory_and_flops()
        except TorchDynamoException as error:  # such as that of a machine without a compiler
            rows[name] = {"failed": reason(error)}
            del steps[name]
        advance(0.5)
    # As many repeats as half a minute allows: a plain step with many pairs takes minutes on a CPU.
    allowed = sum(spec["seconds"] for spec in specs.values())
    repeats = min(20, int(allowed / sum(first.values()))) if steps else 0
    for _ in range(repeats):
        for step in steps.values():
            step.seconds.append(step.run())
            advance(0.5 / repeats)
    for name, step in steps.items():
        rows[name] = {"seconds": statistics.median(step.seconds or [first[name]]), **rows[name]}
        step.forget()
    return rows


def matmul_peak(spec: dict[str, Any]) -> Row:
    """Floating-point operations per second of a large matrix product, the "peak", the best of ten."""
    size = 8192 if torch.device(spec["device"]).type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=spec["device"], dtype=PRECISIONS[spec["precision"]]) for _ in range(2))

    def product() -> None:
        a @ b

    best = float("inf")
    for _ in range(10):
        best = min(best, seconds_of(product, a.device))
    return {"peak": 2 * size**3 / best}


def _memory(device: torch.device, restart: bool = False) -> int | None:
    """Peak memory in bytes since the last restart: of the GPU, or of this process; None where that is unknown."""
    if device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if restart:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that Python has freed is not the step's
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


_WHOLE: dict[str, Callable[[dict[str, Any]], Row]] = {"matmul": matmul_peak, "learning": learn, "profile": profile}


def run_groups(groups: list[dict[str, dict[str, Any]]], advance: Advance = lambda _: None) -> Iterator[dict[str, Row]]:
    """The rows of each group; empty ones where a GPU's memory doesn't suffice."""
    clips: Clips = {}
    for specs in groups:
        try:
            yield _run_group(specs, clips, advance)
        except torch.OutOfMemoryError:
            clips.clear()  # with gradients that were not freed
            yield {name: {} for name in specs}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _run_group(specs: dict[str, dict[str, Any]], clips: Clips, advance: Advance) -> dict[str, Row]:
    (kind,) = {spec["step"] for spec in specs.values()}
    if kind in _WHOLE:
        return {name: _WHOLE[kind](spec) for name, spec in specs.items()}
    return measure_in_turns(specs, clips, advance)


def _print_progress(rows: float) -> None:
    print(f"{PROGRESS}{rows:.4f}", flush=True)


if __name__ == "__main__":
    for rows in run_groups(json.loads(sys.argv[1]), _print_progress):
        print(json.dumps(rows), flush=True)
