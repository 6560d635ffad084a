"""The walk over the batches, in which each foreground and background is encoded once, on every rank its own part."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from semples_plugin.masks import ClassMasks
from semples_plugin.prompt_learning.work_dir import PairFeatures, WorkDir, digest_batch
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.checks import check_tensor
from semples_plugin.utils.distributed import gather, get_rank, is_first, world_size


class BatchFeatures(NamedTuple):
    """Features of one batch's P pairs, on the CPU.

    Attributes:
        foregrounds: v_f `[P, D]`; None where the host kept backgrounds alone.
        backgrounds: v_b `[P, D]`.
        class_index: `[P]`.
        names: the image's name of each pair; None where images have no names.
    """

    foregrounds: Tensor | None
    backgrounds: Tensor
    class_index: Tensor
    names: list[Any] | None


def walk(
    regularizer: SemPLeSRegularizer, batches: Iterable[Any], mask_tau: float, folder: WorkDir, progress: bool
) -> PairFeatures:
    """Features and classes of the pairs of all ranks together, each named image's once; `mask_tau` hardens masks.

    Collective: an error on one rank is raised on all of them.
    """
    own: list[BatchFeatures] = []
    error: Exception | None = None
    try:
        own = _walk_rank(regularizer, batches, mask_tau, folder, progress)
    except Exception as raised:
        if world_size() == 1:
            raise
        error = raised  # the other ranks wait for this one
    messages = gather(None if error is None else f"{type(error).__name__}: {error}")
    failed = [message for message in messages if message is not None]
    if failed:
        raise error or RuntimeError(f"another rank could not walk its data: {failed[0]}")
    return _join([batch for rank_batches in gather(own) for batch in rank_batches])


def _join(batches: list[BatchFeatures]) -> PairFeatures:
    """The batches of all ranks as one, without pairs that came twice."""
    names = [name for batch in batches for name in batch.names or ()]
    if not names:
        raise ValueError(
            "batches: expected (images, masks) with at least one pair; the loader was empty, or no image has a label"
        )
    class_index = torch.cat([batch.class_index for batch in batches])
    backgrounds = torch.cat([batch.backgrounds for batch in batches])
    foregrounds = [batch.foregrounds for batch in batches if batch.foregrounds is not None]
    chosen = _unique_pairs(class_index, names)
    return PairFeatures(
        backgrounds=backgrounds[chosen],
        foregrounds=torch.cat(foregrounds)[chosen] if len(foregrounds) == len(batches) else None,
        class_index=class_index[chosen],
    )


def _unique_pairs(class_index: Tensor, names: list[Any]) -> Tensor:
    """The first position of each (image name, class).

    They are sorted by name and class, so that their order doesn't depend on the number of ranks.
    """
    first: dict[Any, int] = {}
    for i, pair in enumerate(zip(names, class_index.tolist(), strict=True)):
        first.setdefault(pair, i)
    with suppress(TypeError):  # names that can't be compared keep the order in which they came
        first = dict(sorted(first.items()))
    return torch.tensor(list(first.values()))


def _walk_rank(
    regularizer: SemPLeSRegularizer, batches: Iterable[Any], mask_tau: float, folder: WorkDir, progress: bool
) -> list[BatchFeatures]:
    """Features of this rank's batches."""
    walked = []
    try:
        bar = tqdm(batches, "background features", disable=not (progress and is_first()))
        for number, batch in enumerate(bar):
            try:
                features = _read_features(batch, regularizer, mask_tau) or _encode(batch, regularizer, mask_tau, folder)
            except ValueError as error:
                raise ValueError(f"batches: batch {number} (from 0): {error}") from error
            if features.names is None:  # then no pair is another one's repetition
                names = [(get_rank(), number, i) for i in range(len(features.class_index))]
                features = features._replace(names=names)
            walked.append(features)
    finally:
        folder.write_batches()  # after Ctrl-C, too
    return walked


def _encode(batch: Any, regularizer: SemPLeSRegularizer, mask_tau: float, folder: WorkDir) -> BatchFeatures:
    """Features of a batch (images, masks) or (images, masks, names); those that an interrupted walk left are reused."""
    images, masks, names = _unpack(batch)
    digest = "" if folder.path is None else digest_batch(images, masks)
    features = folder.find_batch(digest)
    if features is None:
        foregrounds, backgrounds = regularizer.pair_features(images, harden(masks, mask_tau, regularizer))
        _check_finite(regularizer, masks.class_index, foregrounds, backgrounds)
        features = foregrounds.cpu(), backgrounds.cpu()
        folder.add_batch(digest, features)
    pair_names = None if names is None else [names[i] for i in masks.image_index.tolist()]
    return BatchFeatures(*features, masks.class_index.cpu(), pair_names)


