"""The epochs of stage (b), over features that are encoded already, and their history."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from semples_plugin.prompt_learning.feature_store import PairFeatures
from semples_plugin.prompt_learning.work_dir import STATE_FILE, State, WorkDir
from semples_plugin.prompt_quality import ClassQuality, Nearness, describe_quality, measure
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import SemPLeSRegularizer, sum_of
from semples_plugin.utils.checks import check_number
from semples_plugin.utils.distributed import from_first, is_first, on_first

_ROOM = Path(__file__).parent


@dataclass
class PromptHistory:
    """What the prompts did while they learned, as `learn_background_prompts` returns it.

    >>> history = PromptHistory(["train", "boat"], pairs=[3, 0], loss=[0.9, 0.4], unseen=["boat"])
    >>> history.to_dict()["loss"]  # lists, strings and numbers alone, ready for json.dumps
    [0.9, 0.4]

    Attributes:
        class_names: K names.
        pairs: K counts of the (image, class) pairs that taught each prompt.
        loss: per epoch, L_prompt averaged over its steps.
        background: per epoch, K mean similarities sim(u_b, v_b); NaN for a class that was never seen.
        label: per epoch, K similarities sim(u_b, u_f) at its end.
        unseen: names of the classes without a pair; their prompts are not learned, unless one is shared by all.
        quality: of each class, what its prompt was near to before it learned anything, and is at the end.
        verdict: one sentence on whether (b) went well, and what to do where it did not.
    """

    class_names: list[str]
    pairs: list[int]
    loss: list[float] = field(default_factory=list)
    background: list[list[float]] = field(default_factory=list)
    label: list[list[float]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    quality: list[ClassQuality] = field(default_factory=list)
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of lists, strings and numbers."""
        return asdict(self)

    @property
    def separation(self) -> float | None:
        """Share of all pairs, in [0, 1], whose background is nearer to the prompt than their foreground, at the end.

        None where foregrounds weren't measured.
        """
        measured = [(each.after.separation, count) for each, count in zip(self.quality, self.pairs, strict=True)]
        counted = [(share, count) for share, count in measured if share is not None and count]
        pairs = sum(self.pairs)
        return sum(share * count for share, count in counted) / pairs if counted else None


@dataclass(frozen=True)
class LearningOptions:
    """Options of `learn_background_prompts`, in Python's own numbers: a state file could not have numpy's.

    Raises:
        TypeError, ValueError: for one of another type or range.
    """

    epochs: int = 60
    lr: float = 5e-4
    batch_size: int = 128
    weight_decay: float = 0.01
    seed: int = 0
    shared: bool = False
    mask_tau: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name}: expected an integer, got {value!r:.80}")
            object.__setattr__(self, name, int(value))
        if not isinstance(self.shared, bool):
            raise TypeError(f"shared: expected True or False, got {self.shared!r:.80}")
        check_number("mask_tau", self.mask_tau, 0, 1, above=True)
        for name in ("lr", "weight_decay", "mask_tau"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name}: expected a number, got {value!r:.80}")
            object.__setattr__(self, name, float(value))
        in_range = self.epochs >= 1 and self.batch_size >= 1 and 0 < self.lr < math.inf
        if not in_range or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"expected epochs and batch_size of at least 1, a finite lr above 0 and weight_decay of at least 0, "
                f"got {self.epochs}, {self.batch_size}, {self.lr}, {self.weight_decay}"
            )


