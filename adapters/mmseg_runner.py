"""mmsegmentation, the runner: its model, one walk over its data, and what the walk must not change."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.loops import EpochBasedTrainLoop
from torch import Tensor

from semples_plugin.masks import ClassMasks


def unwrap_model(runner: Runner) -> Any:
    """The runner's model, without DDP or another wrapper of mmengine's."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def counts_epochs(runner: Runner) -> bool:
    """Whether the runner's training loop counts epochs; iterations otherwise."""
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def images_and_masks(model: Any, batch: Any) -> tuple[Tensor, ClassMasks]:
    """Images and detached masks of a loader's batch, which is left unchanged."""
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    images, masks = model.images_and_masks(data["inputs"], data["data_samples"])
    return images, masks.detach()


def walk_training_data(runner: Runner, seed: int) -> Iterator[tuple[Tensor, ClassMasks, list[str]]]:
    """Images, masks and paths of the runner's training data in order, each image once.

    Under torch.distributed every rank walks its share; a sampler may repeat images to make the shares equal,
    which `learn_background_prompts` tells by their paths.
    """
    model, loader = unwrap_model(runner), runner.train_dataloader
    settings = {
        "dataset": loader.dataset,
        "batch_size": loader.batch_size,
        "num_workers": loader.num_workers,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": loader.collate_fn,
    }
    for batch in Runner.build_dataloader(settings, seed=seed):
        paths = [sample.metainfo["img_path"] for sample in batch["data_samples"]]
        images, masks = images_and_masks(model, batch)
        yield images, masks, paths


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Gives the random generators of Python, numpy and torch the states back that they had before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count())  # left out, torch warns of several GPUs
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def warnings_in_log() -> Iterator[None]:
    """Python's warnings go into mmengine's log as well."""
    show_as_before = warnings.showwarning

    def show_and_log(message: Any, *arguments: Any, **named: Any) -> None:
        show_as_before(message, *arguments, **named)
        print_log(str(message), logger="current", level=logging.WARNING)

    warnings.showwarning = show_and_log  # catch_warnings would forget what was shown already
    try:
        yield
    finally:
        warnings.showwarning = show_as_before
