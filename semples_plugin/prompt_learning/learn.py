"""Stage (b): background prompts from background features that are encoded once."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.masks import ClassMasks
from semples_plugin.prompt_quality import ClassQuality, Nearness, describe_quality, measure, went_well
from semples_plugin.prompts import BackgroundPrompts, same_clip
from semples_plugin.regularizer import SemPLeSRegularizer, sum_of
from semples_plugin.utils.atomic_files import remove_left, replacing
from semples_plugin.utils.checks import check_tensor
from semples_plugin.utils.distributed import from_first, gather, get_rank, is_first, world_size
from semples_plugin.utils.text import reason

T = TypeVar("T")
_SAVE_EVERY = 30.0  # seconds of encoding that a kill may cost
_START = "start of the prompts"
_FORMAT = 3  # of the files in a work_dir


@dataclass
class PromptHistory:
    """What the prompts did while they learned; plain lists, ready for `json.dumps(history.to_dict())`.

    Attributes:
        class_names: K names.
        pairs: K counts of the (image, class) pairs that taught each prompt.
        loss: per epoch, L_prompt averaged over its steps.
        background: per epoch, K mean similarities sim(u_b, v_b); NaN for a class that was never seen.
        label: per epoch, K similarities sim(u_b, u_f) at its end.
        unseen: names of the classes without a pair; their prompts are not learned.
        drifted: names of the classes whose prompt ended up near its own label, see `learn_background_prompts`.
        quality: of each class, what its prompt was near to before it learned anything, and is at the end.
        verdict: one sentence on whether (b) went well, and what to do where it did not.
    """

    class_names: list[str]
    pairs: list[int]
    loss: list[float] = field(default_factory=list)
    background: list[list[float]] = field(default_factory=list)
    label: list[list[float]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    drifted: list[str] = field(default_factory=list)
    quality: list[ClassQuality] = field(default_factory=list)
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of lists, strings and numbers."""
        return asdict(self)


