"""What a training loop shows while it runs: a progress bar, scalars and pictures."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from semples_plugin.masks import ClassMasks
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.viz.overlays import Picture, draw_grid, overlay_cam
from semples_plugin.viz.prompt_maps import stretched, where_clip_sees


class Writer(Protocol):
    """TensorBoard's `SummaryWriter`, an mmengine visualizer or vis backend, or anything with these two."""

    def add_scalar(self, name: str, value: float, step: int, /) -> Any:
        """Keeps a number."""

    def add_image(self, name: str, image: Any, step: int, /) -> Any:
        """Keeps a picture, RGB `[H, W, 3]`."""


class TrainingLog:
    """Shows losses and figures of a run, and writes them; the device is waited for once every `every` steps.

        with TrainingLog(epochs * len(loader), SummaryWriter("runs/a")) as log:
            for images, labels in loader:
                ...
                losses = regularizer(images, masks)
                log(losses, masks, regularizer.figures)
                if log.due:
                    log.draw(images, masks, regularizer)

    Args:
        steps: of the whole run, also where it is resumed, for the time that is left; None where they aren't known.
        writer: takes scalars, which are means over the steps since the last ones, and pictures.
        every: steps between two updates of bar and writer; they follow the first step and the last one, too.
        title: of the bar, and before the names of scalars.
        start: steps that were made before, where a run is resumed.
        progress: show the bar.
    """

    def __init__(
        self,
        steps: int | None = None,
        writer: Writer | None = None,
        *,
        every: int = 50,
        title: str = "semples",
        start: int = 0,
        progress: bool = True,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1, got {every}")
        if steps is not None and start > steps:
            raise ValueError(f"steps: expected those of the whole run, more than the {start} already made, got {steps}")
        self.writer, self.every, self.title, self.step = writer, every, title, start
        self.due = False
        self._first = start + 1
        self._bar = tqdm(total=steps, initial=start, desc=title, disable=not progress)
        self._reset()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._steps:
            self._write()
        self._bar.close()

    def __call__(
        self,
        losses: Mapping[str, Tensor | float],
        masks: ClassMasks,
        figures: Mapping[str, Tensor | float] | None = None,
    ) -> None:
        """Takes the losses of a step, by name, its masks, and the regularizer's `figures`."""
        if not isinstance(losses, Mapping):
            raise TypeError(f"losses: expected the dictionary of named parts, got {type(losses).__name__}")
        self.step += 1
        self._steps += 1
        self._pairs += len(masks)
        for name, value in {**losses, **(figures or {})}.items():
            self._sums[name] = self._sums.get(name, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
            self._counts[name] += 1
        self.due = self.step % self.every == 0
        self._bar.update()
        if self.due or self.step == self._first:
            self._write()

    def draw(self, images: Tensor, masks: ClassMasks, regularizer: SemPLeSRegularizer, count: int = 8) -> Picture:
        """Draws the first pairs of a batch, see `draw_pairs`, gives them to the writer and returns the picture."""
        picture = draw_pairs(images, masks, regularizer, count)
        if self.writer is not None:
            # TensorBoard wants to be told the order of the axes, others know one.
            parameters = inspect.signature(self.writer.add_image).parameters
            order: dict[str, Any] = {"dataformats": "HWC"} if "dataformats" in parameters else {}
            self.writer.add_image(f"{self.title}/masks", picture, self.step, **order)
        return picture

    def _write(self) -> None:
        """Gives the means since the last call to the bar and the writer."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        losses = {name: mean for name, mean in means.items() if name.startswith("loss_")}
        shown = {name.removeprefix("loss_"): f"{mean:.3f}" for name, mean in losses.items()}
        if self.step > self._first:  # the first step warms up
            rate = self._pairs / max(time.perf_counter() - self._since, 1e-9)
            means["pairs_per_second"] = rate
            shown["pairs/s"] = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        self._bar.set_postfix(shown)
        if self.writer is not None:
            for name, value in means.items():
                self.writer.add_scalar(f"{self.title}/{name}", value, self.step)
        self._reset()

    def _reset(self) -> None:
        """Begins to sum up anew."""
        self._sums: dict[str, Tensor | float] = {}
        self._counts: Counter[str] = Counter()  # a name may be missing from some steps
        self._pairs, self._steps, self._since = 0, 0, time.perf_counter()


@torch.no_grad()
def draw_pairs(images: Tensor, masks: ClassMasks, regularizer: SemPLeSRegularizer, count: int = 8) -> Picture:
    """A grid of pairs, under their classes' names: the image, its mask as a heat map over it, and, once prompts are
    learned, where CLIP sees the class's background prompt.

    Args:
        images, masks: a batch as the regularizer takes it.
        regularizer: knows the images' statistics and the classes.
        count: pairs at most.
    """
    if not len(masks):
        return np.full((64, 64, 3), 255, dtype=np.uint8)
    part = masks[: max(count, 1)]
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (regularizer.input_mean, regularizer.input_std))
    unit = (images[part.image_index] * std + mean).clamp(0, 1)
    pixels = unit.mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()
    maps = part.maps.float().cpu().numpy()
    rows = {"image": list(pixels), "mask": [overlay_cam(image, cam) for image, cam in zip(pixels, maps, strict=True)]}
    prompts, clip = regularizer.prompts, regularizer.clip
    if prompts is not None and prompts.learned:
        overlays = []
        for text, image in zip(prompts.encode(clip, part.class_index), pixels, strict=True):
            heat = stretched(where_clip_sees(clip, text[None], image, grid=7))[0]
            overlays.append(overlay_cam(image, heat))
        rows["where CLIP sees the prompt"] = overlays
    names = [regularizer.class_names[k] for k in part.class_index.tolist()]
    return draw_grid(list(rows.values()), names, row_captions=list(rows))
