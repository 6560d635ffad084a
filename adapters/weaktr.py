"""WeakTr: the fine CAM `[N, K, 14, 14]`, taken through hooks from the forward pass that gives WeakTr its logits.

WeakTr's training forward returns logits alone, and a second pass would differ (drop path). The inputs and outputs of
its head and its attention fusion are enough to build the same fine CAM again, with the gradients that are wanted:
WeakTr detaches the coarse CAM, so that its own loss on the fine CAM reaches the fusion module alone; the authors of
SemPLeS let it reach the head too, whose input stays detached. `reach` chooses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from semples_plugin.adapters import host_options
from semples_plugin.adapters.base import CamAdapter, evaluating
from semples_plugin.masks import ClassMasks
from semples_plugin.presets import Preset
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.distributed import is_first, world_size

REACH = ("head+fusion", "fusion")


class FineCam:
    """`with FineCam(model) as fine: model(images); cams = fine()`; leaves nothing on the model.

    Args:
        model: WeakTr's, wrapped in DDP or not.
        reach: where gradients go: "head+fusion" (as the authors of SemPLeS do) or "fusion" (as WeakTr does).
    """

    def __init__(self, model: nn.Module, reach: str = "head+fusion") -> None:
        if reach not in REACH:
            raise ValueError(f"reach: expected one of {', '.join(REACH)}, got {reach!r}")
        self.model: Any = getattr(model, "module", model)
        for name in ("head", "adaptive_attention_fusion", "num_classes"):
            if not hasattr(self.model, name):
                raise TypeError(f"model: expected WeakTr's, with {name}; got {type(self.model).__name__} without")
        self.reach = reach
        self._handles: list[RemovableHandle] = []
        self._tokens: Tensor | None = None
        self._attention: tuple[Tensor, Tensor] | None = None

    def __enter__(self) -> FineCam:
        if not self._handles:
            self._handles = [
                self.model.head.register_forward_hook(self._see_head),
                self.model.adaptive_attention_fusion.register_forward_hook(self._see_fusion),
            ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._tokens, self._attention = [], None, None

    def __call__(self) -> Tensor:
        """The fine CAM `[N, K, h, w]`, at least 0, of the last forward pass; it can be asked for once."""
        if self._tokens is None or self._attention is None:
            raise RuntimeError("there was no forward pass of the model since the last fine CAM")
        tokens, (cross, patch) = self._tokens, self._attention
        self._tokens = self._attention = None  # a graph that nobody needs any more would keep its memory
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.reach == "head+fusion"):
            # The hook's own call of the head: bypasses the hooks, and costs one small convolution.
            coarse = self.model.head.forward(tokens.detach()).relu()
        classes = self.model.num_classes
        fused = cross.mean(1)[:, :classes, classes:].reshape(coarse.shape) * coarse
        affinity = patch.mean(1)[:, classes:, classes:]
        return torch.matmul(affinity[:, None], fused.flatten(2)[..., None]).reshape(coarse.shape)

    def _see_head(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        self._tokens = inputs[0].detach()

    def _see_fusion(self, _: nn.Module, __: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        self._attention = output


class WeakTrAdapter(CamAdapter):
    """The objectives for WeakTr's fine CAMs: upsampled to CLIP's square, then min-max normalised.

    Args:
        regularizer: with ImageNet's statistics, or the release's (none).
        eps: of the normalisation; the release has 0.1 in (a) and (c), 1e-4 in (b).
        align_corners: of the upsampling; the release aligns them.
    """

    def __init__(self, regularizer: SemPLeSRegularizer, *, eps: float = 0.1, align_corners: bool = True) -> None:
        super().__init__(regularizer, "min-max", eps=eps)
        self.align_corners = align_corners

    def masks(self, cams: Tensor, labels: Tensor) -> ClassMasks:
        """Masks of the present classes, at CLIP's resolution."""
        pairs = ClassMasks.from_dense(cams, labels)
        size = self.regularizer.clip.image_size
        return pairs.resized(*size, align_corners=self.align_corners).of_kind("min-max", self.eps)


