"""mmsegmentation, the schedule: a hook that takes a run through the stages (a), (b) and (c)."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.loops import EpochBasedTrainLoop
from mmseg.registry import HOOKS
from torch import Tensor

from semples_plugin.adapters.base import evaluating
from semples_plugin.masks import ClassMasks
from semples_plugin.presets import Preset, load_preset
from semples_plugin.prompt_learning.learn import check_learning, learn_background_prompts
from semples_plugin.prompt_learning.work_dir import name_origin
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.checks import check_known, check_number
from semples_plugin.utils.distributed import is_first, world_size
from semples_plugin.utils.text import shown
from semples_plugin.viz.training_log import draw_pairs

STATE = "semples"  # key in mmengine's checkpoints
_LEARNING = ("epochs", "lr", "batch_size", "weight_decay", "progress")  # of learn_background_prompts, for a config
_NEEDED = ("regularizer", "active", "images_and_masks")  # of a model


@HOOKS.register_module(force=True)
class SemPLeSStages(Hook):
    """Baseline, (a) matching, (b) prompts and (c) refinement in one run of mmengine's runner.

    Lengths are epochs under an epoch-based loop and iterations under an iteration-based one. Whatever comes after (a)
    is (c). Resuming from mmengine's checkpoints goes on in the same stage, with the same prompts; an interrupted (b)
    goes on from its own work folder where the run is resumed with the very same weights, and begins anew otherwise.
    What is learned in (b), and how, is the preset's that the regularizer's config names. Lengths, learning rates and
    batches of (a) and (c) are the runner's; the log says where they depart from the preset's.

    Args:
        match: length of (a). 0 begins with (c), for which the regularizer's config then names a prompts file.
        baseline: length of the training with `loss_cls` alone, before (a).
        restart: where (c) begins: "baseline", with the weights from which (a) began, as the authors' release does, or
            "matched", with those in which (a) ended. The former takes the optimizer's state, gradients that it has
            gathered, and mmengine's moving average of the weights (`EMAHook`) back as well; the schedule of learning
            rates isn't restarted.
        prompt_length: L; None for the preset's.
        prompt_std: of a normal start: "preset" for the preset's, None for the size of CLIP's word vectors, or a number.
        learning: options of `learn_background_prompts` that replace the preset's: `epochs`, `lr`, `batch_size`,
            `weight_decay`; and `progress`.
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
        prompt_length: int | None = None,
        prompt_std: float | str | None = "preset",
        learning: Mapping[str, Any] | None = None,
        seed: int = 0,
        draw_interval: int = 0,
    ) -> None:
        lengths = {"match": match, "baseline": baseline, "draw_interval": draw_interval}
        for name, number in {**lengths, "seed": seed}.items():
            check_number(name, number, 0, whole=True)
        if prompt_length is not None:
            check_number("prompt_length", prompt_length, 1, whole=True)
        if restart not in ("baseline", "matched"):
            raise ValueError(f'restart: expected "baseline" or "matched", got {restart!r}')
        if isinstance(prompt_std, str) and prompt_std != "preset":
            raise ValueError(f'prompt_std: expected "preset", None or a number, got {prompt_std!r}')
        if prompt_std not in ("preset", None):
            check_number("prompt_std", prompt_std, 0, above=True)
        if learning is not None and not isinstance(learning, Mapping):
            raise TypeError(f"learning: expected dict(epochs=..., ...), got {shown(learning)}")
        check_known("learning", learning or {}, _LEARNING)
        check_learning(**{name: value for name, value in (learning or {}).items() if name != "progress"})
        self.baseline, self.match, self.restart = baseline, match, restart
        self.prompt_length, self.prompt_std, self.seed = prompt_length, prompt_std, seed
        self.learning, self.draw_interval = dict(learning or {}), draw_interval
        self._start: dict[str, Tensor] | None = None
        self._prompts: dict[str, Any] | None = None
        self._stage = ""

    def before_train(self, runner: Runner) -> None:
        """Checks the model, says what will come, and takes up a resumed run's prompts."""
        model = _model(runner)
        missing = [name for name in _NEEDED if name not in dir(model)]
        if missing:
            raise ValueError(
                f"{type(model).__name__} has no {', '.join(missing)}, which SemPLeSStages asks for; a CamSegmentor, "
                "or a subclass of it, has"
            )
        regularizer = model.regularizer  # a CamSegmentor raises where there is none
        if not isinstance(regularizer, SemPLeSRegularizer):
            raise ValueError(
                f"{type(model).__name__}.regularizer: expected a SemPLeSRegularizer, got {type(regularizer).__name__}; "
                'build it, MODELS.build(dict(type="SemPLeSRegularizer", ...))'
            )
        regularizer.to(next(model.parameters()).device)
        self._tell_plan(runner)
        if self._prompts is not None:
            regularizer.prompts = BackgroundPrompts.from_state(self._prompts)
        if regularizer.prompts is None:
            self._new_prompts(regularizer).check_belongs_to(
                regularizer.clip, regularizer.class_names
            )  # as (b) will, hours later
            self._tell_prompts(runner)
        self._tell_departures(runner)
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
            with _same_randomness(), evaluating(model):
                images, masks = _images_and_masks(model, data_batch)
            picture = draw_pairs(images, masks, model.regularizer)
            runner.visualizer.add_image("semples_masks", picture, step=runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Puts the prompts, and the weights from which (c) begins, into mmengine's checkpoint."""
        prompts = _model(runner).regularizer.prompts
        state = None if prompts is None else copy.deepcopy(prompts).cpu().state_dict()
        checkpoint[STATE] = {"start": self._start, "prompts": state}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Takes them out of it again, where the run is resumed; `load_from` gives weights alone."""
        state = checkpoint.get(STATE)
        if state and runner._resume:
            self._start, self._prompts = state["start"], state["prompts"]
            if self._prompts and "_extra_state" not in self._prompts:  # 0.1.0 kept all of it side by side
                self._prompts = {"vectors": self._prompts["vectors"], "_extra_state": self._prompts}

    def _tell_plan(self, runner: Runner) -> None:
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        unit, whole = ("epochs", runner.max_epochs) if by_epoch else ("iterations", runner.max_iters)
        refine = whole - self.baseline - self.match
        runner.logger.info(
            "SemPLeS: %d %s of baseline, %d of (a) matching, (b) prompts, %d of (c) refinement",
            self.baseline, unit, self.match, max(refine, 0),
        )  # fmt: skip
        if refine <= 0:
            runner.logger.warning(
                "SemPLeS: baseline %d and match %d are all of the %d %s: prompts are never learned, and refinement "
                "never comes",
                self.baseline, self.match, whole, unit,
            )  # fmt: skip

    def _tell_prompts(self, runner: Runner) -> None:
        regularizer = _model(runner).regularizer
        preset = self._preset(regularizer)
        if regularizer.preset is None:
            runner.logger.warning("SemPLeS: the regularizer was built without a preset; (b) takes voc's")
        runner.logger.info(
            "SemPLeS: preset %s; (b) learns %d vectors a class, start %s: %s",
            preset.name,
            preset.prompt_length,
            f"normal, std {preset.prompt_std:g}" if preset.prompt_init == "normal" else preset.prompt_init,
            ", ".join(f"{name} {value}" for name, value in self._learning(preset).items()),
        )

    def _tell_departures(self, runner: Runner) -> None:
        preset = self._preset(_model(runner).regularizer)
        optimizer = getattr(runner.optim_wrapper, "optimizer", None)  # there may be several
        settings = {name: optimizer.defaults.get(name) for name in ("lr", "weight_decay")} if optimizer else {}
        if runner.train_dataloader.batch_size:
            settings["batch_size"] = runner.train_dataloader.batch_size * world_size()
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and self.match:
            settings["epochs"] = self.match
        found = preset.departures(**{name: value for name, value in settings.items() if value is not None})
        if found:
            runner.logger.info("SemPLeS: (a) and (c) are trained by the runner's settings: %s", found)

    def _preset(self, regularizer: SemPLeSRegularizer) -> Preset:
        """The preset of the regularizer, with what the options of this hook replace in it."""
        preset = regularizer.preset or load_preset("voc").with_(class_names=regularizer.class_names)
        replaced: dict[str, Any] = {}
        if self.prompt_length is not None:
            replaced["prompt_length"] = self.prompt_length
        if self.prompt_std != "preset":
            replaced["prompt_std"] = regularizer.clip.token_std if self.prompt_std is None else self.prompt_std
        return preset.with_(**replaced)

    def _learning(self, preset: Preset) -> dict[str, Any]:
        return {**preset.learning_options(), **self.learning}

    def _new_prompts(self, regularizer: SemPLeSRegularizer) -> BackgroundPrompts:
        return self._preset(regularizer).new_prompts(regularizer.clip.text_width, self.seed)

    def _enter(self, runner: Runner, progress: int) -> None:
        """Brings the model into the stage that belongs to so much progress; at its beginning and after a resume."""
        self._bring_about(runner, progress)
        refining = _model(runner).regularizer.prompts is not None
        stage = "(c) refinement" if refining else "(a) matching"
        stage = stage if _model(runner).active else "baseline"
        if stage != self._stage:
            self._stage = stage
            runner.logger.info("SemPLeS: %s from iteration %d on", stage, runner.iter + 1)

    def _bring_about(self, runner: Runner, progress: int) -> None:
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
            runner.optim_wrapper.zero_grad()
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.ema_model.steps.zero_()  # its average begins anew, with the weights after the next step

    def _learn(self, runner: Runner) -> None:
        """(b): walks the runner's data once, in order, and learns the prompts."""
        model = _model(runner)
        regularizer = model.regularizer
        regularizer.prompts = self._new_prompts(regularizer)
        model.learning_prompts = True
        folder = Path(runner.work_dir) / "semples"
        unfinished = folder / f"prompts.unfinished.{name_origin(model).split()[-1]}"
        for other in folder.glob("prompts.unfinished*") if is_first() else ():
            if other != unfinished or not runner._resume:  # of another model; or, perhaps, of other data
                shutil.rmtree(other, ignore_errors=True)
        runner.logger.info("SemPLeS: (b) prompts, from the whole training set")
        try:
            # The walk must leave no trace in what follows: the order and the augmentations of (c) stay its own.
            with _same_randomness(), evaluating(model), warnings_in_log():
                history = learn_background_prompts(
                    regularizer,
                    self._walk(runner),
                    work_dir=unfinished,
                    save_to=folder / "prompts.safetensors",
                    seed=self.seed,
                    **self._learning(self._preset(regularizer)),
                )
        except BaseException:
            regularizer.prompts = None  # the next try begins with (b) again
            raise
        finally:
            model.learning_prompts = False
        runner.logger.info(
            "SemPLeS: L_prompt %.4f after %d epochs; prompts in %s",
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
            yield *_images_and_masks(model, batch), paths


def _model(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _images_and_masks(model: Any, batch: Any) -> tuple[Tensor, ClassMasks]:
    """Images and masks of a loader's batch, without gradients."""
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    images, masks = model.images_and_masks(data["inputs"], data["data_samples"])
    return images, masks.detach()


@contextmanager
def warnings_in_log() -> Iterator[None]:
    """Python's warnings go into mmengine's log as well."""
    shown = warnings.showwarning

    def show(message: Any, *arguments: Any, **named: Any) -> None:
        shown(message, *arguments, **named)
        print_log(str(message), logger="current", level=logging.WARNING)

    warnings.showwarning = show  # catch_warnings would forget what was shown already
    try:
        yield
    finally:
        warnings.showwarning = shown


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
