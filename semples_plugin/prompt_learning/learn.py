"""Stage (b): background prompts learn from background features that are encoded once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from semples_plugin.masks import ClassMasks
from semples_plugin.prompt_learning.epochs import LearningOptions, LearningRun, PromptHistory, warn_caller
from semples_plugin.prompt_learning.feature_store import PairFeatures
from semples_plugin.prompt_learning.walk import walk
from semples_plugin.prompt_learning.work_dir import (
    State,
    WorkDir,
    describe_interrupted,
    digest,
    image_signature,
    name_origin,
)
from semples_plugin.prompt_quality import went_well
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.atomic_files import check_writable
from semples_plugin.utils.distributed import gather, is_first, on_first, together

_START = "start of the prompts"  # a key of a run's settings


def learn_background_prompts(
    regularizer: SemPLeSRegularizer,
    batches: Iterable[tuple[Tensor, ClassMasks] | tuple[Tensor, ClassMasks, Sequence[Any]] | tuple[Tensor, ...]],
    *,
    epochs: int = 60,
    lr: float = 5e-4,
    batch_size: int = 128,
    weight_decay: float = 0.01,
    seed: int = 0,
    shared: bool = False,
    mask_tau: float = 1.0,
    work_dir: str | Path | None = None,
    save_to: str | Path | None = None,
    origin: str | Path | nn.Module = "",
    progress: bool = True,
) -> PromptHistory:
    """Learns `regularizer.prompts`, in place, by equation (2), with AdamW and a cosine schedule to 0.

    The CAM network is fixed in this stage, so each background is encoded once, in one walk over `batches`;
    the epochs then run over these features, shuffled by `seed`. Neither CAM network nor CLIP is changed.
    Foregrounds are encoded as well, to judge at the end whether the prompts describe backgrounds or the
    objects themselves, and for `LossWeights.prompt_foreground`.

    >>> from semples_plugin import FrozenClip
    >>> clip, names = FrozenClip.load("demo"), ["train", "boat"]  # the embedded tiny CLIP
    >>> prompts = BackgroundPrompts.for_clip(clip, names, length=4)
    >>> regularizer = SemPLeSRegularizer(clip, names, prompts=prompts, input_mean=None, input_std=None)
    >>> images = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)  # CLIP-normalised
    >>> maps = torch.zeros(2, 64, 64)
    >>> maps[:, 16:48, 16:48] = 1
    >>> masks = ClassMasks.from_pairs(maps, image_index=torch.arange(2), class_index=torch.arange(2))
    >>> options = {"epochs": 20, "lr": 0.02, "progress": False}
    >>> history = learn_background_prompts(regularizer, [(images, masks)], **options)
    >>> history.loss[-1] < history.loss[0], prompts.learned
    (True, True)

    Args:
        regularizer: with the prompts to learn.
        batches: walked once, of (images, masks) as the regularizer takes them; put the CAM network into eval
            mode and make the masks under `torch.no_grad()`. Several views of an image are several batches.
            Under torch.distributed every rank walks its own part, and all ranks learn the same prompts from all
            parts. Samplers repeat some images to make the parts equal: give (images, masks, names), a name or
            number for each of the N images, and each name counts once. A host whose data can't be walked gives
            features that it kept: (v_f `[P, D]`, v_b `[P, D]`, classes `[P]`), where
            `v_f, v_b = regularizer.pair_features(images, masks)` and the classes are `masks.class_index`; or
            (v_b, classes), with which separation isn't measured, and `LossWeights.prompt_foreground` has to be 0.
        epochs: passes over the features.
        lr: at the start. The paper's 5e-4 by default; the release uses 0.1 with its uniform start.
        batch_size: pairs per step.
        weight_decay: AdamW's.
        seed: of the order of pairs.
        shared: one prompt for all classes, taught by the pairs of all of them, which each class then gets, those
            without a pair as well; it starts from the first class's vectors. Prompts of classes with few images
            come to describe the object; ours, not the paper's.
        mask_tau: the masks M become min(M / mask_tau, 1) first, at CLIP's resolution, see `ClassMasks.hardened`; ours,
            not the paper's. 1: as they are, and for features that the host kept.
        work_dir: a folder for features, batch by batch, and the state, after every epoch. Features are kept
            there in half precision, 4 D bytes a pair, and mapped, so that memory doesn't grow with them; the
            prompts are those from memory but for rounding, 1e-3 in cosine. Without it features stay in memory,
            8 D bytes a pair, in full precision. An interrupted call is continued by a call with the same
            arguments, to the same prompts, with a warning: batches that come again unchanged are not encoded
            again, and after the walk none is; a kill costs the batch in work. Where only the schedule, the
            weights or the start of the prompts differ, the features are used again and the epochs begin anew.
            Removed at the end. After the walk the masks are not read any more: delete it if the CAM network
            has changed. Ranks may share it or have one per machine, on which a copy of all features is then
            kept.
        save_to: file for the prompts. Its folder is made and tried before the walk. Where writing the file
            fails at the end, the learned prompts stay in memory, and `work_dir` on disk: save them, or call
            again.
        origin: what the masks come from: the model, known by its weights, or the name of its checkpoint;
            features of another origin are refused.
        progress: show progress bars.

    Returns:
        The history, per epoch and class, with a verdict.

    Warns:
        UserWarning: of a run that is continued; of classes that were never seen; at the end, of prompts that
            describe the object or learned nothing.

    An exception, Ctrl-C among them, leaves the prompts as they were before the call, unless they are learned
    already; after Ctrl-C a line on stderr says what `work_dir` keeps.

    Raises:
        TypeError: for arguments or batches of another type.
        OSError: where nothing can be written into `work_dir` or beside `save_to`, before the walk; or on a
            full disk.
        ValueError: when the batches hold no pair, or NaN; an argument is out of range; the prompts diverge;
            or `work_dir` holds features of other images, masks or classes, of another version, or a damaged
            file.
    """
    prompts = regularizer._need_prompts()
    options = LearningOptions(epochs, lr, batch_size, weight_decay, seed, shared, mask_tau)
    _check_differentiable(regularizer)
    folder = _prepare_folder(regularizer, work_dir, origin, options.mask_tau)
    settings = _settings_of(regularizer, options)
    if save_to is not None:
        on_first(partial(folder.check_outside, save_to))
        on_first(partial(check_writable, "save_to", save_to))
    state = on_first(folder.read_state)
    features = _kept_features(folder)
    if state is not None and _have_learned(prompts, state, settings):  # the call before could not save them
        settings[_START] = state["run"][_START]
    elif prompts.learned:
        warn_caller(
            "these prompts were learned already, and are learned further; to begin anew give the regularizer "
            "new BackgroundPrompts"
        )
    walked = features is None
    try:
        if features is None:
            features = _walk_into(folder, regularizer, batches, options.mask_tau, progress)
        settings["features"] = features.digest
        if state is not None or not walked:
            warn_caller(describe_interrupted(work_dir, walked, len(features), state, settings))
        if state is not None and state["run"] != settings:
            state = None
        history = LearningRun(regularizer, features, options, folder, settings, progress).run(state)
    except KeyboardInterrupt:
        if (kept := folder.describe_kept()) and is_first():
            tqdm.write(f"{work_dir} keeps {kept}: the same call goes on from there", file=sys.stderr)
        raise
    if save_to is not None:
        on_first(partial(prompts.save, save_to))
    together(features.close)  # nobody reads any more
    together(folder.remove)
    if not went_well(history.quality):
        warn_caller(history.verdict)
    elif progress and is_first():
        tqdm.write(history.verdict)
    return history


def _check_differentiable(regularizer: SemPLeSRegularizer) -> None:
    """Raises a `ValueError` under inference mode, and for what was made under it."""
    prompts, clip = regularizer._need_prompts(), regularizer.clip
    tensors = (prompts.vectors, regularizer.label_features, *clip.model.parameters())
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "nothing can learn under torch.inference_mode(), or from prompts, a regularizer or a CLIP made under it: "
            "make and call them outside, and the masks under torch.no_grad()"
        )


def _prepare_folder(
    regularizer: SemPLeSRegularizer, work_dir: str | Path | None, origin: str | Path | nn.Module, mask_tau: float
) -> WorkDir:
    """The folder with all that the features depend on."""
    made_with = {
        "class_names": [str(name) for name in regularizer.class_names],
        "image statistics": [*map(float, (*regularizer.input_mean, *regularizer.input_std))],
        "fill": regularizer.fill.tolist(),
        "align_corners": regularizer.align_corners,
        "mask_tau": mask_tau,
        "origin": name_origin(origin),
    }
    prompts = regularizer._need_prompts()
    signatures = [] if work_dir is None else [prompts.signature, image_signature(regularizer.clip)]
    return WorkDir(work_dir, made_with, signatures, regularizer.label_features.shape[1])


def _settings_of(regularizer: SemPLeSRegularizer, options: LearningOptions) -> dict[str, Any]:
    """All that the learning depends on beside its features: epochs of other settings are not continued."""
    prompts = regularizer._need_prompts()
    return {
        **{name: value for name, value in asdict(options).items() if name != "mask_tau"},  # the features depend on it
        "weights": {name: float(weight) for name, weight in asdict(regularizer.weights).items()},
        "text_term": regularizer.text_term,
        "templates": [regularizer.template, prompts.template, str(prompts.suffix_ids)],
        _START: digest(prompts.vectors),
    }


def _have_learned(prompts: BackgroundPrompts, state: State, settings: dict[str, Any]) -> bool:
    """Whether the prompts in memory are what the run of this state has learned already."""
    same = all(state["run"].get(key) == value for key, value in settings.items() if key != _START)
    return same and prompts.learned and torch.equal(prompts.vectors.detach().cpu(), state["vectors"])


def _walk_into(
    folder: WorkDir, regularizer: SemPLeSRegularizer, batches: Iterable[Any], mask_tau: float, progress: bool
) -> PairFeatures:
    """The features of all pairs, which the folder keeps from now on."""
    try:
        features = walk(regularizer, batches, mask_tau, folder, progress)
    except BaseException:
        folder.remove_if_empty()
        raise
    if folder.parts is not None and (folder.parts.encoded or folder.parts.lost):
        cut = f", and {folder.parts.lost} that were cut short" if folder.parts.lost else ""
        warn_caller(
            f"{folder.path} held {len(folder.parts.encoded)} batches of an interrupted walk{cut}: {folder.reused} came "
            "again unchanged and were not encoded again"
        )
    return features


def _kept_features(folder: WorkDir) -> PairFeatures | None:
    """The features of an interrupted run whose walk was over, if every rank has them; else None. Collective."""
    features = together(folder.read_features)
    digests = gather(None if features is None else features.digest)
    return features if digests.count(digests[0]) == len(digests) else None
