"""The base class of adapters, and `wrap`, the adapter for any CAM model.

A host has CAMs, labels and images; the objectives need soft masks in [0, 1] that carry gradients, and images
of known statistics. An adapter converts one into the other. It defines

- how the host's CAMs become masks (`masks`),
- which pixels of the host's images are no image, such as padding (`images`),
- one scalar to add to the host's loss (`loss`), and stage (b) as one call (`learn_prompts`).

Which parameters get gradients from the objectives depends on the host's graph: an adapter's docstring names
the places where its host detaches.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semples_plugin.masks import ClassMasks, check_kind
from semples_plugin.prompt_learning.epochs import PromptHistory
from semples_plugin.prompt_learning.learn import learn_background_prompts
from semples_plugin.prompt_learning.work_dir import name_origin
from semples_plugin.regularizer import SemPLeSRegularizer, sum_of


class CamAdapter:
    """Adds the objectives to the training of dense CAMs.

    Args:
        regularizer: without prompts for stage (a), with prompts for (c); its image statistics are the host's.
        kind: what the CAMs are, see `ClassMasks.of_kind`.
        eps: of the normalisation of "relu" and "min-max", in the units of the CAMs; None for that of
            `ClassMasks`.
        scale: factor of the whole loss, to fit the host's own.

    Attributes:
        losses: the named, weighted terms of the last `loss`, detached, to log.
    """

    def __init__(
        self, regularizer: SemPLeSRegularizer, kind: str = "relu", *, eps: float | None = None, scale: float = 1.0
    ) -> None:
        check_kind(kind)
        self.regularizer, self.kind, self.eps, self.scale = regularizer, kind, eps, scale
        self.losses: dict[str, Tensor] = {}
        self._kind_is_checked = False

    def masks(self, cams: Tensor, labels: Tensor) -> ClassMasks:
        """Masks `[P, h, w]` in [0, 1] of the present classes, from CAMs `[N, K, h, w]` and labels `[N, K]`."""
        pairs = ClassMasks.from_dense(cams, labels)
        if not self._kind_is_checked and len(pairs):
            self._kind_is_checked = True
            self._warn_of_another_kind(pairs.maps)
        return pairs.of_kind(self.kind, self.eps)

    @torch.no_grad()
    def _warn_of_another_kind(self, maps: Tensor) -> None:
        """Warns of CAMs that make masks in [0, 1] but seem to be of another kind than `kind`."""
        lowest, highest = float(maps.min()), float(maps.max())
        if self.kind == "relu" and highest <= 0:
            what = 'without a positive value: their masks are empty; is it "logits"?'
        elif self.kind == "logits" and lowest >= 0:
            what = 'without a negative value: as logits they make masks of 0.5 and more everywhere; is it "relu"?'
        elif self.kind == "min-max" and lowest < 0:
            what = f'with negative values ({lowest:.2g}), whose zero min-max would move; is it "relu", or "logits"?'
        else:
            return
        warnings.warn(f'kind="{self.kind}" got CAMs {what}', UserWarning, stacklevel=2)

    def images(self, images: Tensor) -> Tensor:
        """The images `[N, 3, H, W]` that the objectives see; here unchanged."""
        return images

    def loss(self, images: Tensor, cams: Tensor, labels: Tensor) -> Tensor:
        """The scalar to add to the host's loss: L_match (1) and, with prompts, L_refine (3).

        Args:
            images: the host's batch `[N, 3, H, W]`, normalised by the host's mean and standard deviation.
            cams: of these images, on the graph; `[N, K, h, w]`, unless the adapter says otherwise.
            labels: multi-hot `[N, K]`; on the CPU where they come from there, since a device is waited for.
        """
        losses = self.regularizer(self.images(images), self.masks(cams, labels))
        self.losses = {name: self.scale * value.detach() for name, value in losses.items()}
        return self.scale * sum_of(losses)

    def learn_prompts(self, batches: Iterable[tuple[Any, ...]], path: str | Path, **options: Any) -> PromptHistory:
        """Stage (b): learns the regularizer's prompts from one walk over `batches` and saves them.

        Args:
            batches: (images, cams, labels) as for `loss`, made by the matched CAM network in eval mode; a
                fourth item may name the N images. Under torch.distributed every rank gives its own share of
                the data, and all learn the same prompts; with names, an image that a sampler repeats counts
                once.
            path: file to write. An interrupted call continues when it is made again; see `work_dir` of
                `learn_background_prompts`.
            options: of `learn_background_prompts`; give the CAM network, or the name of its checkpoint, as
                `origin`.
        """

        def pairs() -> Iterator[tuple[Any, ...]]:
            for images, cams, labels, *names in batches:
                yield self.images(images), self.masks(cams, labels).detach(), *names

        options.setdefault("work_dir", f"{path}.unfinished")
        options["origin"] = f"{name_origin(options.get('origin', ''))} {self.kind} {self.eps}"
        with torch.no_grad():
            return learn_background_prompts(self.regularizer, pairs(), save_to=path, **options)


class WrappedCams(CamAdapter):
    """Any CAM model together with its objectives; see `wrap`."""

    def __init__(self, model: nn.Module, regularizer: SemPLeSRegularizer, kind: str, eps: float | None) -> None:
        super().__init__(regularizer, kind, eps=eps)
        self.model = model

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the model: its CAMs `[N, K, h, w]`, for the host's own loss, and the scalar to add to that loss."""
        if isinstance(labels, Tensor):
            labels = labels.cpu()  # a device is waited for here, before the model's work is queued on it
        cams = self.model(images)
        return cams, self.loss(images, cams, labels)

    def learn_prompts(self, batches: Iterable[tuple[Tensor, ...]], path: str | Path, **options: Any) -> PromptHistory:
        """Stage (b) from the host's loader of (images, labels), with the model in eval mode meanwhile.

        Batches (images, labels, names) name the images, see `CamAdapter.learn_prompts`.

        Raises:
            TypeError: for batches of another form.
        """
        model = without_ddp(self.model)
        with evaluating(model) as device:

            def walk() -> Iterator[tuple[Any, ...]]:
                for batch in batches:
                    _check_batch(batch)
                    images, labels, *names = batch
                    images = images.to(device)
                    yield images, model(images), labels, *names

            return super().learn_prompts(walk(), path, **{"origin": model, **options})


