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
    """The step that `spec` asks for, and all tensors that it may give a gradient.

    The step returns the loss to be differentiated, or None where there is none.

    Args:
        spec: `step` ("refinement", "prompts" or "walk"), `waste` (names, or None for the library's own step),
            `pairs`, `part` (pairs of a plain step at once), `classes`, `length`, `max_pairs`, `clip`,
            `device`, `precision`.
    """
    waste = spec["waste"]
    lean = waste is None or "activations" not in waste
    clip = build(spec["clip"], spec["device"], spec["precision"], lean)
    regularizer = _regularizer(clip, spec)
    images, masks = _batch(clip, spec)
    make_step = _our_step if waste is None else _plain_step
    step = make_step(spec, regularizer, images, masks)
    prompts = regularizer._need_prompts()
    return step, [masks.maps, prompts.vectors, *clip.model.parameters()]


def _regularizer(clip: FrozenClip, spec: dict[str, Any]) -> SemPLeSRegularizer:
    """With VOC's weights and prompts that count as learned."""
    names = [f"class {k}" for k in range(spec["classes"])]
    prompts = BackgroundPrompts(len(names), spec["length"], clip.text_width)
    prompts.learned = True
    weights = LossWeights(background=2.4, text=0.02, refine=0.05)
    return SemPLeSRegularizer(
        clip, names, weights=weights, prompts=prompts, input_mean=None, input_std=None, max_pairs=spec["max_pairs"]
    )


def _batch(clip: FrozenClip, spec: dict[str, Any]) -> tuple[Tensor, ClassMasks]:
    """Random images and masks, one pair of each image; some classes are common, most are rare, as in COCO."""
    pairs, generator = spec["pairs"], torch.Generator().manual_seed(0)
    height, width = clip.image_size
    images = torch.randn(pairs, 3, height, width, generator=generator).to(clip.device)
    maps = torch.rand(pairs, 14, 14, generator=generator).to(clip.device).requires_grad_()
    frequencies = 1 / torch.arange(1, spec["classes"] + 1)
    classes = torch.multinomial(frequencies, pairs, replacement=True, generator=generator).to(clip.device)
    return images, ClassMasks.from_pairs(maps, torch.arange(pairs), classes)


def _kept_backgrounds(regularizer: SemPLeSRegularizer, images: Tensor, masks: ClassMasks) -> Tensor:
    """Background features `[P, D]` as (b) keeps them; that of the first pair for all, since values don't matter."""
    return regularizer.background_features(images[:1], masks[:1]).expand(len(masks), -1)


def _our_step(
    spec: dict[str, Any], regularizer: SemPLeSRegularizer, images: Tensor, masks: ClassMasks
) -> Callable[[], Tensor | None]:
    """A step of the library's."""
    if spec["step"] == "refinement":
        return lambda: sum_of(regularizer(images, masks))
    if spec["step"] == "prompts":
        features = _kept_backgrounds(regularizer, images, masks)
        return lambda: sum_of(regularizer.prompt_losses_of(features, masks.class_index))

    def walk() -> None:
        regularizer.pair_features(images, masks)

    return walk


def _plain_step(
    spec: dict[str, Any], regularizer: SemPLeSRegularizer, images: Tensor, masks: ClassMasks
) -> Callable[[], Tensor | None]:
    """A plain step with the waste of `spec`, in parts of `part` pairs."""
    plain = PlainSteps(regularizer, spec["waste"])
    if spec["step"] == "prompts":
        features = _kept_backgrounds(regularizer, images, masks)
        return lambda: plain.prompts(images, masks, features)
    pairs = spec["pairs"]
    part = min(spec["part"] or pairs, pairs)
    other_parts = PlainSteps(regularizer, plain.waste - {"prompt texts"})  # what a step encodes once, parts share

    def refinement() -> Tensor:
        for start in range(part, pairs, part):
            chosen = masks[start : start + part]
            loss = other_parts.refinement(images, chosen)
            (loss * len(chosen) / pairs).backward()
        return plain.refinement(images, masks[:part]) * part / pairs

    return refinement


def measure(spec: dict[str, Any]) -> dict[str, float | None]:
    """Median seconds, added peak memory in bytes and floating-point operations of a step with its backward pass."""
    step, differentiated = prepare(spec)
    device = torch.device(spec["device"])

    def run() -> float:
        begun = time.perf_counter()
        loss = step()
        if loss is not None:
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    run()  # warm-up: libraries allocate buffers, features of fixed prompts are kept
    with FlopCounterMode(display=False) as counter:
        run()
    for tensor in differentiated:
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


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    if task["step"] == "matmul":
        print(json.dumps({"peak": matmul_peak(task["device"], task["precision"])}))
    else:
        print(json.dumps(measure(task)))
