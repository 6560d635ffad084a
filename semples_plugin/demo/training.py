"""The demo's world: one seed's scenes, its baseline, and the rows of the table that are trained from it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.demo.export import write_scenes, write_stage, write_world_report
from semples_plugin.demo.network import CamNet, normalize_images
from semples_plugin.demo.rows import ROWS, Row
from semples_plugin.demo.table import CamsOf, Judgement, draw_cams, judge, normalized_cams, slices
from semples_plugin.loss_weights import LossWeights
from semples_plugin.masks import ClassMasks
from semples_plugin.prompt_learning.epochs import PromptHistory
from semples_plugin.prompt_learning.learn import learn_background_prompts
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import SemPLeSRegularizer, sum_of


@dataclass(frozen=True)
class Recipe:
    """Settings of the demo. The paper's weights are for ViT-B/32; a tiny CLIP has other cosines."""

    train_images: int = 1000
    test_images: int = 300
    baseline_steps: int = 150
    baseline_lr: float = 2e-3
    steps: int = 100
    batch_size: int = 16
    lr: float = 5e-4
    prompt_length: int = 16
    prompt_steps: int = 200
    prompt_batch_size: int = 128
    prompt_lr: float = 2e-2
    weights: LossWeights = LossWeights(background=0.4, text=0.02, refine=0.2)  # noqa: RUF009, it is frozen


class World:
    """One seed: its scenes, its baseline and the rows that start from it.

    Attributes:
        networks: CAM network of each row, by its name in `ROWS`.
        prompts: of each row that has some, likewise.
        histories: of each row that learned some, likewise.
    """

    def __init__(self, clip: FrozenClip, seed: int, recipe: Recipe, progress: bool) -> None:
        self.clip, self.seed, self.recipe, self.progress = clip, seed, recipe, progress
        self.train = make_scenes(recipe.train_images, seed)
        self.test = make_scenes(recipe.test_images, seed + 10_000)
        self.images = normalize_images(self.train.images, clip.device)
        self.labels = torch.from_numpy(self.train.labels).to(clip.device)
        self.networks: dict[str, CamNet] = {}
        self.prompts: dict[str, BackgroundPrompts] = {}
        self.histories: dict[str, PromptHistory] = {}

    def run(self, names: Sequence[str]) -> dict[str, Judgement]:
        """Trains and judges the rows `names` of `ROWS`, which begin with "baseline" and "match"."""
        self.networks["baseline"] = self._train_baseline()
        for name in names[1:]:
            regularizer = self._regularizer(name)
            with warnings.catch_warnings():
                if ROWS[name].only_with:  # their prompts may be far from everything and teach nothing, as the row shows
                    warnings.simplefilter("ignore", UserWarning)
                self.networks[name] = self._train(regularizer, name)
        return {name: judge(self._cams_of(name), self.test) for name in names}

    def _regularizer(self, name: str) -> SemPLeSRegularizer:
        """Of a row, after its stage (b)."""
        row = ROWS[name]
        regularizer = SemPLeSRegularizer(self.clip, OBJECTS, weights=replace(self.recipe.weights, **row.weights))
        if row.prompts == "none":
            return regularizer
        prompts = BackgroundPrompts.for_clip(self.clip, OBJECTS, self.recipe.prompt_length, seed=self.seed)
        regularizer.prompts = self.prompts[name] = prompts
        if row.prompts == "unlearned":
            prompts.learned = True  # a row of the table, no mistake to warn of
        else:
            self.histories[name] = self._learn_prompts(regularizer, row)
        return regularizer

    def draw(self) -> np.ndarray:
        """The CAMs of baseline, matching and full on test scenes."""
        titles = {"baseline": "baseline", "match": "+ matching", "full": "+ SemPLeS"}
        return draw_cams(self.test, {title: self._cams_of(name) for name, title in titles.items()})

    def export(self, folder: Path) -> None:
        """Test scenes and CAMs as files, and a report on them."""
        titles = {"baseline": "baseline", "match": "(a) alone", "full": "SemPLeS"}
        write_scenes(folder, self.test)
        for name in titles:
            cams_of = self._cams_of(name)
            cams = [normalized_cams(cams_of, self.test, part) for part in slices(len(self.test))]
            write_stage(folder / "cams" / name, self.test, np.concatenate(cams))
        write_world_report(folder, titles, self.prompts["full"], self.clip, self.progress)

    def _cams_of(self, name: str) -> CamsOf:
        network = self.networks[name]
        return lambda part: network(normalize_images(self.test.images[part], self.clip.device))

    def _batches(self, steps: int, stream: int) -> Iterator[Tensor]:
        """Indices of training images, reshuffled for every pass."""
        generator = torch.Generator().manual_seed(self.seed * 1_000 + stream)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < self.recipe.batch_size:
                order = torch.randperm(len(self.images), generator=generator)
            yield order[: self.recipe.batch_size]
            order = order[self.recipe.batch_size :]

    def _train_baseline(self) -> CamNet:
        torch.manual_seed(self.seed)
        network = CamNet(len(OBJECTS)).to(self.clip.device).train()
        steps = self.recipe.baseline_steps
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.recipe.baseline_lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for index in self._bar(self._batches(steps, 0), steps, "baseline"):
            loss = _classification_loss(network(self.images[index]), self.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return network.eval()

    def _train(self, regularizer: SemPLeSRegularizer, name: str) -> CamNet:
        """Stage (a) or (c); both start from the baseline, as in the release, and keep its batch norm's statistics."""
        network = copy.deepcopy(self.networks["baseline"])
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.recipe.lr)
        # Every row sees the same batches, so that rows differ by their losses alone.
        for index in self._bar(self._batches(self.recipe.steps, 1), self.recipe.steps, name):
            cams, labels = network(self.images[index]), self.labels[index]
            masks = ClassMasks.from_dense(cams, labels).max_normalized()
            loss = sum_of(regularizer(self.images[index], masks))
            if ROWS[name].labels:
                loss = loss + ROWS[name].labels * _classification_loss(cams, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network

    def _learn_prompts(self, regularizer: SemPLeSRegularizer, row: Row) -> PromptHistory:
        recipe = self.recipe
        pairs = int(self.labels.sum())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of single classes, as the report says
            return learn_background_prompts(
                regularizer,
                self._matched_masks(),
                epochs=round(recipe.prompt_steps * recipe.prompt_batch_size / pairs),
                lr=recipe.prompt_lr,
                batch_size=recipe.prompt_batch_size,
                seed=self.seed,
                shared=row.shared,
                mask_tau=row.mask_tau,
                progress=self.progress,
            )

    @torch.no_grad()
    def _matched_masks(self) -> Iterator[tuple[Tensor, ClassMasks]]:
        """The training images in batches, with masks by the matched network."""
        for index in torch.arange(len(self.images)).split(100):
            cams = self.networks["match"](self.images[index])
            yield self.images[index], ClassMasks.from_dense(cams, self.labels[index]).max_normalized()

    def _bar(self, batches: Iterator[Tensor], steps: int, name: str) -> Iterator[Tensor]:
        return iter(tqdm(batches, f"seed {self.seed} {name}", steps, disable=not self.progress))


def _classification_loss(cams: Tensor, labels: Tensor) -> Tensor:
    """Of the image labels alone, by the means of the raw CAMs."""
    return F.binary_cross_entropy_with_logits(cams.mean((2, 3)), labels.float())