def add_arguments(parser: argparse.ArgumentParser, preset: str = "voc") -> None:
    """The options of WeakTr's `main.py`."""
    add = host_options.add_arguments(parser, preset).add_argument
    add("--semples-reach", choices=REACH, default=REACH[0], help="what SemPLeS trains of WeakTr")
    add("--semples-mask-eps", type=float, help="of the masks' min-max normalisation (default: the preset's)")
    add("--semples-alone", action="store_true", help="leave WeakTr's own losses out, as the authors' release does")


class Training:
    """What the patch calls in every step: `semples.watch()`, WeakTr's forward pass, `semples(loss, images, labels)`.

    Args:
        args: WeakTr's, with ours.
        model: its network.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module) -> None:
        self.args, self.model = args, model
        self.adapter: WeakTrAdapter | None = None
        if args.semples is None:
            return
        _check(args)
        if not self.learns_prompts:
            host_options.check_averaged(model)
        if args.semples_start:
            checkpoint = _read_checkpoint(args.semples_start)
            getattr(model, "module", model).load_state_dict(checkpoint.get("model", checkpoint))
        preset = host_options.preset_of(args)
        device = next(model.parameters()).device
        eps = preset.stage_eps(args.semples) if args.semples_mask_eps is None else args.semples_mask_eps
        regularizer = host_options.build_regularizer(args, args.nb_classes, device)
        if not self.learns_prompts:
            _tell_departures(args, preset)
        self.adapter = WeakTrAdapter(regularizer, eps=eps, align_corners=preset.align_corners)
        self.fine, self.log = FineCam(model, args.semples_reach), host_options.LossLog()

    @property
    def learns_prompts(self) -> bool:
        """Whether this run is stage (b)."""
        return bool(self.args.semples == "prompts")

    def watch(self) -> None:
        """Sets the hooks for the next forward pass; the call after it takes them off again."""
        if self.adapter is not None:
            self.fine.__enter__()

    def __call__(self, loss: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """WeakTr's loss with the objectives added, or the objectives alone with `--semples-alone`."""
        if self.adapter is None:
            return loss
        with self.fine:
            added = self.adapter.loss(images, self.fine(), labels)
        self.log(self.adapter.losses)
        return added if self.args.semples_alone else loss + added

    def learn_prompts(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Stage (b): walks a loader of (images, labels) once and writes `--semples-prompts`."""
        assert self.adapter is not None

        def walk() -> Any:
            for images, labels in loader:
                images = images.to(device)
                self.model(images)
                yield images, self.fine(), labels.to(device)

        with self.fine, evaluating(self.model) as device:
            learning = {"origin": self.model, **host_options.learning_options(self.args)}
            self.adapter.learn_prompts(walk(), self.args.semples_prompts, **learning)
        print(f"SemPLeS: wrote {self.args.semples_prompts}; stage (c): --semples refine")


def _tell_departures(args: argparse.Namespace, preset: Preset) -> None:
    # WeakTr has multiplied its rate with batch and processes by now.
    batch = args.batch_size * world_size()
    found = preset.departures(lr=args.lr, batch_size=batch, epochs=args.epochs, weight_decay=args.weight_decay)
    if found and is_first():
        print(f"SemPLeS: stages (a) and (c) are trained by WeakTr's options: {found}")


def _check(args: argparse.Namespace) -> None:
    if (args.semples == "prompts" or args.semples_alone) and not (args.semples_start or args.resume):
        raise ValueError("head and fusion must have been trained: give --semples-start CHECKPOINT, WeakTr's or (a)'s")
    paints = {"--aa=": args.aa, "--color-jitter 0": args.color_jitter, "--reprob 0": args.reprob}
    if args.semples == "prompts" and any(paints.values()):
        needed = " ".join(option for option, value in paints.items() if value)
        raise ValueError(f"stage (b) describes images, and augmentations would paint over them: give {needed}")


def _read_checkpoint(path: str) -> dict[str, Any]:
    # WeakTr saves a numpy number beside the weights; it is allowed by name, anything else is refused.
    import numpy as np

    scalar = np.float64().__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # numpy 1 and 2
    allowed: list[Any] = [*names, np.dtype, *{type(np.dtype(kind)) for kind in ("f4", "f8", "i8")}]
    with torch.serialization.safe_globals(allowed):
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint
