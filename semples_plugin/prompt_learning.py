"""Stage (b): background prompts from background features that are encoded once."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from semples_plugin.distributed import from_first, gather, get_rank, is_first, world_size
from semples_plugin.files import replacing
from semples_plugin.masks import ClassMasks
from semples_plugin.prompts import BackgroundPrompts, same_clip
from semples_plugin.regularizer import SemPLeSRegularizer, sum_of

_DRIFT = 0.05  # rise of sim(u_b, u_f) over its start from which a prompt counts as drawn to the object


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
    """

    class_names: list[str]
    pairs: list[int]
    loss: list[float] = field(default_factory=list)
    background: list[list[float]] = field(default_factory=list)
    label: list[list[float]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    drifted: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of lists, strings and numbers."""
        return asdict(self)


def learn_background_prompts(
    regularizer: SemPLeSRegularizer,
    batches: Iterable[tuple[Tensor, ClassMasks | Tensor] | tuple[Tensor, ClassMasks, Sequence[Any]]],
    *,
    epochs: int = 60,
    lr: float = 5e-4,
    batch_size: int = 128,
    weight_decay: float = 0.01,
    seed: int = 0,
    work_dir: str | Path | None = None,
    save_to: str | Path | None = None,
    origin: str = "",
    progress: bool = True,
) -> PromptHistory:
    """Learns `regularizer.prompts`, in place, by equation (2), with AdamW and a cosine schedule to 0.

    The generator is fixed in this stage, so each background is encoded once, in one walk over `batches`; the
    epochs then run over the kept features, shuffled by `seed`. Neither generator nor CLIP is touched.

    Args:
        regularizer: with the prompts to learn.
        batches: walked once, of (images, masks) as the regularizer takes them; put the generator into eval mode
            and make the masks under `torch.no_grad()`. Several views of an image are several batches. A host that
            can't be walked gives what it kept of `regularizer.background_features`: (v_b `[P, D]`, classes `[P]`).
            Under torch.distributed every rank walks its own part, and all ranks learn the same prompts from all
            parts. Samplers repeat some images to make the parts equal: give (images, masks, names), a name or number
            for each of the N images, and each name counts once.
        epochs: passes over the kept features.
        lr: at the start. The paper's 5e-4 by default; the release uses 0.1 with its uniform start.
        batch_size: pairs per step.
        weight_decay: AdamW's.
        seed: of the order of pairs.
        work_dir: a folder for the features and, after every epoch, the state: an interrupted call continues there
            when it is made again with the same arguments, to the same prompts, and says so. Removed when it is
            done. Delete it yourself if the generator has changed in between.
        save_to: file for the prompts, written before `work_dir` is removed, so that a full disk costs nothing.
        origin: what the masks come from, a checkpoint's name, say; a run of another origin isn't continued.
        progress: show progress bars.

    Returns:
        The history, per epoch and class.

    Warns:
        UserWarning: of a run that is continued; of classes that were never seen; of prompts that drift onto their
            object (they come nearest to their own label, and nearer than they began), a quarter of the way in and
            at the end.

    An exception, Ctrl-C among them, leaves the prompts as they were before the call.

    Raises:
        ValueError: when the batches hold no pair, an argument is out of range, or `work_dir` is another run's.
    """
    prompts = regularizer._need_prompts()
    check_learning(epochs, lr, batch_size, weight_decay)
    # numpy's numbers would go into the saved state, where they can't be read as data.
    epochs, batch_size, seed, lr, weight_decay = int(epochs), int(batch_size), int(seed), float(lr), float(weight_decay)
    settings = {
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "seed": seed,
        "weights": {name: float(weight) for name, weight in asdict(regularizer.weights).items()},
        "text_term": regularizer.text_term,
        "class_names": [str(name) for name in regularizer.class_names],
        "templates": [regularizer.template, prompts.template, str(prompts.suffix_ids)],
        "image statistics": [*map(float, (*regularizer.input_mean, *regularizer.input_std))],
        "fill": regularizer.fill.tolist(),
        "origin": origin,
        "start of the prompts": hashlib.sha256(prompts.vectors.detach().cpu().numpy().tobytes()).hexdigest()[:12],
    }
    if save_to is not None and Path(save_to).is_dir():
        raise IsADirectoryError(f"save_to: expected a file's path, {save_to} is a folder")
    folder = _WorkDir(work_dir if is_first() else None, settings, prompts.signature)
    kept, state = from_first((folder.read_features(), folder.read_state()))
    if kept is not None:
        done = len(state["history"][0]) if state else 0
        _warn(
            f"{work_dir} holds an interrupted run, which is continued: the backgrounds of {len(kept[1])} pairs, "
            f"{done} of {epochs} epochs; if the model has changed since, delete the folder and call again",
        )
    else:
        if prompts.learned:
            _warn(
                "these prompts were learned already, and are learned further; to begin anew give the regularizer "
                "new BackgroundPrompts",
            )
        try:
            kept = _walk(regularizer, batches, progress)
        except BaseException:
            folder.remove_if_empty()
            raise
        folder.write_features(kept)
    features, class_index = (tensor.to(regularizer.clip.device) for tensor in kept)

    pairs = torch.bincount(class_index, minlength=prompts.num_classes)
    history = PromptHistory(list(regularizer.class_names), pairs.tolist())
    history.unseen = [name for name, count in zip(history.class_names, history.pairs) if count == 0]
    if history.unseen:
        _warn(
            f"no image shows {', '.join(history.unseen)}: their prompts are not learned and would suppress "
            "nothing in particular; check the labels, or leave these classes out",
        )
    with _learning(prompts):
        start = prompts.vectors.detach().clone()
        unseen = pairs == 0
        optimizer = torch.optim.AdamW([prompts.vectors], lr=lr, weight_decay=weight_decay)
        steps = math.ceil(len(features) / batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
        at_start = _label_similarities(regularizer)
        if state is not None:
            prompts.vectors.data.copy_(state["vectors"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            at_start = state["at_start"].to(at_start)
            history.loss, history.background, history.label, history.drifted = state["history"]
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
            prompts.vectors.data[unseen] = start[unseen]  # weight decay alone would have shrunk them
            labels = _label_similarities(regularizer)
            prompts.vectors.data.copy_(from_first(prompts.vectors.data.cpu()))  # ranks may round differently
            history.loss.append(float(total) / steps)
            if not math.isfinite(history.loss[-1]):
                raise ValueError(f"L_prompt became {history.loss[-1]} in epoch {epoch + 1}; take a smaller lr")
            history.background.append(_background_similarities(regularizer, features, class_index, pairs))
            history.label.append(labels.diagonal().tolist())
            history.drifted = _drifted(history, at_start, labels)
            bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
            if history.drifted and epoch + 1 in (math.ceil(epochs / 4), epochs):
                _warn(_describe_drift(history.drifted, epoch + 1, epochs))
            folder.write_state(
                {
                    "vectors": prompts.vectors.detach().cpu(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "at_start": at_start.cpu(),
                    "history": (history.loss, history.background, history.label, history.drifted),
                }
            )
    prompts.seed, prompts.learned = seed, True
    prompts.similarities = {
        "background": [None if math.isnan(value) else value for value in history.background[-1]],
        "label": [*history.label[-1]],
    }
    if save_to is not None and is_first():
        prompts.save(save_to)
    folder.remove()
    return history


def check_learning(epochs: int = 60, lr: float = 5e-4, batch_size: int = 128, weight_decay: float = 0.01) -> None:
    """Raises a `ValueError` for options of `learn_background_prompts` that are out of range."""
    if epochs < 1 or batch_size < 1 or not lr > 0 or weight_decay < 0:
        raise ValueError(
            f"expected epochs and batch_size of at least 1, lr above 0 and weight_decay of at least 0, "
            f"got {epochs}, {batch_size}, {lr}, {weight_decay}"
        )


Kept = tuple[list[Tensor], list[Tensor], list[Any]]


def _walk(regularizer: SemPLeSRegularizer, batches: Iterable[Any], progress: bool) -> tuple[Tensor, Tensor]:
    """Background features `[P, D]` and their classes `[P]`, on the CPU, of all ranks together."""
    kept: Kept = ([], [], [])
    error: Exception | None = None
    try:
        kept = _walk_here(regularizer, batches, progress)
    except Exception as raised:
        if world_size() == 1:
            raise
        error = raised  # the other ranks wait for this one, and must hear of it
    errors = [one for one in gather(None if error is None else f"{type(error).__name__}: {error}") if one]
    if errors:
        raise error or RuntimeError(f"another rank could not walk its data: {errors[0]}")
    features, classes, names = ([item for part in parts for item in part] for parts in zip(*gather(kept)))
    if not names:
        raise ValueError(
            "batches: expected (images, masks) with at least one pair; the loader was empty, or no image has a label"
        )
    return _once(torch.cat(features), torch.cat(classes), names)


def _walk_here(regularizer: SemPLeSRegularizer, batches: Iterable[Any], progress: bool) -> Kept:
    features: list[Tensor] = []
    classes: list[Tensor] = []
    names: list[Any] = []
    width = regularizer.label_features.shape[1]
    for number, batch in enumerate(tqdm(batches, "background features", disable=not progress or not is_first())):
        images, masks, named = _parts(batch)
        given = isinstance(masks, Tensor)
        if given and (images.shape != (len(masks), width) or masks.ndim != 1 or masks.is_floating_point()):
            raise TypeError(
                f"batches: expected (images, ClassMasks), see ClassMasks.from_dense, or features [P, {width}] with "
                f"their classes [P]; got tensors {list(images.shape)} and {list(masks.shape)}"
            )
        features.append((images if given else regularizer.background_features(images, masks)).cpu())
        classes.append((masks if given else masks.class_index).cpu())
        if named is None:  # every pair is one of its own
            names += [(get_rank(), number, i) for i in range(len(classes[-1]))]
        else:
            names += [named[i] for i in masks.image_index.tolist()]
    return features, classes, names


def _once(features: Tensor, classes: Tensor, names: list[Any]) -> tuple[Tensor, Tensor]:
    """Each image's classes once, in the order of the names, which doesn't depend on the number of ranks."""
    first: dict[Any, int] = {}
    for i, pair in enumerate(zip(names, classes.tolist())):
        first.setdefault(pair, i)
    with suppress(TypeError):  # names that have no order keep the one they came in
        first = dict(sorted(first.items()))
    places = torch.tensor(list(first.values()))
    return features[places], classes[places]


def _parts(batch: Any) -> tuple[Tensor, Any, list[Any] | None]:
    """Images or features, masks or classes, and names, None where there are none."""
    if not (isinstance(batch, (tuple, list)) and len(batch) in (2, 3)):
        raise TypeError(f"batches: expected pairs (images, masks), got {_kinds(batch)}")
    if len(batch) == 2:
        return batch[0], batch[1], None
    images, masks, names = batch
    names = names.tolist() if isinstance(names, Tensor) else names
    if not isinstance(masks, ClassMasks) or isinstance(names, str) or not hasattr(names, "__len__"):
        raise TypeError(f"batches: expected (images, masks) or (images, masks, names), got {_kinds(batch)}")
    if len(names) != len(images):
        raise ValueError(f"batches: expected a name for each of the {len(images)} images, got {len(names)}")
    return images, masks, list(names)


def _kinds(batch: Any) -> str:
    parts = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else []
    return type(batch).__name__ + (f" of {', '.join(parts)}" if parts else "")


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


@contextmanager
def _learning(prompts: BackgroundPrompts) -> Iterator[None]:
    # A host may have frozen the prompts; they are handed back as they came.
    wanted, start, learned = prompts.vectors.requires_grad, prompts.vectors.detach().clone(), prompts.learned
    prompts.vectors.requires_grad_(True)
    try:
        # The caller may stand under no_grad, where its generator makes the masks, or under its autocast.
        with torch.enable_grad(), torch.autocast(prompts.vectors.device.type, enabled=False):
            yield
    except BaseException:
        prompts.vectors.data.copy_(start)  # half-learned prompts would be the start of the next call
        prompts.learned = learned
        raise
    finally:
        prompts.vectors.requires_grad_(wanted)
        prompts.vectors.grad = None


@torch.no_grad()
def _label_similarities(regularizer: SemPLeSRegularizer) -> Tensor:
    """Cosine of each prompt `[K]` to each label `[K]`."""
    return regularizer.prompt_features() @ regularizer.label_features.T


@torch.no_grad()
def _background_similarities(
    regularizer: SemPLeSRegularizer, features: Tensor, class_index: Tensor, pairs: Tensor
) -> list[float]:
    cosines = (regularizer.prompt_features()[class_index] * features).sum(1)
    sums = torch.zeros(len(pairs), dtype=cosines.dtype, device=cosines.device).index_add_(0, class_index, cosines)
    return (sums / pairs).tolist()


def _drifted(history: PromptHistory, at_start: Tensor, labels: Tensor) -> list[str]:
    own, nearest = labels.diagonal(), labels.argmax(dim=1)
    rise = own - at_start.diagonal()
    return [
        name
        for k, name in enumerate(history.class_names)
        if history.pairs[k] and int(nearest[k]) == k and float(rise[k]) > _DRIFT
    ]


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


class _WorkDir:
    """Features and state of an unfinished run; does nothing without a folder."""

    def __init__(self, folder: str | Path | None, settings: dict[str, Any], signature: Tensor | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.settings, self.signature = settings, signature
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)  # where it can't be, say so before the walk

    def read_features(self) -> tuple[Tensor, Tensor] | None:
        found = self._read("features.pt")
        return None if found is None else (found["features"], found["class_index"])

    def write_features(self, kept: tuple[Tensor, Tensor]) -> None:
        self._write("features.pt", {"features": kept[0], "class_index": kept[1]})

    def read_state(self) -> dict[str, Any] | None:
        return self._read("state.pt")

    def write_state(self, state: dict[str, Any]) -> None:
        self._write("state.pt", state)

    def remove(self) -> None:
        if self.folder is not None:
            for name in ("features.pt", "state.pt"):
                (self.folder / name).unlink(missing_ok=True)
            self.remove_if_empty()

    def remove_if_empty(self) -> None:
        if self.folder is not None:
            with suppress(OSError):  # what else a user keeps there stays
                self.folder.rmdir()

    def _read(self, name: str) -> dict[str, Any] | None:
        if self.folder is None or not (self.folder / name).is_file():
            return None
        path = self.folder / name
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            settings, signature = found["settings"], found["signature"]
        except Exception as error:
            raise ValueError(f"{path} is damaged; delete it to begin again") from error
        differing = [key for key, value in self.settings.items() if settings.get(key) != value]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{self.folder} holds an unfinished run with {key} = {settings.get(key)}, this one has "
                f"{self.settings[key]}; delete that folder to begin again, or use another work_dir"
            )
        if not same_clip(self.signature, signature):
            raise ValueError(
                f"{self.folder} holds an unfinished run with another CLIP; delete that folder to begin again, or use "
                "another work_dir"
            )
        return dict(found)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.folder is not None:
            with replacing(self.folder / name) as temporary:
                torch.save({"settings": self.settings, "signature": self.signature, **content}, temporary)
