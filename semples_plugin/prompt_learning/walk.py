"""The walk over the batches, in which each foreground and background is encoded once, on every rank its own part."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from semples_plugin.masks import ClassMasks
from semples_plugin.prompt_learning.feature_store import MemoryFeatures, PairFeatures
from semples_plugin.prompt_learning.work_dir import WorkDir, digest, digest_batch
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.checks import check_tensor
from semples_plugin.utils.distributed import gather, gather_rows, get_rank, is_first, world_size

Features = tuple[Tensor | None, Tensor]
"""v_f and v_b of a batch, each `[P, D]`; no v_f where the host kept backgrounds alone."""


class _Walked:
    """This rank's pairs so far, and their features, on the CPU or in the folder.

    Attributes:
        class_index: of each pair.
        names: the image's name of each pair; None while no image has had a name.
        has_foregrounds: whether all of them have v_f.
        features: of each batch, where there is no folder.
        rows: of each pair in the folder, see `parts.PART_STRIDE`.
    """

    def __init__(self) -> None:
        self.class_index = array("q")
        self.names: list[Any] | None = None
        self.has_foregrounds = True
        self.features: list[Features] = []
        self.rows = array("q")

    def add(self, class_index: Tensor, names: list[Any] | None, has_foregrounds: bool) -> None:
        """Adds a batch's pairs: their classes and the names of their images."""
        if names is not None:
            self.name_all()
        self.class_index.extend(class_index.tolist())
        self.has_foregrounds = self.has_foregrounds and has_foregrounds
        if self.names is not None:
            self.names += names or ()
            self.name_all()

    def name_all(self) -> list[Any]:
        """The names; pairs without one, which are nobody's repetition, get one that no other pair has."""
        if self.names is None:
            self.names = []
        self.names += [(get_rank(), i) for i in range(len(self.names), len(self.class_index))]
        return self.names


def walk(
    regularizer: SemPLeSRegularizer, batches: Iterable[Any], mask_tau: float, folder: WorkDir, progress: bool
) -> PairFeatures:
    """Features and classes of the pairs of all ranks together, each named image's once; `mask_tau` hardens masks.

    Collective: an error on one rank is raised on all of them.
    """
    walked = _Walked()
    error: Exception | None = None
    try:
        _walk_rank(walked, regularizer, batches, mask_tau, folder, progress)
    except Exception as raised:
        if world_size() == 1:
            raise
        error = raised  # the other ranks wait for this one
    messages = gather(None if error is None else f"{type(error).__name__}: {error}")
    failed = [message for message in messages if message is not None]
    if failed:
        raise error or RuntimeError(f"another rank could not walk its data: {failed[0]}")
    return _join(walked, folder, regularizer.label_features[:0].cpu())


def _join(walked: _Walked, folder: WorkDir, empty: Tensor) -> PairFeatures:
    """The pairs of all ranks as one, without those that came twice; `empty` `[0, D]` are the features of none."""
    class_index = torch.from_numpy(np.concatenate(gather(np.asarray(walked.class_index))))
    if len(class_index) == 0:
        raise ValueError(
            "batches: expected (images, masks) with at least one pair; the loader was empty, or no image has a label"
        )
    are_named = any(gather(walked.names is not None))
    chosen = torch.arange(len(class_index))
    if are_named:
        chosen = _unique_pairs(class_index.numpy(), chain.from_iterable(gather(walked.name_all())))
        walked.names = None  # nobody needs them any more, and they are what takes most memory
    has_foregrounds = all(gather(walked.has_foregrounds))
    if folder.parts is not None:
        return folder.share(folder.parts, walked.rows, class_index, has_foregrounds, chosen)

    def joined(features: Iterable[Tensor | None]) -> Tensor:
        rows = gather_rows(torch.cat([tensor for tensor in features if tensor is not None] or [empty]))
        return rows[chosen] if are_named else rows

    return MemoryFeatures(
        backgrounds=joined(v_b for _, v_b in walked.features),
        foregrounds=joined(v_f for v_f, _ in walked.features) if has_foregrounds else None,
        class_index=class_index[chosen],
    )


