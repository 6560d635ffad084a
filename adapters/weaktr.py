"""WeakTr: the fine CAM `[N, K, 14, 14]`, taken through hooks from WeakTr's own forward pass.

WeakTr's training forward returns logits alone, and a second pass would differ (drop path). The inputs of its
head and the outputs of its attention fusion are enough to compute the same fine CAM again. WeakTr detaches
the coarse CAM, so that its own loss on the fine CAM gives gradients to the fusion module alone; the authors
of SemPLeS let them reach the head too, whose input stays detached. `reach` chooses.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from semples_plugin.adapters import host_options
from semples_plugin.adapters.base import CamAdapter, evaluating
from semples_plugin.adapters.weaktr_checkpoints import check_layout, read_checkpoint
from semples_plugin.masks import ClassMasks
from semples_plugin.presets import Preset
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.checkpoint_files import load_weights, weights_of
from semples_plugin.utils.distributed import is_first, world_size

REACH = ("head+fusion", "fusion")
"""Modules of WeakTr that get gradients from the objectives."""


class FineCam:
    """`with FineCam(model) as fine: model(images); cams = fine()`; afterwards the model has no hooks.

    Args:
        model: WeakTr's, wrapped in DDP or not.
        reach: where gradients go: "head+fusion" (as the authors of SemPLeS do) or "fusion" (as WeakTr does).

    Raises:
        ValueError: for another `reach`.
        TypeError: for a model that isn't WeakTr's.
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
                self.model.head.register_forward_hook(self._keep_tokens),
                self.model.adaptive_attention_fusion.register_forward_hook(self._keep_attention),
            ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._tokens = self._attention = None

    def __call__(self) -> Tensor:
        """The fine CAM `[N, K, h, w]`, at least 0, of the last forward pass, which gives it once.

        Raises:
            RuntimeError: where the model made no forward pass since the last call.
        """
        if self._tokens is None or self._attention is None:
            raise RuntimeError("there was no forward pass of the model since the last fine CAM")
        tokens, (cross_attention, patch_attention) = self._tokens, self._attention
        self._tokens = self._attention = None  # frees the graph
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.reach == "head+fusion"):
            # `forward` bypasses the hooks; it costs one small convolution.
            coarse = self.model.head.forward(tokens.detach()).relu()
        classes = self.model.num_classes  # class tokens come before patch tokens
        class_to_patch = cross_attention.mean(1)[:, :classes, classes:].reshape(coarse.shape)
        affinity = patch_attention.mean(1)[:, classes:, classes:]
        fused = class_to_patch * coarse
        return torch.matmul(affinity[:, None], fused.flatten(2)[..., None]).reshape(coarse.shape)

    def _keep_tokens(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        self._tokens = inputs[0].detach()

    def _keep_attention(self, _: nn.Module, __: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        self._attention = output


class WeakTrAdapter(CamAdapter):
    """The objectives for WeakTr's fine CAMs: upsampled to CLIP's resolution, then min-max normalised.

    Args:
        regularizer: with ImageNet's statistics, or the release's (none).
        eps: of the normalisation; the release has 0.1 in (a) and (c), 1e-4 in (b).
        align_corners: of the upsampling; the release aligns them.
    """

    def __init__(self, regularizer: SemPLeSRegularizer, *, eps: float = 0.1, align_corners: bool = True) -> None:
        super().__init__(regularizer, "min-max", eps=eps)
        self.align_corners = align_corners

    def masks(self, cams: Tensor, labels: Tensor) -> ClassMasks:
        """Masks `[P, H, W]` in [0, 1] of the present classes, at CLIP's resolution."""
        height, width = self.regularizer.clip.image_size
        pairs = ClassMasks.from_dense(cams, labels).resized(height, width, align_corners=self.align_corners)
        return pairs.of_kind("min-max", self.eps)


def add_arguments(parser: argparse.ArgumentParser, preset: str = "voc") -> None:
    """The options of WeakTr's `main.py`."""
    add = host_options.add_arguments(parser, preset).add_argument
    add("--semples-reach", choices=REACH, default="head+fusion", help="what SemPLeS trains of WeakTr")
    add("--semples-mask-eps", type=float, help="of the masks' min-max normalisation (default: the preset's)")
    add("--semples-alone", action="store_true", help="leave WeakTr's own losses out, as the authors' release does")


class Training:
    """What the patch calls: in every step `semples.watch()`, WeakTr's forward pass, then the object itself.

    Args:
        args: WeakTr's, with ours.
        model: its network.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module) -> None:
        self.args, self.model = args, model
        self.adapter: WeakTrAdapter | None = None
        if args.semples is None:
            return
        _check_options(args)
        if not self.learns_prompts:
            host_options.check_averaged(model)
        if args.semples_start:
            checkpoint = read_checkpoint(args.semples_start)
            check_layout(args.semples_start, checkpoint, args)
            network: Any = getattr(model, "module", model)
            load_weights(network, args.semples_start, weights_of(args.semples_start, checkpoint))
        preset = host_options.preset_of(args)
        eps = preset.stage_eps(args.semples) if args.semples_mask_eps is None else args.semples_mask_eps
        device = next(model.parameters()).device
        regularizer = host_options.build_regularizer(args, args.nb_classes, device)
        if not self.learns_prompts:
            _print_departures(args, preset)
        self.adapter = WeakTrAdapter(regularizer, eps=eps, align_corners=preset.align_corners)
        self.fine = FineCam(model, args.semples_reach)
        self.log = host_options.LossLog()

    @property
    def learns_prompts(self) -> bool:
        """Whether this run is stage (b)."""
        return bool(self.args.semples == "prompts")

    def watch(self) -> None:
        """Sets the hooks for the next forward pass; `__call__` removes them."""
        if self.adapter is not None:
            self.fine.__enter__()

    def __call__(self, loss: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """WeakTr's loss with the objectives added, or the objectives alone with `--semples-alone`."""
        if self.adapter is None:
            return loss
        with self.fine:
            objectives = self.adapter.loss(images, self.fine(), labels)
        self.log(self.adapter.losses)
        return objectives if self.args.semples_alone else loss + objectives

    def learn_prompts(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Stage (b): walks a loader of (images, labels) once and writes `--semples-prompts`."""
        assert self.adapter is not None

        def walk() -> Iterator[tuple[Tensor, ...]]:
            for images, labels in loader:
                images = images.to(device)
                self.model(images)
                yield images, self.fine(), labels

        with self.fine, evaluating(self.model) as device:
            learning = {"origin": self.model, **host_options.learning_options(self.args)}
            self.adapter.learn_prompts(walk(), self.args.semples_prompts, **learning)
        print(f"SemPLeS: wrote {self.args.semples_prompts}; stage (c): --semples refine")


def _print_departures(args: argparse.Namespace, preset: Preset) -> None:
    """Prints which of WeakTr's options differ from the preset's; `args.lr` is WeakTr's final one by now."""
    batch = args.batch_size * world_size()
    departures = preset.departures(lr=args.lr, batch_size=batch, epochs=args.epochs, weight_decay=args.weight_decay)
    if departures and is_first():
        print(f"SemPLeS: stages (a) and (c) are trained by WeakTr's options: {departures}")


def _check_options(args: argparse.Namespace) -> None:
    needs_trained = args.semples == "prompts" or args.semples_alone
    if needs_trained and not args.semples_start:
        hint = "; WeakTr reads --resume for --gen_attention_maps alone" if args.resume else ""
        raise ValueError(
            f"head and fusion must have been trained: give --semples-start CHECKPOINT, WeakTr's or (a)'s{hint}"
        )
    painting = {"--aa=": args.aa, "--color-jitter 0": args.color_jitter, "--reprob 0": args.reprob}
    needed = [option for option, value in painting.items() if value]
    if args.semples == "prompts" and needed:
        raise ValueError(
            f"stage (b) describes images, and augmentations would paint over them: give {' '.join(needed)}"
        )