def harden(masks: ClassMasks, mask_tau: float, regularizer: SemPLeSRegularizer) -> ClassMasks:
    """min(M / mask_tau, 1) at the resolution of CLIP's views, where nothing blurs hard edges again; M for 1."""
    if mask_tau == 1:
        return masks
    return masks.resized(*regularizer.clip.image_size, regularizer.align_corners).hardened(mask_tau)


def _read_features(batch: Any, regularizer: SemPLeSRegularizer, mask_tau: float) -> BatchFeatures | None:
    """A batch of features that the host kept, (v_f, v_b, classes) or (v_b, classes); None for any other batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        return None
    if not all(isinstance(tensor, Tensor) for tensor in batch):
        return None
    if mask_tau != 1:
        raise ValueError(
            f"mask_tau is {mask_tau:g}, but there are features, whose masks nothing can harden any more: harden them "
            "before they are encoded, masks.hardened(mask_tau), and leave it out"
        )
    *features, classes = (tensor.detach().cpu() for tensor in batch)
    width = regularizer.label_features.shape[1]
    are_indices = classes.ndim == 1 and not (classes.is_floating_point() or classes.dtype == torch.bool)
    if not are_indices or any(tensor.shape != (len(classes), width) for tensor in features):
        raise TypeError(
            f"batches: expected (images, ClassMasks), see ClassMasks.from_dense, or features [P, {width}] with "
            f"their classes [P]; got tensors {', '.join(str(list(tensor.shape)) for tensor in batch)}"
        )
    names = regularizer.class_names
    outside = classes[(classes < 0) | (classes >= len(names))]
    if len(outside):
        raise ValueError(
            f"a pair is of class {int(outside[0])}, but class_names go from 0 ({names[0]!r}) to {len(names) - 1} "
            f"({names[-1]!r}); do the features belong to these names?"
        )
    _check_finite(regularizer, classes, *features)
    foregrounds = features[0] if len(features) == 2 else None
    return BatchFeatures(foregrounds, features[-1], classes.long(), names=None)


def _check_finite(regularizer: SemPLeSRegularizer, class_index: Tensor, *features: Tensor) -> None:
    """Raises a `ValueError` for NaN and infinity: no learning rate could make up for them."""
    finite = torch.stack([tensor.isfinite().all(dim=1) for tensor in features]).all(dim=0)
    bad = (~finite).nonzero()[:, 0]
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"the features of {len(bad)} of {len(class_index)} pairs are NaN or infinite, the first of them pair {i} "
            f"of class {regularizer.class_names[int(class_index[i])]!r}: CLIP's weights are damaged, or it overflows "
            'and is to be loaded with precision "fp32"'
        )


def _unpack(batch: Any) -> tuple[Tensor, ClassMasks, list[Any] | None]:
    """Images, masks and the images' names, None where the batch has none."""
    if not (isinstance(batch, (tuple, list)) and len(batch) in (2, 3)):
        raise TypeError(f"batches: expected pairs (images, masks), got {_describe_types(batch)}")
    images, masks = batch[:2]
    names = batch[2] if len(batch) == 3 else None
    if isinstance(names, Tensor):
        names = names.tolist()
    are_names = len(batch) == 2 or (hasattr(names, "__len__") and not isinstance(names, str))
    if not isinstance(masks, ClassMasks) or not are_names:
        raise TypeError(f"batches: expected (images, masks) or (images, masks, names), got {_describe_types(batch)}")
    check_tensor("images", images, shape="[N, 3, H, W]")
    if names is None:
        return images, masks, None
    if len(names) != len(images):
        raise ValueError(f"expected a name for each of the {len(images)} images, got {len(names)}")
    return images, masks, [_comparable(name) for name in names]


def _comparable(name: Any) -> Any:
    """An image's name as a hashable value that equals the same name elsewhere; tensors equal themselves alone."""
    if isinstance(name, tuple):
        return tuple(map(_comparable, name))
    if isinstance(name, (Tensor, np.generic, np.ndarray)) and name.ndim == 0:
        return name.item()
    if isinstance(name, Tensor) or not isinstance(name, Hashable):
        raise TypeError(f"batches: expected a name or number for each image, got {type(name).__name__} {name!r:.80}")
    return name


def _describe_types(batch: Any) -> str:
    """The type of a batch, and those of its elements: "tuple of Tensor, int"."""
    if not isinstance(batch, (tuple, list)) or not batch:
        return type(batch).__name__
    return f"{type(batch).__name__} of {', '.join(type(element).__name__ for element in batch)}"