def _check_batch(batch: Any) -> None:
    if not (isinstance(batch, (tuple, list)) and len(batch) in (2, 3)):
        raise TypeError(
            "batches: expected pairs (images, labels), or (images, labels, names), got "
            f"{type(batch).__name__}; a loader of another kind is walked as "
            '((batch["image"], batch["label"]) for batch in loader)'
        )


def wrap(
    cam_model: nn.Module, regularizer: SemPLeSRegularizer, kind: str = "relu", eps: float | None = None
) -> WrappedCams:
    """Objectives for any module that returns dense CAMs `[N, K, h, w]`.

    The result is no `nn.Module`: optimise, save and wrap in DDP your own model, as before.

    Args:
        cam_model: left unchanged; it stays yours to train and to save.
        regularizer: with your image statistics.
        kind: "logits" (per pixel), "sigmoid" (in [0, 1]), "relu" (or signed) or "min-max" (non-negative), see
            `ClassMasks.of_kind`.
        eps: of the normalisation of the last two, in the units of the CAMs; None for that of `ClassMasks`.

    Returns:
        An adapter, called in every step of (a) and (c); its `learn_prompts` is stage (b).

    Raises:
        TypeError: where `regularizer` is something else.
        ValueError: for another kind.

    >>> import torch
    >>> from semples_plugin import FrozenClip, SemPLeSRegularizer, wrap
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Conv2d(3, 2, kernel_size=8, stride=8)
    >>> regularizer = SemPLeSRegularizer(FrozenClip.load("demo"), ["train", "boat"])
    >>> semples = wrap(model, regularizer, kind="logits")
    >>> images, labels = torch.randn(4, 3, 64, 64), torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    >>> cams, loss = semples(images, labels)
    >>> cams.shape
    torch.Size([4, 2, 8, 8])
    >>> sorted(semples.losses)  # named terms of the loss, to log
    ['loss_match_background', 'loss_match_foreground']
    >>> loss.backward()  # yours: (your_loss(cams, labels) + loss).backward()
    >>> bool(model.weight.grad.any())
    True

    Stage (b), between (a) and (c), is one call:
    `semples.learn_prompts(loader, "prompts.safetensors", **preset.learning_options())`.
    """
    if not isinstance(regularizer, SemPLeSRegularizer):
        raise TypeError(f"regularizer: expected a SemPLeSRegularizer, got {type(regularizer).__name__}")
    return WrappedCams(cam_model, regularizer, kind, eps)


def without_ddp(model: nn.Module) -> nn.Module:
    """The model without DDP, whose forward pass would wait for ranks that have no batch left."""
    network: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return network


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Eval mode and no gradients; afterwards every module is in the mode in which it was.

    Yields:
        The model's device; the CPU for a model without parameters and buffers.
    """
    modes = {module: module.training for module in model.modules()}
    tensor = next(chain(model.parameters(), model.buffers()), None)
    model.eval()
    try:
        with torch.no_grad():
            yield torch.device("cpu") if tensor is None else tensor.device
    finally:
        for module, training in modes.items():
            module.training = training
