"""What is measured once: all of stage (b), and where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from semples_plugin import ClassMasks, learn_background_prompts
from semples_plugin.bench.steps import build, make_batch, make_regularizer, prepare, seconds_of
from semples_plugin.utils.atomic_files import replacing

TOP = 15  # operators of a profile that are listed


def learn(spec: dict[str, Any]) -> dict[str, Any]:
    """All of stage (b), from the first batch to the learned prompts; without the host's network and its data.

    Args:
        spec: `pairs` and `epochs` of the whole, `batch` pairs at a time, and what `make_regularizer` reads.

    Returns:
        "seconds" of the whole, and "walk" of these, until the last batch was encoded.
    """
    clip = build(spec["clip"], spec["device"], spec["precision"])
    regularizer = make_regularizer(clip, spec)
    regularizer._need_prompts().learned = False
    images, masks = make_batch(clip, {**spec, "pairs": min(spec["batch"], spec["pairs"])})
    walked: list[float] = []

    def batches() -> Iterator[tuple[Tensor, ClassMasks]]:
        for start in range(0, spec["pairs"], spec["batch"]):
            count = min(spec["batch"], spec["pairs"] - start)
            yield images[:count], masks[:count].detach()
        walked.append(time.perf_counter())

    begun = time.perf_counter()
    learn_background_prompts(
        regularizer, batches(), epochs=spec["epochs"], batch_size=spec["batch"], lr=1e-3, progress=False
    )
    if clip.device.type == "cuda":
        torch.cuda.synchronize(clip.device)
    return {"seconds": time.perf_counter() - begun, "walk": walked[0] - begun}


def profile(spec: dict[str, Any]) -> dict[str, Any]:
    """Where the time of a refinement step with its backward pass goes, by torch's profiler.

    Args:
        spec: as for `prepare`, but `step`; `trace` names a file for Chrome's trace viewer or Perfetto.

    Returns:
        "seconds" of the step while it was watched; "busy", the share of them in which the GPU computed (None on
        a CPU), and the operators that took most of the time: "top", of [name, seconds, calls].
    """
    step, _ = prepare({**spec, "step": "refinement"})
    device = torch.device(spec["device"])
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    for _ in range(4):  # the first three steps check their values
        seconds_of(step, device)
    with profiler(activities=activities) as watched:
        seconds = seconds_of(step, device)
    with replacing(Path(spec["trace"])) as temporary:
        watched.export_chrome_trace(str(temporary))
    events = watched.key_averages()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operators = sorted((e for e in events if e.device_type == DeviceType.CPU), key=lambda e: -getattr(e, field))
    kernels = sum(e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA)
    return {
        "seconds": seconds,
        "busy": kernels * 1e-6 / seconds if on_gpu else None,
        "top": [[event.key, getattr(event, field) * 1e-6, event.count] for event in operators[:TOP]],
    }
