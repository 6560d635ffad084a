"""mmsegmentation, the schedule: a hook that takes a run through the stages (a), (b) and (c)."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor

from semples_plugin.adapters.base import evaluating
from semples_plugin.adapters.mmseg_runner import (
    counts_epochs,
    images_and_masks,
    random_states_kept,
    unwrap_model,
    walk_training_data,
    warnings_in_log,
)
from semples_plugin.presets import Preset, load_preset
from semples_plugin.prompt_learning.epochs import LearningOptions
from semples_plugin.prompt_learning.learn import learn_background_prompts
from semples_plugin.prompt_learning.work_dir import name_origin
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.checks import check_known, check_number
from semples_plugin.utils.distributed import is_first, world_size
from semples_plugin.utils.text import shown
from semples_plugin.viz.training_log import draw_pairs

BASELINE, MATCH, REFINE = "baseline", "(a) matching", "(c) refinement"
"""The stages of training, as the log names them; (b) learns prompts between the last two."""

CHECKPOINT_KEY = "semples"
"""Where mmengine's checkpoints hold the weights from which (c) begins, and the prompts."""

LEARNING_OPTIONS = ("epochs", "lr", "batch_size", "weight_decay", "progress")
"""Options of `learn_background_prompts` that a config may give."""

MODEL_INTERFACE = ("regularizer", "active", "images_and_masks")
"""What the hook asks of a model."""


