"""One measurement in a process of its own, so that memory is its own: `python -m semples_plugin.bench.worker JSON`."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from semples_plugin import BackgroundPrompts, ClassMasks, FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.bench.plain import PlainSteps
from semples_plugin.clip.fast_towers import lean_activations
from semples_plugin.regularizer import sum_of

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build(name: str, device: str, precision: str, lean: bool) -> FrozenClip:
    """A CLIP of open_clip's with random weights: what a step costs doesn't depend on them."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None, precision=precision)
    if lean:
        lean_activations(model)  # as FrozenClip.load does
    return FrozenClip(model, open_clip.get_tokenizer(name), name).to(device)


def prepare(spec: dict[str, Any]) -> tuple[Callable[[], Tensor | None], list[Tensor]]:
    """The step that `spec` asks for, and all that it may give a gradient.

    The step returns the loss to be differentiated, or None where there is none.

    Args:
        spec: `step` ("refinement", "prompts" or "walk"), `waste` (names, or None for the library's own step), `pairs`,
            `part` (pairs of a plain step at once), `classes`, `length`, `max_pairs`, `clip`, `device`, `precision`.
    """
    clip = build(spec["clip"], spec["device"], spec["precision"], "activations" not in (spec["waste"] or ()))
    names = [f"class {k}" for k in range(spec["classes"])]
    prompts = BackgroundPrompts(len(names), spec["length"], clip.text_width)
    prompts.learned = True
    weights = LossWeights(background=2.4, text=0.02, refine=0.05)
    regularizer = SemPLeSRegularizer(
        clip, names, weights=weights, prompts=prompts, input_mean=None, input_std=None, max_pairs=spec["max_pairs"]
    )
    pairs, generator = spec["pairs"], torch.Generator().manual_seed(0)
    height, width = clip.image_size
    images = torch.randn(pairs, 3, height, width, generator=generator).to(clip.device)
    maps = torch.rand(pairs, 14, 14, generator=generator).to(clip.device).requires_grad_()
    frequencies = 1 / torch.arange(1, len(names) + 1)  # some classes are common, most are rare, as in COCO
    classes = torch.multinomial(frequencies, pairs, replacement=True, generator=generator).to(clip.device)
    masks = ClassMasks.from_pairs(maps, torch.arange(pairs), classes)
    features = regularizer.background_features(images[:1], masks[:1]).expand(pairs, -1)
    plain = PlainSteps(regularizer, spec["waste"] or ())
    part = min(spec["part"] or pairs, pairs)
    rest = PlainSteps(regularizer, plain.waste - {"prompt texts"})  # parts share what is encoded once in a step

    def plain_refinement() -> Tensor:
        for start in range(part, pairs, part):
            some = masks[start : start + part]
            (rest.refinement(images, some) * len(some) / pairs).backward()
        return plain.refinement(images, masks[:part]) * part / pairs

    steps: dict[tuple[str, bool], Callable[[], Tensor | None]] = {
        ("walk", True): lambda: (regularizer.pair_features(images, masks), None)[1],
        ("refinement", True): lambda: sum_of(regularizer(images, masks)),
        ("refinement", False): plain_refinement,
        ("prompts", True): lambda: sum_of(regularizer.prompt_losses_of(features, classes)),
        ("prompts", False): lambda: plain.prompts(images, masks, features),
    }
    return steps[spec["step"], spec["waste"] is None], [maps, prompts.vectors, *clip.model.parameters()]


def measure(spec: dict[str, Any]) -> dict[str, float | None]:
    """Median seconds, added peak memory in bytes and floating-point operations of a step with its backward pass."""
    (step, reached), device = prepare(spec), torch.device(spec["device"])

    def run() -> float:
        begun = time.perf_counter()
        loss = step()
        if loss is not None:
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    run()  # warms up: libraries get their buffers, features of fixed prompts are kept
    with FlopCounterMode(display=False) as counter:
        run()
    for tensor in reached:
        tensor.grad = None
    before = _memory(device, restart=True)
    first = run()  # gradients of weights stay from here on, as an optimiser would keep them
    peak = _memory(device)
    # As many repeats as half a minute allows: a plain step with many pairs takes minutes on a CPU.
    seconds = [run() for _ in range(min(20, int(spec["seconds"] / first)))] or [first]
    return {
        "seconds": statistics.median(seconds),
        "memory": None if before is None or peak is None else float(peak - before),
        "flops": float(counter.get_total_flops()),
    }


def matmul_peak(device: str, precision: str) -> float:
    """Floating-point operations per second of a large matrix product, the best of ten."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def _memory(device: torch.device, restart: bool = False) -> int | None:
    """Peak memory in bytes since the last restart: of the device, or of this process where the kernel tells."""
    if device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if restart:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what Python has freed already is no memory of the step
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    if task["step"] == "matmul":
        print(json.dumps({"peak": matmul_peak(task["device"], task["precision"])}))
    else:
        print(json.dumps(measure(task)))
