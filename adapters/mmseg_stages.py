"""mmsegmentation, the schedule: a hook that takes a run through the stages (a), (b) and (c)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.loops import EpochBasedTrainLoop
from mmseg.registry import HOOKS
from torch import Tensor

from semples_plugin.adapters.base import evaluating
from semples_plugin.distributed import is_first
from semples_plugin.masks import ClassMasks
from semples_plugin.prompt_learning import learn_background_prompts
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.training_log import draw_pairs

STATE = "semples"  # key in mmengine's checkpoints


@HOOKS.register_module(force=True)
class SemPLeSStages(Hook):
    """Baseline, (a) matching, (b) prompts and (c) refinement in one run of mmengine's runner.

    Lengths are epochs under an epoch-based loop and iterations under an iteration-based one. Whatever comes after (a)
    is (c). Resuming from mmengine's checkpoints goes on in the same stage, with the same prompts; an interrupted (b)
    goes on from its own work folder.

    Args:
        match: length of (a). 0 begins with (c), for which the regularizer's config then names a prompts file.
        baseline: length of the training with `loss_cls` alone, before (a).
        restart: where (c) begins: "baseline", with the weights from which (a) began, as the authors' release does, or
            "matched", with those in which (a) ended.
        prompt_length: L.
        prompt_std: of their start; None for the size of CLIP's word vectors.
        learning: options of `learn_background_prompts`, such as `epochs`, `lr`, `batch_size`.
        seed: of the prompts.
        draw_interval: iterations between two pictures of masks, and, in (c), of where CLIP sees the prompts, through
            the runner's visualizer; 0 for none.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self,
        match: int,
        *,
        baseline: int = 0,
        restart: str = "baseline",
        prompt_length: int = 30,
        prompt_std: float | None = 0.02,
        learning: dict[str, Any] | None = None,
        seed: int = 0,
        draw_interval: int = 0,
    ) -> None:
        if match < 0 or baseline < 0:
            raise ValueError(f"expected lengths of at least 0, got baseline {baseline} and match {match}")
        if restart not in ("baseline", "matched"):
            raise ValueError(f'restart: expected "baseline" or "matched", got {restart!r}')
        self.baseline, self.match, self.restart = baseline, match, restart
        self.prompt_length, self.prompt_std, self.seed = prompt_length, prompt_std, seed
        self.learning, self.draw_interval = dict(learning or {}), draw_interval
        self._start: dict[str, Tensor] | None = None
        self._prompts: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Checks that the model has a regularizer, and takes up a resumed run's prompts."""
        regularizer = _model(runner).regularizer  # raises where there is none
        if self._prompts is not None:
            regularizer.prompts = self._read(self._prompts)
        if self.match == 0 and regularizer.prompts is None:
            raise ValueError(
                'match=0 begins with refinement: name its prompts, regularizer=dict(prompts="prompts.safetensors", ...)'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Changes the stage where an epoch-based loop has come to its end."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._enter(runner, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Changes the stage where an iteration-based loop has come to its end."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._enter(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draws the masks of a batch, and where CLIP sees their prompts."""
        model = _model(runner)
        if not (self.draw_interval and model.active and self.every_n_train_iters(runner, self.draw_interval)):
            return
        if is_first():
            with evaluating(model):
                images, masks = _masks_of(model, data_batch)
            picture = draw_pairs(images, masks, model.regularizer)
            runner.visualizer.add_image("semples_masks", picture, step=runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Puts the prompts, and the weights from which (c) begins, into mmengine's checkpoint."""
        prompts = _model(runner).regularizer.prompts
        checkpoint[STATE] = {"start": self._start, "prompts": None if prompts is None else _write(prompts)}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Takes them out of it again, where the run is resumed; `load_from` gives weights alone."""
        state = checkpoint.get(STATE)
        if state and runner._resume:
            self._start, self._prompts = state["start"], state["prompts"]

    def _enter(self, runner: Runner, progress: int) -> None:
        """Brings the model into the stage that belongs to so much progress; at its beginning and after a resume."""
        model = _model(runner)
        model.active = progress >= self.baseline
        if not model.active:
            return
        if self._start is None:
            self._start = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        if progress < self.baseline + self.match or model.regularizer.prompts is not None:
            return
        self._learn(runner)
        if self.restart == "baseline":
            model.load_state_dict(self._start)
            runner.optim_wrapper.optimizer.state.clear()  # momenta belong to the weights that are gone

    def _learn(self, runner: Runner) -> None:
        """(b): walks the runner's data once, in order, and learns the prompts."""
        model = _model(runner)
        regularizer = model.regularizer
        clip = regularizer.clip
        std = clip.token_std if self.prompt_std is None else self.prompt_std
        regularizer.prompts = BackgroundPrompts(
            len(regularizer.class_names), self.prompt_length, clip.text_width, std=std, seed=self.seed
        )
        folder = Path(runner.work_dir) / "semples"
        runner.logger.info("SemPLeS (b): learning prompts from the whole training set")
        try:
            # The walk must leave no trace in what follows: the order and the augmentations of (c) stay its own.
            with _same_randomness(), evaluating(model):
                history = learn_background_prompts(
                    regularizer,
                    self._walk(runner),
                    work_dir=folder / "prompts.unfinished",
                    save_to=folder / "prompts.safetensors",
                    seed=self.seed,
                    **self.learning,
                )
        except BaseException:
            regularizer.prompts = None  # the next try begins with (b) again
            raise
        runner.logger.info(
            "SemPLeS (b): L_prompt %.4f after %d epochs; prompts in %s; (c) from here on",
            history.loss[-1],
            len(history.loss),
            folder / "prompts.safetensors",
        )

    def _walk(self, runner: Runner) -> Iterator[tuple[Tensor, ClassMasks, list[str]]]:
        """Each image of the runner's data once, by its path; a sampler may repeat some for the sake of the ranks."""
        model, loader = _model(runner), runner.train_dataloader
        settings = {
            "dataset": loader.dataset,
            "batch_size": loader.batch_size,
            "num_workers": loader.num_workers,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": loader.collate_fn,
        }
        for batch in Runner.build_dataloader(settings, seed=self.seed):
            paths = [sample.metainfo["img_path"] for sample in batch["data_samples"]]
            yield *_masks_of(model, batch), paths

    def _read(self, state: dict[str, Any]) -> BackgroundPrompts:
        prompts = BackgroundPrompts(*state["vectors"].shape, template=state["template"])
        prompts.load_state_dict({"vectors": state["vectors"]})
        prompts.suffix_ids, prompts.class_names = state["suffix_ids"], state["class_names"]
        prompts.clip_name, prompts.signature = state["clip_name"], state["signature"]
        prompts.similarities = state["similarities"]
        return prompts


def _write(prompts: BackgroundPrompts) -> dict[str, Any]:
    names = ("template", "suffix_ids", "class_names", "clip_name", "signature", "similarities")
    return {"vectors": prompts.vectors.detach().cpu(), **{name: getattr(prompts, name) for name in names}}


def _model(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _masks_of(model: Any, batch: Any) -> tuple[Tensor, ClassMasks]:
    """Images and masks of a loader's batch, without gradients."""
    from semples_plugin.adapters.mmseg_data import labels_of

    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    images, samples = data["inputs"], data["data_samples"]
    labels = labels_of(samples, model.num_classes).to(images.device)
    return images, model.masks(model.extract_feat(images), labels).detach()


class _same_randomness:  # noqa: N801, reads as a statement
    """`with _same_randomness():` leaves numpy's and torch's generators as they were."""

    def __enter__(self) -> None:
        self.numpy, self.torch = np.random.get_state(), torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def __exit__(self, *_: Any) -> None:
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        for i, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, i)