@HOOKS.register_module(force=True)
class SemPLeSStages(Hook):
    """Baseline, (a) matching, (b) prompts and (c) refinement in one run of mmengine's runner.

    Lengths are epochs under an epoch-based loop and iterations under an iteration-based one. Whatever comes
    after (a) is (c). Resuming from mmengine's checkpoints continues in the same stage, with the same prompts;
    an interrupted (b) continues from its own work folder where the run is resumed with exactly the same
    weights, and begins anew otherwise. What is learned in (b), and how, comes from the preset that the
    regularizer's config names. Lengths, learning rates and batch sizes of (a) and (c) are the runner's; the
    log says where they differ from the preset's.

    Args:
        match: length of (a). 0 begins with (c), for which the regularizer's config then names a prompts file.
        baseline: length of the training with `loss_cls` alone, before (a).
        restart: where (c) begins: "baseline", with the weights from which (a) began, as the authors' release
            does, or "matched", with those in which (a) ended. The former also resets the optimizer's state,
            accumulated gradients, and mmengine's moving average of the weights (`EMAHook`); the schedule of
            learning rates isn't restarted.
        prompt_length: L; None for the preset's.
        prompt_std: of a normal start: "preset" for the preset's, None for the size of CLIP's word vectors, or
            a number.
        learning: options of `learn_background_prompts` that replace the preset's: `epochs`, `lr`,
            `batch_size`, `weight_decay`; and `progress`.
        seed: of the prompts.
        draw_interval: iterations between two drawings of masks, and, in (c), of where CLIP sees the prompts,
            through the runner's visualizer; 0 for none.

    Raises:
        TypeError, ValueError: where an option is of another kind or out of its range.
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
        counts = {"match": match, "baseline": baseline, "draw_interval": draw_interval, "seed": seed}
        for name, count in counts.items():
            check_number(name, count, 0, whole=True)
        if restart not in ("baseline", "matched"):
            raise ValueError(f'restart: expected "baseline" or "matched", got {restart!r}')
        _check_new_prompts(prompt_length, prompt_std)
        _check_learning_options(learning)
        self.baseline, self.match, self.restart = baseline, match, restart
        self.prompt_length, self.prompt_std, self.seed = prompt_length, prompt_std, seed
        self.learning, self.draw_interval = dict(learning or {}), draw_interval
        self._start_weights: dict[str, Tensor] | None = None
        self._resumed_prompts: dict[str, Any] | None = None
        self._logged_stage = ""

    def before_train(self, runner: Runner) -> None:
        """Checks the model, logs the plan, and restores the prompts of a resumed run."""
        model = unwrap_model(runner)
        regularizer = _regularizer_of(model)
        regularizer.to(next(model.parameters()).device)
        self._log_plan(runner)
        if self._resumed_prompts is not None:
            regularizer.prompts = BackgroundPrompts.from_state(self._resumed_prompts)
        if regularizer.prompts is None:
            # Whether (b) will be able to learn: it would tell after the hours of (a).
            self._new_prompts(regularizer).check_belongs_to(regularizer.clip, regularizer.class_names)
            self._log_prompt_learning(runner, regularizer)
        self._log_departures(runner, regularizer)
        if self.match == 0 and regularizer.prompts is None:
            raise ValueError(
                'match=0 begins with refinement: name its prompts, regularizer=dict(prompts="prompts.safetensors", ...)'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Advances the stage under an epoch-based loop."""
        if counts_epochs(runner):
            self._advance_stage(runner, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Advances the stage under an iteration-based loop."""
        if not counts_epochs(runner):
            self._advance_stage(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draws the masks of a batch, and where CLIP sees their prompts."""
        model = unwrap_model(runner)
        is_due = self.draw_interval > 0 and self.every_n_train_iters(runner, self.draw_interval)
        if not (is_due and model.active and is_first()):
            return
        with random_states_kept(), evaluating(model):
            images, masks = images_and_masks(model, data_batch)
        drawing = draw_pairs(images, masks, model.regularizer)
        runner.visualizer.add_image("semples_masks", drawing, step=runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Adds the prompts, and the weights from which (c) begins, to mmengine's checkpoint."""
        prompts = unwrap_model(runner).regularizer.prompts
        state = None if prompts is None else copy.deepcopy(prompts).cpu().state_dict()
        checkpoint[CHECKPOINT_KEY] = {"start": self._start_weights, "prompts": state}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Reads both where the run is resumed; with `load_from` alone only the model's weights count."""
        state = checkpoint.get(CHECKPOINT_KEY)
        if not state or not runner._resume:
            return
        self._start_weights, prompts = state["start"], state["prompts"]
        if prompts and "_extra_state" not in prompts:  # version 0.1.0 had no extra state
            prompts = {"vectors": prompts["vectors"], "_extra_state": prompts}
        self._resumed_prompts = prompts

    def _advance_stage(self, runner: Runner, progress: int) -> None:
        """Brings the model into the stage that belongs to `progress`; after a resume as well.

        Args:
            progress: epochs or iterations that are done.
        """
        model = unwrap_model(runner)
        model.active = progress >= self.baseline
        if model.active:
            self._keep_start_weights(model)
        matching_is_over = progress >= self.baseline + self.match
        if matching_is_over and model.regularizer.prompts is None:
            self._learn_prompts(runner)
            if self.restart == "baseline":
                self._restart_from_baseline(runner)
        self._log_stage(runner)

    def _keep_start_weights(self, model: Any) -> None:
        """Copies the weights from which (a) begins, once."""
        if self._start_weights is None:
            weights = model.state_dict()
            self._start_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}

    def _learn_prompts(self, runner: Runner) -> None:
        """Stage (b): walks the runner's data once, in order, and learns the prompts."""
        model = unwrap_model(runner)
        regularizer = model.regularizer
        prompts_file = Path(runner.work_dir) / "semples" / "prompts.safetensors"
        work_dir = _prepare_work_dir(runner, prompts_file.parent)
        runner.logger.info("SemPLeS: (b) prompts, from the whole training set")
        regularizer.prompts = self._new_prompts(regularizer)
        model.learning_prompts = True
        try:
            # The order and the augmentations of (c) must not depend on this walk.
            with random_states_kept(), evaluating(model), warnings_in_log():
                history = learn_background_prompts(
                    regularizer,
                    walk_training_data(runner, self.seed),
                    work_dir=work_dir,
                    save_to=prompts_file,
                    seed=self.seed,
                    **self._learning_options(self._preset(regularizer)),
                )
        except BaseException:
            regularizer.prompts = None  # the next try begins with (b) again
            raise
        finally:
            model.learning_prompts = False
        runner.logger.info(
            f"SemPLeS: L_prompt {history.loss[-1]:.4f} after {len(history.loss)} epochs; prompts in {prompts_file}"
        )

    def _restart_from_baseline(self, runner: Runner) -> None:
        """Loads the weights from which (a) began, and resets what belongs to those that they replace."""
        unwrap_model(runner).load_state_dict(self._start_weights)
        runner.optim_wrapper.optimizer.state.clear()  # momenta
        runner.optim_wrapper.zero_grad()  # accumulated gradients
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.ema_model.steps.zero_()  # the average begins anew, with the weights after the next step

    def _preset(self, regularizer: SemPLeSRegularizer) -> Preset:
        """The regularizer's preset, with what this hook's options replace in it."""
        preset = regularizer.preset or load_preset("voc").with_(class_names=regularizer.class_names)
        replaced: dict[str, Any] = {}
        if self.prompt_length is not None:
            replaced["prompt_length"] = self.prompt_length
        if self.prompt_std != "preset":
            std = regularizer.clip.token_std if self.prompt_std is None else self.prompt_std
            replaced["prompt_std"] = std
        return preset.with_(**replaced)

    def _learning_options(self, preset: Preset) -> dict[str, Any]:
        return {**preset.learning_options(), **self.learning}

    def _new_prompts(self, regularizer: SemPLeSRegularizer) -> BackgroundPrompts:
        return self._preset(regularizer).new_prompts(regularizer.clip.text_width, self.seed)

    def _log_plan(self, runner: Runner) -> None:
        """Logs the length of each stage; a warning where training ends before (c)."""
        if counts_epochs(runner):
            unit, total = "epochs", runner.max_epochs
        else:
            unit, total = "iterations", runner.max_iters
        refine = total - self.baseline - self.match
        runner.logger.info(
            f"SemPLeS: {self.baseline} {unit} of baseline, {self.match} of (a) matching, (b) prompts, "
            f"{max(refine, 0)} of (c) refinement"
        )
        if refine <= 0:
            runner.logger.warning(
                f"SemPLeS: baseline {self.baseline} and match {self.match} are all of the {total} {unit}: "
                "prompts are never learned, and refinement never comes"
            )

    def _log_prompt_learning(self, runner: Runner, regularizer: SemPLeSRegularizer) -> None:
        """Logs what (b) will learn, and how."""
        preset = self._preset(regularizer)
        if regularizer.preset is None:
            runner.logger.warning("SemPLeS: the regularizer was built without a preset; (b) takes voc's")
        is_normal = preset.prompt_init == "normal"
        start = f"normal, std {preset.prompt_std:g}" if is_normal else preset.prompt_init
        options = ", ".join(f"{name} {value}" for name, value in self._learning_options(preset).items())
        runner.logger.info(
            f"SemPLeS: preset {preset.name}; (b) learns {preset.prompt_length} vectors a class, "
            f"start {start}: {options}"
        )

    def _log_departures(self, runner: Runner, regularizer: SemPLeSRegularizer) -> None:
        """Logs which of the runner's settings of (a) and (c) differ from the preset's."""
        settings: dict[str, Any] = {}
        optimizer = getattr(runner.optim_wrapper, "optimizer", None)  # a wrapper of several has none
        if optimizer is not None:
            settings |= {name: optimizer.defaults.get(name) for name in ("lr", "weight_decay")}
        if runner.train_dataloader.batch_size:
            settings["batch_size"] = runner.train_dataloader.batch_size * world_size()
        if counts_epochs(runner) and self.match:
            settings["epochs"] = self.match
        known = {name: value for name, value in settings.items() if value is not None}
        departures = self._preset(regularizer).departures(**known)
        if departures:
            runner.logger.info(f"SemPLeS: (a) and (c) are trained by the runner's settings: {departures}")

    def _log_stage(self, runner: Runner) -> None:
        """Logs the stage where it has changed."""
        stage = _stage_of(unwrap_model(runner))
        if stage != self._logged_stage:
            self._logged_stage = stage
            runner.logger.info(f"SemPLeS: {stage} from iteration {runner.iter + 1} on")


def _check_new_prompts(length: int | None, std: float | str | None) -> None:
    if length is not None:
        check_number("prompt_length", length, 1, whole=True)
    if isinstance(std, str) and std != "preset":
        raise ValueError(f'prompt_std: expected "preset", None or a number, got {std!r}')
    if std not in ("preset", None):
        check_number("prompt_std", std, 0, above=True)


def _check_learning_options(learning: Mapping[str, Any] | None) -> None:
    if learning is None:
        return
    if not isinstance(learning, Mapping):
        raise TypeError(f"learning: expected dict(epochs=..., ...), got {shown(learning)}")
    check_known("learning", learning, LEARNING_OPTIONS)
    LearningOptions(**{name: value for name, value in learning.items() if name != "progress"})  # checks them


def _regularizer_of(model: Any) -> SemPLeSRegularizer:
    """The model's regularizer; a `ValueError` where the model isn't one that this hook can train."""
    missing = [name for name in MODEL_INTERFACE if name not in dir(model)]
    if missing:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(missing)}, which SemPLeSStages asks for; "
            "a CamSegmentor, or a subclass of it, has"
        )
    regularizer = model.regularizer  # a CamSegmentor raises where there is none
    if not isinstance(regularizer, SemPLeSRegularizer):
        raise ValueError(
            f"{type(model).__name__}.regularizer: expected a SemPLeSRegularizer, "
            f"got {type(regularizer).__name__}; "
            'build it, MODELS.build(dict(type="SemPLeSRegularizer", ...))'
        )
    return regularizer


def _stage_of(model: Any) -> str:
    if not model.active:
        return BASELINE
    return MATCH if model.regularizer.prompts is None else REFINE


def _prepare_work_dir(runner: Runner, folder: Path) -> Path:
    """The folder of an interrupted (b) of these very weights; those that must not be continued are removed.

    They are of other weights, or, in a run that isn't resumed, perhaps of other data.
    """
    weights_digest = name_origin(unwrap_model(runner)).split()[-1]
    work_dir = folder / f"prompts.unfinished.{weights_digest}"
    if is_first():
        for existing in folder.glob("prompts.unfinished*"):
            if existing != work_dir or not runner._resume:
                shutil.rmtree(existing, ignore_errors=True)
    return work_dir