class LearningRun:
    """The epochs over features that are encoded already.

    Args:
        regularizer: with the prompts to learn.
        features: of all pairs of all ranks.
        options: of `learn_background_prompts`.
        folder: gets the state after every epoch.
        settings: of the run, which the state is kept with.
        progress: show a progress bar.
    """

    def __init__(
        self,
        regularizer: SemPLeSRegularizer,
        features: PairFeatures,
        options: LearningOptions,
        folder: WorkDir,
        settings: dict[str, Any],
        progress: bool,
    ) -> None:
        device = regularizer.clip.device
        self.regularizer = regularizer
        self.prompts = regularizer._need_prompts()
        self.options = options
        self.folder = folder
        self.settings = settings
        self.progress = progress
        self.features = features.to(device)
        self.pairs = torch.bincount(features.class_index, minlength=self.prompts.num_classes).to(device)
        self.steps = math.ceil(len(features) / options.batch_size)  # of an epoch
        self.history = history = PromptHistory(list(regularizer.class_names), self.pairs.tolist())
        counts = zip(history.class_names, history.pairs, strict=True)
        history.unseen = [name for name, count in counts if count == 0]

    def run(self, state: State | None) -> PromptHistory:
        """Learns all epochs, or those that `state` lacks."""
        prompts, options, history = self.prompts, self.options, self.history
        if history.unseen and not options.shared:
            warn_caller(
                f"no image shows {', '.join(history.unseen)}: their prompts are not learned and would suppress "
                "nothing in particular; check the labels, or leave these classes out"
            )
        with _trainable(prompts):
            self._begin(state)
            bar = tqdm(
                range(len(history.loss), options.epochs),
                "prompts",
                options.epochs,
                initial=len(history.loss),
                disable=not (self.progress and is_first()),
            )
            for epoch in bar:
                self._learn_epoch(epoch)
                bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
                on_first(partial(self.folder.write_state, self._state(epoch + 1)))
            history.quality = self._quality(self._measure())
            history.verdict = describe_quality(history.quality, options.shared)
            prompts.seed, prompts.learned, prompts.quality = options.seed, True, tuple(history.quality)
        return history

    def _begin(self, state: State | None) -> None:
        """Measures the prompts and makes optimizer and schedule, as they were when the state was written."""
        prompts, options = self.prompts, self.options
        if options.shared:
            _assign(prompts, prompts.vectors[:1].expand_as(prompts.vectors))
        self.start = prompts.vectors.detach().clone()
        self.before: Sequence[Nearness | None] = self._measure()
        if prompts.learned:  # what they were near to before they learned anything, where that is known
            self.before = [quality.before for quality in prompts.quality] or [None] * prompts.num_classes
        self.optimizer = torch.optim.AdamW([prompts.vectors], lr=options.lr, weight_decay=options.weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=options.epochs * self.steps)
        if state is not None:
            try:
                self._restore(state)
            except Exception as error:
                raise self.folder.damage_error(STATE_FILE) from error

    def _restore(self, state: State) -> None:
        history = self.history
        _assign(self.prompts, state["vectors"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        history.loss, history.background, history.label = map(list, state["history"])

    def _state(self, done: int) -> State:
        history = self.history
        return {
            "run": self.settings,
            "done": done,
            "vectors": self.prompts.vectors.detach().cpu(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": [history.loss, history.background, history.label],
        }

    def _learn_epoch(self, epoch: int) -> None:
        """One pass over the pairs in an order of the epoch's own, and its figures for the history."""
        generator = _generator(self.options.seed, epoch)
        order = torch.randperm(len(self.features), generator=generator)
        total = torch.zeros((), device=self.pairs.device)
        for chosen in order.split(self.options.batch_size):
            total += self._step(chosen)
        # Weight decay moves the prompts of unseen classes, too: they are put back.
        learned = (self.pairs > 0)[:, None, None] | self.options.shared
        vectors = torch.where(learned, self.prompts.vectors, self.start).detach()
        _assign(self.prompts, from_first(vectors.cpu()))  # ranks may round differently
        self._record(epoch, float(total) / self.steps)

    def _step(self, chosen: Tensor) -> Tensor:
        """One step of the optimizer, on the chosen pairs `[B]`, and its L_prompt; `chosen` lies on the CPU."""
        self.optimizer.zero_grad()
        pairs = self.features.take(chosen, foregrounds=self.regularizer.weights.prompt_foreground > 0)
        loss = sum_of(self.regularizer.prompt_losses_of(pairs.backgrounds, pairs.class_index, pairs.foregrounds))
        loss.backward()
        gradient = self.prompts.vectors.grad
        if self.options.shared and gradient is not None:  # of equal vectors, which so stay equal
            gradient.copy_(gradient.sum(dim=0).expand_as(gradient))
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _record(self, epoch: int, loss: float) -> None:
        """Adds an epoch to the history; a ValueError where the prompts diverged in it."""
        # The last step's vectors are in no loss, so that they are checked as well.
        if not (math.isfinite(loss) and bool(self.prompts.vectors.isfinite().all())):
            raise ValueError(f"the prompts diverged in epoch {epoch + 1}, L_prompt {loss:.3g}; take a smaller lr")
        nearness = self._measure()
        history = self.history
        history.loss.append(loss)
        history.background.append([math.nan if near.background is None else near.background for near in nearness])
        history.label.append([near.label for near in nearness])

    def _measure(self) -> list[Nearness]:
        """What each prompt is near to now."""
        return measure(
            self.history.class_names,
            self.regularizer.prompt_features(),
            self.regularizer.label_features,
            self.features.chunks(),
        )

    def _quality(self, nearness: Sequence[Nearness]) -> list[ClassQuality]:
        """What each prompt was near to before it learned anything, and is by `nearness`."""
        history = self.history
        columns = zip(history.class_names, self.before, nearness, history.pairs, strict=True)
        return [ClassQuality(name, before, after, pairs) for name, before, after, pairs in columns]


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A generator of the epoch's own, so that a resumed run draws the same orders."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


@contextmanager
def _trainable(prompts: BackgroundPrompts) -> Iterator[None]:
    """Lets the prompts learn, whatever the caller's modes; an exception gives them their start back."""
    required, start = prompts.vectors.requires_grad, copy.deepcopy(prompts.state_dict())
    prompts.vectors.requires_grad_(True)  # a host may have frozen them
    try:
        # The caller may be under no_grad, where its batches make the masks, or under autocast.
        with torch.enable_grad(), torch.autocast(prompts.vectors.device.type, enabled=False):
            yield
    except BaseException:
        prompts.load_state_dict(start)  # half-learned prompts would be the start of the next call
        raise
    finally:
        prompts.vectors.requires_grad_(required)
        prompts.vectors.grad = None


@torch.no_grad()
def _assign(prompts: BackgroundPrompts, vectors: Tensor) -> None:
    prompts.vectors.copy_(vectors)  # unlike a change of `.data`, autograd counts it, and kept features are renewed


def warn_caller(message: str) -> None:
    """Warns the caller of `learn_background_prompts`, and on the first rank alone."""
    if not is_first():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and Path(frame.f_code.co_filename).parent == _ROOM:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
