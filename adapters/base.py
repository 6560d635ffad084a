"""What an adapter is, and the one for a CAM model of one's own.

A host has CAMs, labels and images; the objectives want soft masks in [0, 1] that carry gradients, images of known
statistics, and nothing else. An adapter stands between the two. It says

- how the host's CAMs become masks (`masks`),
- what of the host's images is no image at all, such as padding (`images`),
- and it gives the host one scalar to add to its loss (`loss`), and stage (b) as one call (`learn_prompts`).

Which parameters the objectives reach depends on the host's graph; where a host cuts it, its adapter says so.
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
        eps: of the normalisation of "relu" and "min-max", in the units of the CAMs; None for that of `ClassMasks`.
        scale: factor of the whole loss, to fit the host's own.

    Attributes:
        losses: the named, weighted parts of the last `loss`, detached, to log.
    """

    def __init__(
        self, regularizer: SemPLeSRegularizer, kind: str = "relu", *, eps: float | None = None, scale: float = 1.0
    ) -> None:
        check_kind(kind)
        self.regularizer, self.kind, self.eps, self.scale = regularizer, kind, eps, scale
        self.losses: dict[str, Tensor] = {}
        self._looked = False

    def masks(self, cams: Tensor, labels: Tensor) -> ClassMasks:
        """Masks `[P, h, w]` in [0, 1] of the present classes, from CAMs `[N, K, h, w]` and labels `[N, K]`."""
        masks = ClassMasks.from_dense(cams, labels)
        if not self._looked and len(masks):
            self._look(masks.maps)
        return masks.of_kind(self.kind, self.eps)

    @torch.no_grad()
    def _look(self, maps: Tensor) -> None:
        """Warns, at the first batch, of CAMs that make masks in [0, 1] and yet are of another kind."""
        self._looked, lowest, highest = True, float(maps.min()), float(maps.max())
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
        """The images as the objectives are to see them; here as they are."""
        return images

    def loss(self, images: Tensor, cams: Tensor, labels: Tensor) -> Tensor:
        """The scalar to add to the host's loss: L_match (1) and, with prompts, L_refine (3).

        Args:
            images: the host's batch `[N, 3, H, W]`, in its own statistics.
            cams: of these images, on the graph.
            labels: multi-hot `[N, K]`.
        """
        losses = self.regularizer(self.images(images), self.masks(cams, labels))
        self.losses = {name: self.scale * value.detach() for name, value in losses.items()}
        return self.scale * sum_of(losses)

    def learn_prompts(self, batches: Iterable[tuple[Any, ...]], path: str | Path, **options: Any) -> PromptHistory:
        """Stage (b): learns the regularizer's prompts from one walk over `batches` and saves them.

        Args:
            batches: (images, cams, labels) as for `loss`, made by the matched generator in eval mode; a fourth part
                may name the N images. Under torch.distributed every rank gives its own part of the data, and all
                learn the same prompts; the names let an image count once that samplers repeat.
            path: file to write. An interrupted call continues when it is made again; see `work_dir` of
                `learn_background_prompts`.
            options: of `learn_background_prompts`; give the generator, or the name of its checkpoint, as `origin`.
        """

        def pairs() -> Iterator[tuple[Any, ...]]:
            for images, cams, labels, *names in batches:
                yield self.images(images), self.masks(cams, labels).detach(), *names

        options.setdefault("work_dir", f"{path}.unfinished")
        options["origin"] = f"{name_origin(options.get('origin', ''))} {self.kind} {self.eps}"
        with torch.no_grad():
            return learn_background_prompts(self.regularizer, pairs(), save_to=path, **options)


class WrappedCams(CamAdapter):
    """A CAM model of one's own together with its objectives; see `wrap`."""

    def __init__(self, model: nn.Module, regularizer: SemPLeSRegularizer, kind: str, eps: float | None) -> None:
        super().__init__(regularizer, kind, eps=eps)
        self.model = model

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the model: its CAMs `[N, K, h, w]`, for a loss of one's own, and the scalar to add to that."""
        cams = self.model(images)
        return cams, self.loss(images, cams, labels)

    def learn_prompts(self, batches: Iterable[tuple[Tensor, ...]], path: str | Path, **options: Any) -> PromptHistory:
        """Stage (b) from the host's loader of (images, labels), with the model in eval mode meanwhile.

        Batches of three, (images, labels, names), name the images, see `CamAdapter.learn_prompts`.
        """
        model = without_ddp(self.model)
        with evaluating(model) as device:

            def walk() -> Iterator[tuple[Any, ...]]:
                for batch in batches:
                    if not (isinstance(batch, (tuple, list)) and len(batch) in (2, 3)):
                        raise TypeError(
                            "batches: expected pairs (images, labels), or (images, labels, names), got "
                            f"{type(batch).__name__}; a loader of another kind is walked as "
                            '((batch["image"], batch["label"]) for batch in loader)'
                        )
                    images, labels = batch[0].to(device), batch[1]
                    yield images, model(images), labels, *batch[2:]

            return super().learn_prompts(walk(), path, **{"origin": model, **options})


def wrap(
    cam_model: nn.Module, regularizer: SemPLeSRegularizer, kind: str = "relu", eps: float | None = None
) -> WrappedCams:
    """Objectives for any module that returns dense CAMs `[N, K, h, w]`.

        semples = wrap(model, regularizer, kind="relu")
        cams, loss = semples(images, labels)            # in every step; semples.losses has the named parts, to log
        semples.learn_prompts(loader, "prompts.safetensors", **preset.learning_options())   # (b), between (a) and (c)

    The result is no `nn.Module`: optimise, save and wrap in DDP your own model, as before.

    Args:
        cam_model: left as it is; it stays yours to train and to save.
        regularizer: with your image statistics.
        kind: "logits" (per pixel), "sigmoid" (in [0, 1]), "relu" (or signed) or "min-max" (non-negative), see
            `ClassMasks.of_kind`.
        eps: of the normalisation of the last two, in the units of the CAMs; None for that of `ClassMasks`.
    """
    if not isinstance(regularizer, SemPLeSRegularizer):
        raise TypeError(f"regularizer: expected a SemPLeSRegularizer, got {type(regularizer).__name__}")
    return WrappedCams(cam_model, regularizer, kind, eps)


def without_ddp(model: nn.Module) -> nn.Module:
    """The model inside of DDP, whose forward pass would wait for ranks that have no batch left."""
    inside: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inside


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """`with evaluating(model) as device`: eval mode and no gradients; every module's mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    anything = next(chain(model.parameters(), model.buffers()), None)
    try:
        with torch.no_grad():
            yield torch.device("cpu") if anything is None else anything.device
    finally:
        for module, training in modes.items():
            module.training = training