def learn_background_prompts(
    regularizer: SemPLeSRegularizer,
    batches: Iterable[tuple[Tensor, ClassMasks] | tuple[Tensor, ClassMasks, Sequence[Any]] | tuple[Tensor, ...]],
    *,
    epochs: int = 60,
    lr: float = 5e-4,
    batch_size: int = 128,
    weight_decay: float = 0.01,
    seed: int = 0,
    work_dir: str | Path | None = None,
    save_to: str | Path | None = None,
    origin: str | Path | nn.Module = "",
    progress: bool = True,
) -> PromptHistory:
    """Learns `regularizer.prompts`, in place, by equation (2), with AdamW and a cosine schedule to 0.

    The CAM network is fixed in this stage, so each background is encoded once, in one walk over `batches`; the
    epochs then run over the kept features, shuffled by `seed`. Neither CAM network nor CLIP is touched. Foregrounds are
    encoded beside them, to judge at the end whether the prompts describe backgrounds or the objects themselves.

    Args:
        regularizer: with the prompts to learn.
        batches: walked once, of (images, masks) as the regularizer takes them; put the CAM network into eval mode
            and make the masks under `torch.no_grad()`. Several views of an image are several batches. A host that
            can't be walked gives what it kept, `(*regularizer.pair_features(images, masks), masks.class_index)`:
            (v_f `[P, D]`, v_b `[P, D]`, classes `[P]`), or (v_b, classes), with which separation isn't measured.
            Under torch.distributed every rank walks its own part, and all ranks learn the same prompts from all
            parts. Samplers repeat some images to make the parts equal: give (images, masks, names), a name or number
            for each of the N images, and each name counts once.
        epochs: passes over the kept features.
        lr: at the start. The paper's 5e-4 by default; the release uses 0.1 with its uniform start.
        batch_size: pairs per step.
        weight_decay: AdamW's.
        seed: of the order of pairs.
        work_dir: a folder for features, every half minute of the walk, and the state, after every epoch. An interrupted
            call goes on there when it is made again with the same arguments, to the same prompts, and says so: batches
            that come again unchanged are not encoded again, and after the walk nothing is. Where only the schedule, the
            weights or the start of the prompts differ, the features are used again and the epochs begin anew. Removed
            when it is done. After the walk nobody looks at the masks: delete it if the CAM network has changed.
        save_to: file for the prompts. Its folder is made and tried before the walk. Where the file can't be written
            all the same, the learned prompts stay in memory, and `work_dir` on disk: save them, or call again.
        origin: what the masks come from: the model, told by its weights, or the name of its checkpoint; features of
            another origin are refused.
        progress: show progress bars.

    Returns:
        The history, per epoch and class, with a verdict.

    Warns:
        UserWarning: of a run that is continued; of classes that were never seen; of prompts that drift onto their
            object (they come nearest to their own label, and nearer than they began), a quarter of the way in; at the
            end, of prompts that describe the object or learned nothing.

    An exception, Ctrl-C among them, leaves the prompts as they were before the call, unless they are learned already.

    Raises:
        TypeError: for arguments or batches of another kind.
        OSError: where nothing can be written into `work_dir` or beside `save_to`, before the walk; or on a full disk.
        ValueError: when the batches hold no pair, or NaN; an argument is out of range; the prompts diverge; or
            `work_dir` holds features of other images, masks or classes, of another version, or a damaged file.
    """
    prompts = regularizer._need_prompts()
    check_learning(epochs, lr, batch_size, weight_decay, seed)
    made = (prompts.vectors, regularizer.label_features, *regularizer.clip.model.parameters())
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in made):
        raise ValueError(
            "nothing can learn under torch.inference_mode(), or from prompts, a regularizer or a CLIP made under it: "
            "make and call them outside, and the masks under torch.no_grad()"
        )
    # numpy's numbers would go into the saved state, where they can't be read as data.
    epochs, batch_size, seed, lr, weight_decay = int(epochs), int(batch_size), int(seed), float(lr), float(weight_decay)
    made_with = {
        "class_names": [str(name) for name in regularizer.class_names],
        "image statistics": [*map(float, (*regularizer.input_mean, *regularizer.input_std))],
        "fill": regularizer.fill.tolist(),
        "align_corners": regularizer.align_corners,
        "origin": name_origin(origin),
    }
    run = {
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "seed": seed,
        "weights": {name: float(weight) for name, weight in asdict(regularizer.weights).items()},
        "text_term": regularizer.text_term,
        "templates": [regularizer.template, prompts.template, str(prompts.suffix_ids)],
        _START: _digest(prompts.vectors),
    }
    signatures = [] if work_dir is None else [prompts.signature, _image_signature(regularizer.clip)]
    folder = _WorkDir(work_dir, made_with, signatures)
    if save_to is not None:
        _on_first(partial(folder.check_outside, save_to))
        _on_first(partial(check_writable, save_to))
    kept, state, folder.encoded = _on_first(folder.read)
    if state is not None and _are_the_end_of(state, run, prompts):  # the call before could not save them
        run[_START] = state["run"][_START]
    elif prompts.learned:
        _warn(
            "these prompts were learned already, and are learned further; to begin anew give the regularizer "
            "new BackgroundPrompts",
        )
    walked = kept is None
    if kept is None:
        try:
            kept = _walk(regularizer, batches, progress, folder)
        except BaseException:
            folder.remove_if_empty()
            raise
        if folder.encoded:
            _warn(
                f"{work_dir} held {len(folder.encoded)} batches of an interrupted walk: {folder.found} came again "
                "unchanged and were not encoded again"
            )
        _on_first(partial(folder.write_features, kept))
        folder.remove_parts()
    run["features"] = _digest(*kept)
    if state is not None or not walked:
        _warn(_describe_kept(work_dir, walked, len(kept.class_index), state, run))
    if state is not None and state["run"] != run:
        state = None
    device = regularizer.clip.device
    class_index, features = kept.class_index.to(device), kept.backgrounds.to(device)
    foregrounds = None if kept.foregrounds is None else kept.foregrounds.to(device)

    pairs = torch.bincount(class_index, minlength=prompts.num_classes)
    history = PromptHistory(list(regularizer.class_names), pairs.tolist())
    history.unseen = [name for name, count in zip(history.class_names, history.pairs, strict=True) if count == 0]
    if history.unseen:
        _warn(
            f"no image shows {', '.join(history.unseen)}: their prompts are not learned and would suppress "
            "nothing in particular; check the labels, or leave these classes out",
        )

    def measured() -> list[Nearness]:
        texts = regularizer.prompt_features(), regularizer.label_features
        return measure(history.class_names, *texts, class_index, features, foregrounds)

    def judged(now: Sequence[Nearness]) -> list[ClassQuality]:
        return [ClassQuality(*one) for one in zip(history.class_names, before, now, history.pairs, strict=True)]

    with _learning(prompts):
        start = prompts.vectors.detach().clone()
        before: Sequence[Nearness | None] = measured()
        if prompts.learned:  # what they were near to before they learned anything
            before = [one.before for one in prompts.quality] or [None] * prompts.num_classes
        optimizer = torch.optim.AdamW([prompts.vectors], lr=lr, weight_decay=weight_decay)
        steps = math.ceil(len(features) / batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
        if state is not None:
            try:
                _set(prompts, state["vectors"])
                optimizer.load_state_dict(state["optimizer"])
                schedule.load_state_dict(state["schedule"])
                history.loss, history.background, history.label, history.drifted = map(list, state["history"])
            except Exception as error:
                raise folder.damaged(_STATE) from error
        bar = tqdm(
            range(len(history.loss), epochs),
            "prompts",
            epochs,
            initial=len(history.loss),
            disable=not (progress and is_first()),
        )
        for epoch in bar:
            order = torch.randperm(len(features), generator=_generator(seed, epoch))
            total = torch.zeros((), device=features.device)
            for part in order.to(features.device).split(batch_size):
                optimizer.zero_grad()
                loss = sum_of(regularizer.prompt_losses_of(features[part], class_index[part]))
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
            taught = torch.where((pairs > 0)[:, None, None], prompts.vectors, start)  # others, decay alone would shrink
            _set(prompts, from_first(taught.detach().cpu()))  # ranks may round differently
            history.loss.append(float(total) / steps)
            # The last step's vectors are in no loss.
            if not (math.isfinite(history.loss[-1]) and bool(prompts.vectors.isfinite().all())):
                raise ValueError(
                    f"the prompts diverged in epoch {epoch + 1}, L_prompt {history.loss[-1]:.3g}; take a smaller lr"
                )
            now = measured()
            history.background.append([math.nan if one.background is None else one.background for one in now])
            history.label.append([one.label for one in now])
            history.drifted = [one.class_name for one in judged(now) if one.drifted]
            bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
            if history.drifted and epoch + 1 == math.ceil(epochs / 4) < epochs:
                _warn(_describe_drift(history.drifted, epoch + 1, epochs))
            reached = {
                "run": run,
                "done": epoch + 1,
                "vectors": prompts.vectors.detach().cpu(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "history": [history.loss, history.background, history.label, history.drifted],
            }
            _on_first(partial(folder.write_state, reached))
        history.quality = judged(measured())
        history.verdict = describe_quality(history.quality)
        prompts.seed, prompts.learned, prompts.quality = seed, True, tuple(history.quality)
    if save_to is not None:
        _on_first(partial(prompts.save, save_to))
    _on_first(folder.remove)
    if not went_well(history.quality):
        _warn(history.verdict)
    elif progress and is_first():
        tqdm.write(history.verdict)
    return history


def name_origin(origin: str | os.PathLike[str] | nn.Module) -> str:
    """What tells one origin of masks from another: a model's weights, on the first rank, or the name as it is."""
    if isinstance(origin, nn.Module):
        weights = (value for _, value in sorted(origin.state_dict().items()) if isinstance(value, Tensor))
        return from_first(f"weights {_digest(*weights)}")
    if not isinstance(origin, (str, os.PathLike)):
        raise TypeError(f"origin: expected the model that makes the masks, or its name or path, got {origin!r:.80}")
    return os.fspath(origin)


def check_learning(
    epochs: int = 60, lr: float = 5e-4, batch_size: int = 128, weight_decay: float = 0.01, seed: int = 0
) -> None:
    """Raises a `TypeError` or a `ValueError` for options of `learn_background_prompts` of another kind or range."""
    whole, real = {"epochs": epochs, "batch_size": batch_size, "seed": seed}, {"lr": lr, "weight_decay": weight_decay}
    for options, kind, words in ((whole, Integral, "an integer"), (real, Real, "a number")):
        for name, value in options.items():
            if not isinstance(value, kind):
                raise TypeError(f"{name}: expected {words}, got {value!r:.80}")
    if epochs < 1 or batch_size < 1 or not 0 < lr < math.inf or not 0 <= weight_decay < math.inf:
        raise ValueError(
            f"expected epochs and batch_size of at least 1, a finite lr above 0 and weight_decay of at least 0, "
            f"got {epochs}, {batch_size}, {lr}, {weight_decay}"
        )


def check_writable(path: str | Path) -> None:
    """Makes the folder of a file that is to be written later, and raises an `OSError` where it can't be."""
    path = Path(path).resolve()  # a link's file is written where it points to
    if path.is_dir():
        raise IsADirectoryError(f"save_to: expected a file's path, {path} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # the permissions of a folder don't tell the superuser
            pass
    except OSError as error:
        words = f"save_to: nothing can be written into {path.parent} ({reason(error)}); give another path"
        raise type(error)(error.errno, words) from error


class _Kept(NamedTuple):
    """Features of all pairs, on the CPU."""

    backgrounds: Tensor  # [P, D]
    foregrounds: Tensor | None
    class_index: Tensor  # [P]


_Encoded = dict[str, tuple[Tensor, Tensor]]  # a batch's digest to its v_f and v_b


class _Walked(NamedTuple):
    """One rank's features, part by part, and what tells its pairs from those of other ranks."""

    foregrounds: list[Tensor | None]
    backgrounds: list[Tensor]
    classes: list[Tensor]
    names: list[Any]


def _walk(regularizer: SemPLeSRegularizer, batches: Iterable[Any], progress: bool, folder: _WorkDir) -> _Kept:
    """Features and classes of the pairs of all ranks together."""
    walked = _Walked([], [], [], [])
    error: Exception | None = None
    try:
        walked = _walk_here(regularizer, batches, progress, folder)
    except Exception as raised:
        if world_size() == 1:
            raise
        error = raised  # the other ranks wait for this one, and must hear of it
    errors = [one for one in gather(None if error is None else f"{type(error).__name__}: {error}") if one]
    if errors:
        raise error or RuntimeError(f"another rank could not walk its data: {errors[0]}")
    foregrounds, backgrounds, classes, names = (
        [x for one in parts for x in one] for parts in zip(*gather(walked), strict=True)
    )
    if not names:
        raise ValueError(
            "batches: expected (images, masks) with at least one pair; the loader was empty, or no image has a label"
        )
    once = _once(torch.cat(classes), names)
    measured = all(one is not None for one in foregrounds)
    return _Kept(
        torch.cat(backgrounds)[once], torch.cat(foregrounds)[once] if measured else None, torch.cat(classes)[once]
    )


def _walk_here(regularizer: SemPLeSRegularizer, batches: Iterable[Any], progress: bool, folder: _WorkDir) -> _Walked:
    foregrounds, backgrounds, classes, names = walked = _Walked([], [], [], [])
    try:
        for number, batch in enumerate(tqdm(batches, "background features", disable=not progress or not is_first())):
            try:
                found = _given(batch, regularizer) or _encoded(batch, regularizer, folder)
            except ValueError as error:
                raise ValueError(f"batches: batch {number} (from 0): {error}") from error
            foreground, background, index, named = found
            foregrounds.append(foreground)
            backgrounds.append(background)
            classes.append(index)
            # Without names every pair is one of its own.
            names += [(get_rank(), number, i) for i in range(len(index))] if named is None else named
    finally:
        folder.flush()  # where Ctrl-C ends it, too
    return walked


def _encoded(
    batch: Any, regularizer: SemPLeSRegularizer, folder: _WorkDir
) -> tuple[Tensor, Tensor, Tensor, list[Any] | None]:
    """v_f, v_b, classes and names of a batch's pairs; what an interrupted walk left of it isn't encoded again."""
    images, masks, names = _parts(batch)
    digest = "" if folder.path is None else _digest_batch(images, masks)
    features = folder.find(digest)
    if features is None:
        foreground, background = regularizer.pair_features(images, masks)
        _check_finite(regularizer, masks.class_index, foreground, background)
        features = foreground.cpu(), background.cpu()
        folder.keep(digest, features)
    named = None if names is None else [names[i] for i in masks.image_index.tolist()]
    return *features, masks.class_index.cpu(), named


def _given(batch: Any, regularizer: SemPLeSRegularizer) -> tuple[Tensor | None, Tensor, Tensor, None] | None:
    """The same of a batch of features that the host kept; None for a batch of another kind."""
    if not (isinstance(batch, (tuple, list)) and len(batch) in (2, 3) and all(isinstance(x, Tensor) for x in batch)):
        return None
    *features, classes = (part.detach().cpu() for part in batch)
    width, names = regularizer.label_features.shape[1], regularizer.class_names
    whole = classes.ndim == 1 and not (classes.is_floating_point() or classes.dtype == torch.bool)
    if not whole or any(part.shape != (len(classes), width) for part in features):
        raise TypeError(
            f"batches: expected (images, ClassMasks), see ClassMasks.from_dense, or features [P, {width}] with "
            f"their classes [P]; got tensors {', '.join(str(list(part.shape)) for part in batch)}"
        )
    wrong = classes[(classes < 0) | (classes >= len(names))]
    if len(wrong):
        raise ValueError(
            f"a pair is of class {int(wrong[0])}, but class_names go from 0 ({names[0]!r}) to {len(names) - 1} "
            f"({names[-1]!r}); do the features belong to these names?"
        )
    _check_finite(regularizer, classes, *features)
    return features[0] if len(features) == 2 else None, features[-1], classes.long(), None


def _check_finite(regularizer: SemPLeSRegularizer, class_index: Tensor, *features: Tensor) -> None:
    """Raises where features are no numbers: prompts learned from them would be none, at whatever rate."""
    bad = (~torch.stack([part.isfinite().all(dim=1) for part in features]).all(dim=0)).nonzero()[:, 0]
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"the features of {len(bad)} of {len(class_index)} pairs are NaN or infinite, the first of them pair {i} "
            f"of class {regularizer.class_names[int(class_index[i])]!r}: CLIP's weights are damaged, or it overflows "
            'and is to be loaded with precision "fp32"'
        )


def _are_finite(*features: Tensor | None) -> bool:
    return all(part is None or bool(part.isfinite().all()) for part in features)


def _once(classes: Tensor, names: list[Any]) -> Tensor:
    """Where each image's classes stand once, in the order of the names, which is that of any number of ranks."""
    first: dict[Any, int] = {}
    for i, pair in enumerate(zip(names, classes.tolist(), strict=True)):
        first.setdefault(pair, i)
    with suppress(TypeError):  # names that have no order keep the one they came in
        first = dict(sorted(first.items()))
    return torch.tensor(list(first.values()))


def _parts(batch: Any) -> tuple[Tensor, ClassMasks, list[Any] | None]:
    """Images, masks and the images' names, None where there are none."""
    if not (isinstance(batch, (tuple, list)) and len(batch) in (2, 3)):
        raise TypeError(f"batches: expected pairs (images, masks), got {_kinds(batch)}")
    images, masks, names = (*batch, None)[:3]
    names = names.tolist() if isinstance(names, Tensor) else names
    named = len(batch) == 2 or (hasattr(names, "__len__") and not isinstance(names, str))
    if not isinstance(masks, ClassMasks) or not named:
        raise TypeError(f"batches: expected (images, masks) or (images, masks, names), got {_kinds(batch)}")
    check_tensor("images", images, shape="[N, 3, H, W]")
    if names is not None and len(names) != len(images):
        raise ValueError(f"expected a name for each of the {len(images)} images, got {len(names)}")
    return images, masks, names if names is None else [*map(_plain, names)]


def _plain(name: Any) -> Any:
    """An image's name as what equal names are equal to: a tensor is equal to itself alone."""
    if isinstance(name, tuple):
        return tuple(map(_plain, name))
    if isinstance(name, (Tensor, np.generic, np.ndarray)) and name.ndim == 0:
        return name.item()
    if isinstance(name, Tensor) or not isinstance(name, Hashable):
        raise TypeError(f"batches: expected a name or number for each image, got {type(name).__name__} {name!r:.80}")
    return name


def _kinds(batch: Any) -> str:
    parts = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else []
    return type(batch).__name__ + (f" of {', '.join(parts)}" if parts else "")


def _digest(*values: Any) -> str:
    """What tells tensors, plain values, and lists and dictionaries of them from others."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, (list, tuple, dict)):
            found.update(f"{len(value)} of".encode())
            for one in value.items() if isinstance(value, dict) else value:
                add(one)
        else:
            found.update(f"{value!r};".encode())

    add(values)
    return found.hexdigest()[:16]


def _digest_batch(images: Tensor, masks: ClassMasks) -> str:
    """The same of a batch, by all its pixels: nothing less tells it from every other one."""
    return _digest(images, masks.maps, masks.image_index, masks.class_index)


@torch.no_grad()
def _image_signature(clip: FrozenClip) -> Tensor:
    """A unit vector `[D]` on the CPU that tells one image tower from another, as `FrozenClip.signature` does texts'."""
    height, width = clip.image_size
    ramp = torch.linspace(-1.5, 1.5, width).expand(3, height, width)
    stripes = torch.tensor([1.5, -1.5, 0.0])[:, None, None] * torch.linspace(0, 40, height)[:, None].sin()
    one, other = clip.encode_images(torch.stack([ramp, stripes.expand_as(ramp)]).to(clip.device)).double().cpu()
    return F.normalize(one - other, dim=0).float()


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


@contextmanager
def _learning(prompts: BackgroundPrompts) -> Iterator[None]:
    # A host may have frozen the prompts; they are handed back as they came.
    wanted, start = prompts.vectors.requires_grad, copy.deepcopy(prompts.state_dict())
    prompts.vectors.requires_grad_(True)
    try:
        # The caller may stand under no_grad, where its batches make the masks, or under its autocast.
        with torch.enable_grad(), torch.autocast(prompts.vectors.device.type, enabled=False):
            yield
    except BaseException:
        prompts.load_state_dict(start)  # half-learned prompts would be the start of the next call
        raise
    finally:
        prompts.vectors.requires_grad_(wanted)
        prompts.vectors.grad = None


@torch.no_grad()
def _set(prompts: BackgroundPrompts, vectors: Tensor) -> None:
    prompts.vectors.copy_(vectors)  # unlike one of `.data`, this change is seen by whoever kept their features


def _on_first(do: Callable[[], T]) -> T:
    """What the first rank gets by `do`, on every rank, or the error that it gets: the others would wait for ever."""
    value: Any = None
    error: Exception | None = None
    if is_first():
        try:
            value = do()
        except Exception as raised:
            error = raised
    value, error = from_first((value, error))
    if error is not None:
        raise error
    return value


def _warn(message: str) -> None:
    """Warns the caller of `learn_background_prompts`, once and not on every rank."""
    if is_first():
        warnings.warn(message, UserWarning, stacklevel=3)


def _describe_drift(classes: Sequence[str], epoch: int, epochs: int) -> str:
    return (
        f"after {epoch} of {epochs} epochs the prompts of {', '.join(classes)} come nearest to their own label, and "
        "nearer than they began: they describe the object, and refinement would suppress it; look at these classes' "
        "masks (objects left in the background?), or raise LossWeights.text"
    )


def _describe_kept(
    folder: str | Path | None, walked: bool, pairs: int, state: dict[str, Any] | None, run: dict[str, Any]
) -> str:
    """What a call uses of the folder that an interrupted one left, and what it does not."""
    changed = "if the model has changed since, delete the folder and call again"
    done = 0 if state is None else state["done"]
    if state is None or state["run"] == run:
        return (
            f"{folder} holds an interrupted run, which is continued: the backgrounds of {pairs} pairs, "
            f"{done} of {run['epochs']} epochs; {changed}"
        )
    if walked:
        return f"{folder} holds {done} epochs of a run with other features or settings, which begins anew"
    return (
        f"{folder} holds an interrupted run with {_difference(state['run'], run)}: the backgrounds of {pairs} pairs "
        f"are used again, its {done} epochs are not, and learning begins anew; {changed}"
    )


def _are_the_end_of(state: dict[str, Any], run: dict[str, Any], prompts: BackgroundPrompts) -> bool:
    """Whether the prompts are what this very run has learned already."""
    same = all(state["run"].get(key) == value for key, value in run.items() if key != _START)
    return same and prompts.learned and torch.equal(prompts.vectors.detach().cpu(), state["vectors"])


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first settings that differ."""
    words = []
    for key, b in ours.items():
        a = theirs.get(key)
        if a != b and isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            i = next(i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
            key, a, b = f"{key}[{i}]", a[i], b[i]
        if a != b:
            words.append(f"{key} = {a!s:.60}, this one has {b!s:.60}")
    return "; ".join(words[:3])


_FEATURES, _STATE, _PART = "features.pt", "state.pt", "features.part-"
_AGAIN = {
    _FEATURES: "its pairs are encoded again then",
    _STATE: "the epochs begin anew then, on the features that are kept",
    _PART: "its batches are encoded again then",
}


class _WorkDir:
    """What an interrupted run leaves behind; does nothing without a folder.

    `features.part-RANK-TIME.pt` hold batches by their digests, while the walk goes on; `features.pt` the features of
    all pairs; `state.pt` where the epochs have come to, and the digest of the features that it belongs to. Each holds
    a digest of itself: torch reads flipped bits as other numbers.

    Args:
        path: of the folder.
        made_with: settings that features depend on, by their names.
        signatures: of CLIP's texts, where known, and images.

    Attributes:
        encoded: the batches of an interrupted walk.
        found: how many of them came again.
    """

    def __init__(self, path: str | Path | None, made_with: dict[str, Any], signatures: list[Tensor | None]) -> None:
        self.path = None if path is None else Path(path)
        self._made_with, self._signatures = made_with, signatures
        self.encoded: _Encoded = {}
        self.found = 0
        self._pending: _Encoded = {}
        self._saved = time.monotonic()

    def read(self) -> tuple[_Kept | None, dict[str, Any] | None, _Encoded]:
        """Features, state and the batches of an unfinished walk, as far as they are there; makes the folder."""
        if self.path is None:
            return None, None, {}
        self.path.mkdir(parents=True, exist_ok=True)  # where it can't be, say so before the walk
        remove_left(self.path)
        kept = self._read(_FEATURES, _Kept._fields)
        state = self._read(_STATE, ("run", "done", "vectors", "optimizer", "schedule", "history"))
        encoded: _Encoded = {}
        for path in () if kept else sorted(self.path.glob(f"{_PART}*.pt")):
            batches = (self._read(path.name, ("batches",)) or {}).get("batches", {})
            if not _are_finite(*(features for pair in batches.values() for features in pair)):
                raise self.damaged(path.name)
            encoded.update(batches)
        if kept is not None and not _are_finite(*kept.values()):
            raise self.damaged(_FEATURES)
        return (_Kept(**kept) if kept else None), state, encoded

    def find(self, digest: str) -> tuple[Tensor, Tensor] | None:
        """v_f and v_b of a batch that was encoded before the interruption."""
        features = self.encoded.get(digest)
        self.found += features is not None
        return features

    def keep(self, digest: str, features: tuple[Tensor, Tensor]) -> None:
        """Keeps a batch, on disk half a minute later at most."""
        if self.path is not None:
            self._pending[digest] = features
            if time.monotonic() - self._saved >= _SAVE_EVERY:
                self.flush()

    def flush(self) -> None:
        """Writes the batches that are kept in memory alone; every rank its own."""
        if self._pending:
            self._write(f"{_PART}{get_rank()}-{time.time_ns()}.pt", {"batches": self._pending})
        self._pending, self._saved = {}, time.monotonic()

    def write_features(self, kept: _Kept) -> None:
        self._write(_FEATURES, kept._asdict())

    def write_state(self, state: dict[str, Any]) -> None:
        self._write(_STATE, state)

    def remove_parts(self) -> None:
        for path in () if self.path is None else self.path.glob(f"{_PART}*.pt"):
            if not path.is_dir():
                path.unlink(missing_ok=True)  # another rank may have been quicker
        self.encoded = {}
        self.remove_if_empty()

    def remove(self) -> None:
        if self.path is not None:
            for name in (_FEATURES, _STATE):
                (self.path / name).unlink(missing_ok=True)
            remove_left(self.path)
            self.remove_parts()

    def remove_if_empty(self) -> None:
        if self.path is not None:
            with suppress(OSError):  # what else a user keeps there stays
                self.path.rmdir()

    def check_outside(self, file: str | Path) -> None:
        """Raises a `ValueError` for a file that would be taken for one of these, and removed with them."""
        file, own = Path(file).resolve(), None if self.path is None else self.path.resolve()
        name, inside = file.name, file.parent == own
        if inside and (name in (_FEATURES, _STATE) or (name.startswith(_PART) and file.suffix == ".pt")):
            raise ValueError(f"save_to: {file} is a file of work_dir, which is removed at the end; give another path")
        if own is not None and file in (own, *own.parents):
            raise IsADirectoryError(
                f"save_to: expected a file's path, {file} is a folder, work_dir or one that holds it"
            )

    def damaged(self, name: str) -> ValueError:
        again = next(words for kind, words in _AGAIN.items() if name.startswith(kind))
        return ValueError(
            f"{self.path}/{name} is damaged, or no file of this command's: delete it, or use another work_dir, and "
            f"call again; {again}"
        )

    def _read(self, name: str, keys: Iterable[str]) -> dict[str, Any] | None:
        if self.path is None or not (self.path / name).exists():
            return None
        try:
            found = dict(torch.load(self.path / name, map_location="cpu", weights_only=True))
        except Exception as error:
            raise self.damaged(name) from error
        if found.get("format") != _FORMAT and ("format" in found or "settings" in found):  # 0.1.0 had no number yet
            raise ValueError(
                f"{self.path} holds a run that another version of semples-plugin left unfinished: finish it with that "
                "one, or delete the folder to begin again"
            )
        digest = found.pop("digest", None)
        if digest != _digest(found) or not {"made_with", "signatures", *keys} <= found.keys():
            raise self.damaged(name)
        if found["made_with"] != self._made_with:
            raise ValueError(
                f"{self.path} holds an unfinished run with {_difference(found['made_with'], self._made_with)}; delete "
                "that folder to begin again, or use another work_dir"
            )
        if not all(map(same_clip, self._signatures, found["signatures"])):
            raise ValueError(
                f"{self.path} holds an unfinished run with another CLIP; delete that folder to begin again, or use "
                "another work_dir"
            )
        return {key: found[key] for key in keys}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.path is not None:
            about = {"format": _FORMAT, "made_with": self._made_with, "signatures": self._signatures}
            content = {**about, **content}
            with replacing(self.path / name) as temporary:
                torch.save({**content, "digest": _digest(content)}, temporary)
