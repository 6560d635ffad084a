"""SemPLeS around a CAM network: the baseline, then stages (a), (b) and (c), as `real_photographs.py` trains them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from cam_networks import Backbone
from torch import Tensor, nn
from tqdm import tqdm
from voc_photographs import Dataset

from semples_plugin import (
    BackgroundPrompts,
    ClassMasks,
    FrozenClip,
    LossWeights,
    SemPLeSRegularizer,
    learn_background_prompts,
)
from semples_plugin.prompt_quality import went_well
from semples_plugin.regularizer import sum_of
from semples_plugin.utils.checks import check_number

LossOf = Callable[[nn.Module, Tensor], Tensor]
"""The loss of a CAM network on the training images of some indices."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        title: what it is.
        stages: "baseline", or SemPLeS's: "match" (a), "prompts" (b), "refine" (c). (a) and (c) start from the
            baseline, (b) looks at the masks of the row "match".
        changes: settings of this row alone, by their names in `Settings`.
    """

    title: str
    stages: tuple[str, ...]
    changes: Mapping[str, float] = field(default_factory=dict)

    @property
    def after(self) -> str | None:
        """The row that must be trained before this one."""
        return {"baseline": None, "prompts": "match"}.get(self.stages[0], "baseline")


def setting(default: float, stages: str, help_: str) -> Any:
    """A field of `Settings`: an option, and the stages that it matters to."""
    return field(default=default, metadata={"stages": set(stages.split()), "help": help_})


@dataclass(frozen=True)
class Settings:
    """Weights and schedules of all rows; each is an option of the command line."""

    batch_size: int = setting(16, "baseline match refine", "images per step")
    baseline_steps: int = setting(100, "baseline", "steps of the baseline")
    baseline_lr: float = setting(3e-3, "baseline", "learning rate of the baseline's classifier")
    backbone_lr: float = setting(1e-4, "baseline", "learning rate of the baseline's backbone")
    steps: int = setting(100, "match refine", "steps of (a), and of (c)")
    lr: float = setting(1e-4, "match refine", "learning rate of (a) and (c)")
    lambda_cls: float = setting(0.0, "match refine", "weight of the image labels' own loss beside (a) and (c)")
    lambda_b: float = setting(0.6, "match refine", "weight of the background term in (1); the paper: 2.4 for VOC")
    lambda_refine: float = setting(0.2, "refine", "lambda, the weight of refinement (3); the paper: 0.05 for VOC")
    refine_share: float = setting(0.0, "refine", "instead of lambda, refinement's pull beside matching's; 0: lambda")
    lambda_t: float = setting(0.02, "prompts", "weight of the text term in (2)")
    lambda_f: float = setting(0.0, "prompts", "weight of a term that keeps prompts off the object; not in the paper")
    prompt_tau: float = setting(1.0, "prompts", "(b) takes min(M / tau, 1) for masks; the paper: 1")
    prompt_shared: int = setting(0, "prompts", "1: (b) learns one prompt for all classes; the paper: 0")
    prompt_length: int = setting(16, "prompts refine", "vectors of a prompt; the paper: 30")
    prompt_steps: int = setting(300, "prompts", "steps of (b)")
    prompt_batch_size: int = setting(128, "prompts", "pairs per step of (b)")
    prompt_lr: float = setting(2e-2, "prompts", "learning rate of (b)")

    def __post_init__(self) -> None:
        for name in ("baseline_lr", "backbone_lr", "lr", "prompt_lr", "refine_share", "lambda_cls"):
            check_number(name, getattr(self, name), 0)
        check_number("prompt_tau", self.prompt_tau, 0, 1, above=True)
        check_number("prompt_shared", self.prompt_shared, 0, 1, whole=True)
        assert self.weights  # which refuse what they can't be

    @property
    def weights(self) -> LossWeights:
        """Those of the regularizer."""
        return LossWeights(
            background=self.lambda_b, refine=self.lambda_refine, text=self.lambda_t, prompt_foreground=self.lambda_f
        )

    def of(self, row: Row) -> dict[str, float]:
        """Those that matter to a row, with its changes."""
        own = replace(self, **row.changes)
        stages = set(row.stages)
        return {each.name: getattr(own, each.name) for each in fields(own) if each.metadata["stages"] & stages}


@dataclass
class Trained:
    """What a row's training left: the network, the prompts where there are some, and how it went."""

    network: nn.Module
    prompts: BackgroundPrompts | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Experiment:
    """One data set, one backbone and one CLIP, with which any row is trained."""

    def __init__(self, data: Dataset, backbone: Backbone, clip: FrozenClip, settings: Settings, device: str) -> None:
        self.data, self.backbone, self.clip = data, backbone, clip
        self.settings, self.device = settings, device
        self.labels = data.train.labels.to(device)

    def keep_features(self) -> None:
        """Computes what the fixed part of the backbone makes of every photograph, once."""
        for photographs in (self.data.train, self.data.val):
            if self.backbone.lower is not None and photographs.features is None:
                photographs.keep_features(self.backbone.lower.to(self.device), self.device)

    def train(self, row: Row, seed: int, title: str, network_of: Callable[[str], nn.Module]) -> Trained:
        """Trains a row; `network_of` gives the networks of rows that were trained before, of the same seed."""
        settings = replace(self.settings, **row.changes)
        if row.stages == ("baseline",):
            return self._train_baseline(settings, seed, title)
        regularizer = self._regularizer(settings)
        notes = {}
        if "refine" in row.stages:
            prompts = BackgroundPrompts.for_clip(self.clip, self.data.class_names, settings.prompt_length, seed=seed)
            regularizer.prompts = prompts
            if "prompts" in row.stages:
                notes = self._learn_prompts(regularizer, settings, seed, network_of("match"))
            else:
                prompts.learned = True  # a row of the table, no mistake to warn of

        def loss_of(network: nn.Module, index: Tensor) -> Tensor:
            cams = self._cams(network, index)
            losses = regularizer(self._images(index), self._masks(cams, index))
            return sum_of(losses) + settings.lambda_cls * self._classification_loss(cams, index)

        network = network_of("baseline")
        optimizer = torch.optim.AdamW(network.parameters(), settings.lr)
        # The same batches for every row, so that rows differ by their losses alone.
        batches = self._batches(settings.steps, settings.batch_size, seed, stream=1)
        losses = self._train(network, optimizer, loss_of, batches, settings.steps, title)
        return Trained(network, regularizer.prompts, {**notes, "loss": losses})

    def _train_baseline(self, settings: Settings, seed: int, title: str) -> Trained:
        """Image labels alone."""

        def loss_of(network: nn.Module, index: Tensor) -> Tensor:
            return self._classification_loss(self._cams(network, index), index)

        torch.manual_seed(seed)
        network = self.new_network()
        groups = [
            {"params": network.upper.parameters(), "lr": settings.backbone_lr},
            {"params": network.classifier.parameters(), "lr": settings.baseline_lr},
        ]
        steps = settings.baseline_steps
        batches = self._batches(steps, settings.batch_size, seed, stream=0)
        losses = self._train(network, torch.optim.AdamW(groups), loss_of, batches, steps, title)
        return Trained(network, notes={"loss": losses})

    def new_network(self) -> nn.Module:
        """An untrained CAM network."""
        return self.backbone.cam_network(len(self.data.class_names)).to(self.device)

    def _regularizer(self, settings: Settings) -> SemPLeSRegularizer:
        statistics = {"input_mean": self.backbone.mean, "input_std": self.backbone.std}
        share = settings.refine_share or None
        return SemPLeSRegularizer(
            self.clip, self.data.class_names, weights=settings.weights, refine_share=share, **statistics
        )

    def _learn_prompts(
        self, regularizer: SemPLeSRegularizer, settings: Settings, seed: int, matched: nn.Module
    ) -> dict[str, Any]:
        """(b): prompts learn the backgrounds of the matched network's masks; returns how it went."""

        @torch.no_grad()
        def walk() -> Iterator[tuple[Tensor, ClassMasks]]:
            for index in self.data.train.parts():
                yield self._images(index), self._masks(self._cams(matched, index), index)

        pairs = int(self.labels.sum())
        # A verdict that is bad comes as a warning, in the midst of bars.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            history = learn_background_prompts(
                regularizer,
                walk(),
                epochs=max(1, round(settings.prompt_steps * settings.prompt_batch_size / pairs)),
                lr=settings.prompt_lr,
                batch_size=settings.prompt_batch_size,
                seed=seed,
                shared=bool(settings.prompt_shared),
                mask_tau=settings.prompt_tau,
            )
        if not went_well(history.quality):
            print(history.verdict)
        return {"separation": history.separation, "verdict": history.verdict}

    def _images(self, index: Tensor) -> Tensor:
        return self.data.train.images(index, self.device)

    def _cams(self, network: nn.Module, index: Tensor) -> Tensor:
        """Raw CAMs `[n, K, h, w]`."""
        return network(self.data.train.inputs(index, self.device))

    def _masks(self, cams: Tensor, index: Tensor) -> ClassMasks:
        return ClassMasks.from_dense(cams, self.data.train.labels[index]).max_normalized()

    def _classification_loss(self, cams: Tensor, index: Tensor) -> Tensor:
        """Classification by the means of the raw CAMs."""
        return F.multilabel_soft_margin_loss(cams.mean((2, 3)), self.labels[index])

    def _batches(self, steps: int, size: int, seed: int, stream: int) -> Iterator[Tensor]:
        """Indices of training images, shuffled anew for every pass."""
        generator = torch.Generator().manual_seed(1000 * seed + stream)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(self.data.train), generator=generator)
            yield order[:size]
            order = order[size:]

    def _train(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: LossOf,
        batches: Iterator[Tensor],
        steps: int,
        title: str,
    ) -> list[float]:
        """Trains in place, with a cosine schedule; returns the mean loss of the first and of the last third."""
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for index in tqdm(batches, title, steps, unit="step"):
            loss = loss_of(network, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        third = max(steps // 3, 1)
        return [sum(losses[:third]) / third, sum(losses[-third:]) / third]