def _unique_pairs(class_index: NDArray[np.int64], names: Iterable[Any]) -> Tensor:
    """The first position of each (image name, class).

    They are sorted by name and class, so that their order doesn't depend on the number of ranks.
    """
    objects = np.fromiter(names, object, len(class_index))
    are_ordered = True
    try:
        numbers = np.unique(objects, return_inverse=True)[1]
    except TypeError:  # names that can't be compared keep the order in which they came
        are_ordered = False
        first_with: dict[Any, int] = {}
        numbers = np.array([first_with.setdefault(name, i) for i, name in enumerate(objects)])
    numbers *= class_index.max() + 1
    numbers += class_index
    _, first = np.unique(numbers, return_index=True)
    return torch.from_numpy(first if are_ordered else np.sort(first))


def _walk_rank(
    walked: _Walked,
    regularizer: SemPLeSRegularizer,
    batches: Iterable[Any],
    mask_tau: float,
    folder: WorkDir,
    progress: bool,
) -> None:
    """Adds this rank's batches to `walked`."""
    try:
        bar = tqdm(batches, "background features", disable=not (progress and is_first()))
        for number, batch in enumerate(bar):
            try:
                _walk_batch(walked, batch, regularizer, mask_tau, folder)
            except ValueError as error:
                raise ValueError(f"batches: batch {number} (from 0): {error}") from error
    finally:
        folder.end_walk()  # after Ctrl-C, too


def _walk_batch(walked: _Walked, batch: Any, regularizer: SemPLeSRegularizer, mask_tau: float, folder: WorkDir) -> None:
    """Adds a batch (images, masks), (images, masks, names) or of features; what an interrupted walk left is reused."""
    given = _read_features(batch, regularizer, mask_tau)
    names, features = None, None
    if given is not None:
        features, class_index = given
        key = "" if folder.parts is None else digest(*features, class_index)
        first = folder.find_batch(key)
    else:
        images, masks, image_names = _unpack(batch)
        class_index = masks.class_index
        if image_names is not None:
            names = [image_names[i] for i in masks.image_index.tolist()]
        key = "" if folder.parts is None else digest_batch(images, masks)
        first = folder.find_batch(key)
        features = None if first is not None else _encode(regularizer, images, masks, mask_tau)
    if folder.parts is None and features is not None:
        v_f, v_b = features
        walked.features.append((None if v_f is None else v_f.cpu(), v_b.cpu()))
    elif folder.parts is not None:
        if first is None and features is not None:
            first = folder.parts.add(key, *features)
        walked.rows.extend(range(first or 0, (first or 0) + len(class_index)))
    walked.add(class_index, names, has_foregrounds=features is None or features[0] is not None)


def _encode(regularizer: SemPLeSRegularizer, images: Tensor, masks: ClassMasks, mask_tau: float) -> Features:
    """v_f and v_b of a batch's pairs."""
    features = regularizer.pair_features(images, harden(masks, mask_tau, regularizer))
    _check_finite(regularizer, masks.class_index, *features)
    return features


def harden(masks: ClassMasks, mask_tau: float, regularizer: SemPLeSRegularizer) -> ClassMasks:
    """min(M / mask_tau, 1) at the resolution of CLIP's views, where nothing blurs hard edges again; M for 1."""
    if mask_tau == 1:
        return masks
    return masks.resized(*regularizer.clip.image_size, regularizer.align_corners).hardened(mask_tau)


def _read_features(batch: Any, regularizer: SemPLeSRegularizer, mask_tau: float) -> tuple[Features, Tensor] | None:
    """v_f, v_b and classes of a batch (v_f, v_b, classes) or (v_b, classes) that the host kept; None for any other."""
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
    return (foregrounds, features[-1]), classes.long()


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
