"""The steps that `semples bench` measures, on random weights, images and masks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semples_plugin import BackgroundPrompts, ClassMasks, FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.bench.hosts import host_step
from semples_plugin.bench.plain import PlainSteps
from semples_plugin.clip import fast_towers
from semples_plugin.regularizer import sum_of
from semples_plugin.utils.checks import CheckSchedule

Step = Callable[[], Tensor | None]
"""Returns the loss to be differentiated, or None where there is none."""


class AbsentPathError(Exception):
    """A fast path that can't be taken away, as a CLIP doesn't take it on its device."""


def seconds_of(step: Step, device: torch.device) -> float:
    """Seconds of a step with its backward pass, until the device has done it."""
    begun = time.perf_counter()
    loss = step()
    if loss is not None:
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def build(name: str, device: str, precision: str, lean: bool = True, folded: bool = True) -> FrozenClip:
    """A CLIP of open_clip's with random weights: what a step costs doesn't depend on them.

    Args:
        name: open_clip's.
        device, precision: where, and in what it computes.
        lean, folded: with QuickGELU and batch norms as `FrozenClip.load` makes them.
    """
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None, precision=precision)
    if lean:
        fast_towers.lean_activations(model)
    if folded:
        fast_towers.fold_batch_norms(model)
    return FrozenClip(model, open_clip.get_tokenizer(name), name).to(device)


Clips = dict[tuple[str, str, str, bool, bool], FrozenClip]
"""CLIPs by the arguments of `build`: steps of one process share them."""


def prepare(spec: dict[str, Any], clips: Clips | None = None) -> tuple[Step, list[Tensor]]:
    """The step that `spec` asks for, and all tensors that it may give a gradient.

    Args:
        spec: `step` ("refinement", "prompts", "walk" or "host"), `waste` (names, or None for the library's own
            step), `pairs`, `part` (pairs of a plain step at once), `classes`, `length`, `max_pairs`, `clip`,
            `device`, `precision`, and where given `checks` (whether values are, always or never), `compile` (its
            options) and `without` (a fast path); for a host what `hosts.host_step` reads.
        clips: CLIPs that were built already; a new one is added.
    """
    clips = {} if clips is None else clips

    def clip_of(precision: str, lean: bool = True) -> FrozenClip:
        key = spec["clip"], spec["device"], precision, lean, spec.get("without") != "batch norms"
        if key not in clips:
            clips[key] = build(*key)
        return clips[key]

    if spec["step"] == "host":
        clip = clip_of(spec["precision"])
        return host_step(spec, clip, lambda precision: clip_of(precision, lean=False)), list(clip.model.parameters())
    waste = spec["waste"]
    clip = clip_of(spec["precision"], waste is None or "activations" not in waste)
    regularizer = make_regularizer(clip, spec)
    if "compile" in spec:
        regularizer.compile(**spec["compile"])
    images, masks = make_batch(clip, spec)
    make_step = _our_step if waste is None else _plain_step
    step = make_step(spec, regularizer, images, masks)
    if "without" in spec:
        step = _without(spec["without"], step, clip)
    prompts = regularizer._need_prompts()
    return step, [masks.maps, prompts.vectors, *clip.model.parameters()]


def make_regularizer(clip: FrozenClip, spec: dict[str, Any]) -> SemPLeSRegularizer:
    """With VOC's weights and prompts that count as learned."""
    names = [f"class {k}" for k in range(spec["classes"])]
    prompts = BackgroundPrompts(len(names), spec["length"], clip.text_width)
    prompts.learned = True
    weights = LossWeights(background=2.4, text=0.02, refine=0.05)
    return SemPLeSRegularizer(
        clip, names, weights=weights, prompts=prompts, input_mean=None, input_std=None, max_pairs=spec["max_pairs"]
    )


def make_batch(clip: FrozenClip, spec: dict[str, Any]) -> tuple[Tensor, ClassMasks]:
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


def _our_step(spec: dict[str, Any], regularizer: SemPLeSRegularizer, images: Tensor, masks: ClassMasks) -> Step:
    """A step of the library's."""
    if spec["step"] == "refinement":
        return _checking(spec.get("checks"), lambda: sum_of(regularizer(images, masks)))
    if spec["step"] == "prompts":
        features = _kept_backgrounds(regularizer, images, masks)
        return lambda: sum_of(regularizer.prompt_losses_of(features, masks.class_index))

    if spec["step"] != "walk":
        raise ValueError(f"there is no step {spec['step']!r}")

    def walk() -> None:
        regularizer.pair_features(images, masks)

    return walk


def _checking(checks: bool | None, step: Step) -> Step:
    """The step with its values checked always or never; None for the library's own schedule."""
    if checks is None:
        return step

    def with_checks() -> Tensor | None:
        own = CheckSchedule.is_due
        CheckSchedule.is_due = lambda *_: checks  # type: ignore[method-assign]
        try:
            return step()
        finally:
            CheckSchedule.is_due = own  # type: ignore[method-assign]

    return with_checks


def _without(path: str, step: Step, clip: FrozenClip) -> Step:
    """The step without one of `fast_towers.PATHS`; an `AbsentPathError` where this CLIP doesn't take it anyway."""
    visual: Any = clip.model.visual
    if path == "activations":
        is_taken = any(isinstance(module, fast_towers.LeanQuickGELU) for module in visual.modules())
    elif path == "batch norms":
        is_taken = type(visual).__name__ == "TimmModel"
    else:
        is_taken = fast_towers._reads_class_token(visual)
    if not is_taken or not fast_towers.uses(path, clip.device):
        raise AbsentPathError(path)

    def slower() -> Tensor | None:
        with fast_towers.without(path):
            return step()

    return slower


def _plain_step(spec: dict[str, Any], regularizer: SemPLeSRegularizer, images: Tensor, masks: ClassMasks) -> Step:
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
