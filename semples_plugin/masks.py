"""`ClassMasks`: the soft masks of a batch, one for each (image, present class) pair, with gradients.

CAM networks return different things: dense maps for all classes or maps of the present classes alone, logits,
sigmoids, ReLU maps, signed Grad-CAMs of 5e-4. All of them become P maps in [0, 1], each with the index of its
image and of its class, so that nothing after this loops over pairs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from semples_plugin.utils.checks import CheckSchedule, check_number, check_tensor, waits, warn_once

_MASK_SLACK = 1e-3  # rounding of half-precision masks
_span_checks = CheckSchedule(every=0)  # when the range of the CAMs is looked at, to warn once
_unit_checks = CheckSchedule()  # when masks that are hardened are


@dataclass(frozen=True, eq=False)
class ClassMasks:
    """P soft masks and the pairs that they belong to. Build it with `from_dense` or `from_pairs`.

    Attributes:
        maps: `[P, h, w]`, floating point; the losses take values in [0, 1], see the methods below.
        image_index: `[P]`, int64, the image of each pair within its batch.
        class_index: `[P]`, int64, the class of each pair, 0-based, without a background class.
        num_images, num_classes: N and K where they are known (from dense maps), else None.

    >>> cams = torch.tensor([[[[0.0, 1.0]], [[5.0, 5.0]], [[2.0, 4.0]]]])  # one image, three classes, 1 x 2 pixels
    >>> masks = ClassMasks.from_dense(cams, labels=torch.tensor([[1, 0, 1]]))
    >>> masks
    ClassMasks(2 pairs, 1 image, 3 classes; maps 1 x 2, float32, on cpu)
    >>> masks.class_index
    tensor([0, 2])
    """

    maps: Tensor
    image_index: Tensor
    class_index: Tensor
    num_images: int | None = None
    num_classes: int | None = None

    @classmethod
    def from_dense(cls, cams: Tensor, labels: Tensor) -> ClassMasks:
        """Picks the maps of the classes that are present.

        Args:
            cams: `[N, K, h, w]`, floating point, with or without gradients.
            labels: multi-hot image labels `[N, K]` of any dtype, holding 0 and 1 alone; on the CPU where they come
                from there, since those on a device are waited for.

        Returns:
            P pairs, one for each 1 in `labels`, in row-major order: image by image, classes ascending.

        Raises:
            TypeError: for what is no tensor, or cams of integers.
            ValueError: where shapes disagree, or labels hold other values than 0 and 1.

        >>> cams, labels = torch.rand(2, 3, 8, 8), torch.tensor([[0, 1, 1], [1, 0, 0]])
        >>> masks = ClassMasks.from_dense(cams, labels)
        >>> masks.image_index, masks.class_index
        (tensor([0, 0, 1]), tensor([1, 2, 0]))
        >>> torch.equal(masks.maps[1], cams[0, 2])
        True
        """
        check_tensor("cams", cams, shape="[N, K, h, w]")
        check_tensor("labels", labels, shape="[N, K]", floating=False)
        if cams.shape[:2] != labels.shape:
            raise ValueError(
                f"cams {list(cams.shape)} and labels {list(labels.shape)} disagree: expected labels of shape "
                f"{list(cams.shape[:2])}; neither has a column for the background, and COCO's have 80 or 90"
            )
        # The number of pairs must be known here, which waits for labels on a device, once.
        labels = labels.detach().cpu()
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError("labels: expected a multi-hot matrix of 0 and 1, got other values; pass hard image labels")
        image_index, class_index = labels.nonzero(as_tuple=True)
        image_index = image_index.to(cams.device, non_blocking=True)
        class_index = class_index.to(cams.device, non_blocking=True)
        return cls(cams[image_index, class_index], image_index, class_index, *cams.shape[:2])

    @classmethod
    def from_pairs(cls, maps: Tensor, image_index: Tensor, class_index: Tensor) -> ClassMasks:
        """Takes maps that the host made for the present classes only.

        Args:
            maps: `[P, h, w]`, floating point, with or without gradients.
            image_index: `[P]`, integers: which image of the batch each map belongs to.
            class_index: `[P]`, integers: which class, 0-based.

        Raises:
            TypeError: for maps that are no tensor, or of integers.
            ValueError: unless each map has one index of each kind, 0 or more (which, on a GPU, the regularizer
                checks).

        >>> maps = torch.rand(3, 8, 8)
        >>> ClassMasks.from_pairs(maps, image_index=torch.tensor([0, 0, 1]), class_index=torch.tensor([4, 2, 4]))
        ClassMasks(3 pairs; maps 8 x 8, float32, on cpu)
        """
        check_tensor("maps", maps, shape="[P, h, w]")
        checked = []
        for name, index in (("image_index", image_index), ("class_index", class_index)):
            index = torch.as_tensor(index)
            if index.numel() == 0:
                index = index.long()  # an empty list comes as float32
            if index.shape != maps.shape[:1] or index.is_floating_point() or index.dtype == torch.bool:
                raise ValueError(
                    f"{name}: expected {maps.shape[0]} integers, one for each map, "
                    f"got {index.dtype} of shape {list(index.shape)}"
                )
            # On a GPU the regularizer checks indices, together with all other values.
            if index.numel() and not waits(index.device) and int(index.min()) < 0:
                raise ValueError(f"{name}: expected indices from 0, got {int(index.min())}")
            checked.append(index.long().to(maps.device, non_blocking=True))
        image_index, class_index = checked
        return cls(maps, image_index, class_index)

    def __len__(self) -> int:
        return self.maps.shape[0]

    def __repr__(self) -> str:
        height, width = self.maps.shape[1:]
        sizes = _counted(len(self), "pair", "pairs")
        if self.num_images is not None:
            sizes += f", {_counted(self.num_images, 'image', 'images')}"
        if self.num_classes is not None:
            sizes += f", {_counted(self.num_classes, 'class', 'classes')}"
        dtype = str(self.maps.dtype).removeprefix("torch.")
        gradients = ", with gradients" if self.maps.requires_grad else ""
        return f"ClassMasks({sizes}; maps {height} x {width}, {dtype}, on {self.maps.device}{gradients})"

    def __getitem__(self, part: int | slice | Tensor) -> ClassMasks:
        """Some of the pairs, or one of them: an index, a slice, indices `[Q]` or booleans `[P]`.

        >>> masks = ClassMasks.from_dense(torch.rand(2, 3, 8, 8), torch.ones(2, 3))
        >>> len(masks[:4]), len(masks[-1]), len(masks[masks.class_index == 0])
        (4, 1, 2)
        """
        if not isinstance(part, slice) and getattr(part, "ndim", 0) == 0:
            part = operator.index(part)
            if not -len(self) <= part < len(self):
                raise IndexError(f"there is no pair {part}, the masks are of {len(self)} pairs")
            part = slice(part % len(self), part % len(self) + 1)
        return replace(
            self, maps=self.maps[part], image_index=self.image_index[part], class_index=self.class_index[part]
        )

    def relu(self) -> ClassMasks:
        """max(map, 0): for signed CAMs, before a normalisation.

        >>> ClassMasks.from_pairs(torch.tensor([[[-1.0, 2.0]]]), torch.tensor([0]), torch.tensor([0])).relu().maps
        tensor([[[0., 2.]]])
        """
        return replace(self, maps=self.maps.relu())

    def sigmoid(self) -> ClassMasks:
        """1 / (1 + exp(-map)): for hosts whose maps are logits per pixel; the result needs no normalisation.

        >>> ClassMasks.from_pairs(torch.tensor([[[0.0, 4.0]]]), torch.tensor([0]), torch.tensor([0])).sigmoid().maps
        tensor([[[0.5000, 0.9820]]])
        """
        return replace(self, maps=self._as_float32().sigmoid())  # half precision rounds a mask of 0.9999 to 1

    def normalized(self, eps: float = 0.1) -> ClassMasks:
        """Min-max per pair, (c - min) / (max - min + eps), with gradients through min and max.

        Args:
            eps: in the units of the maps. The release's 0.1 suits maps that reach 1 and more; raw CAMs of
                5e-4 are flattened by it (a warning says so, once): give such a host an eps well below its
                maxima.

        Raises:
            ValueError: for an eps that isn't positive.

        >>> masks = ClassMasks.from_pairs(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([0]), torch.tensor([0]))
        >>> masks.normalized(eps=0.1).maps
        tensor([[[0.0000, 0.4762, 0.9524]]])
        """
        maps = self._as_float32()
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        self._warn_if_flat(high - low, eps, "are constant: check that the model was trained, or is in eval mode")
        return replace(self, maps=(maps - low) / (high - low + eps))

    def max_normalized(self, eps: float = 1e-5) -> ClassMasks:
        """relu(c) / (max + eps) per pair, with gradients through the maximum; zero stays zero.

        Args:
            eps: in the units of the maps, see `normalized`.

        >>> masks = ClassMasks.from_pairs(torch.tensor([[[-1.0, 2.0, 4.0]]]), torch.tensor([0]), torch.tensor([0]))
        >>> masks.max_normalized().maps
        tensor([[[0.0000, 0.5000, 1.0000]]])
        """
        maps = self._as_float32().relu()
        high = maps.amax((1, 2), keepdim=True)
        self._warn_if_flat(
            high,
            eps,
            "have no positive value, and max_normalized leaves them empty: logits take .sigmoid(), or .normalized()",
        )
        return replace(self, maps=maps / (high + eps))

    def hardened(self, tau: float) -> ClassMasks:
        """min(M / tau, 1): masks in [0, 1] that reach 1 at `tau`, with gradients below it.

        For (b): CAMs cover the discriminative part of an object alone, so that its background view still shows
        the object, and prompts learn that. Ours, not the paper's; 1 leaves the masks as they are.

        Args:
            tau: above 0 and at most 1.

        Raises:
            TypeError: for a tau that is no number.
            ValueError: for one out of range, or masks that aren't in [0, 1] (on a device, looked at in the first
                calls and then now and then).

        >>> masks = ClassMasks.from_pairs(torch.tensor([[[0.0, 0.15, 0.3, 0.9]]]), torch.tensor([0]), torch.tensor([0]))
        >>> masks.hardened(0.3).maps
        tensor([[[0.0000, 0.5000, 1.0000, 1.0000]]])
        """
        check_number("tau", tau, 0, 1, above=True)
        kind = self.maps.dtype, self.maps.shape[1:]
        if len(self) and not torch.compiler.is_compiling() and _unit_checks.is_due(self.maps.device, kind):
            check_unit_range(*torch.stack(self.maps.detach().aminmax()).tolist())
        return replace(self, maps=(self._as_float32() / tau).clamp(max=1))

    def of_kind(self, kind: str, eps: float | None = None) -> ClassMasks:
        """Masks in [0, 1] from CAMs of a kind, one of `KINDS`, as `wrap` and the adapters name them.

        Args:
            kind: "logits" per pixel take `sigmoid`; "sigmoid" are masks already; "relu", ReLU maps or signed
                ones, take `max_normalized`; "min-max", non-negative maps, take `normalized`.
            eps: of the last two, in the units of the maps; None for their own default.

        Raises:
            ValueError: for another kind.

        >>> masks = ClassMasks.from_pairs(torch.randn(1, 8, 8), torch.tensor([0]), torch.tensor([0]))
        >>> torch.equal(masks.of_kind("logits").maps, masks.sigmoid().maps)
        True
        """
        check_kind(kind)
        options = {} if eps is None else {"eps": eps}
        return KINDS[kind](self, **options)

    def resized(self, height: int, width: int, align_corners: bool = False) -> ClassMasks:
        """Bilinear resampling to `[P, height, width]`, with gradients; the release aligns the corners.

        Masks that shrink are antialiased, as images are, unless corners are aligned.

        >>> ClassMasks.from_pairs(torch.rand(1, 8, 8), torch.tensor([0]), torch.tensor([0])).resized(32, 24)
        ClassMasks(1 pair; maps 32 x 24, float32, on cpu)
        """
        if self.maps.shape[1:] == (height, width):
            return self
        if len(self) == 0:  # interpolate refuses an empty batch; an expanded sum keeps the graph
            return replace(self, maps=self.maps.sum() * self.maps.new_zeros(0, height, width))
        maps = self._as_float32()[:, None]
        # Where masks shrink every pixel takes part, as in the images; torch antialiases without aligned corners only.
        shrinks = (maps.shape[2] > height or maps.shape[3] > width) and not align_corners
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=align_corners, antialias=shrinks)
        return replace(self, maps=maps[:, 0])

    def detach(self) -> ClassMasks:
        """The same masks, cut off from the CAM network's graph."""
        return replace(self, maps=self.maps.detach())

    def _as_float32(self) -> Tensor:
        # Half-precision CAMs underflow in the division below, so normalising happens in float32.
        return self.maps.to(torch.promote_types(self.maps.dtype, torch.float32))

    def _warn_if_flat(self, spans: Tensor, eps: float, without: str) -> None:
        """Warns where the median of `spans`, `[P, 1, 1]`, is below `eps`; `without` says what a span of 0 means."""
        if not eps > 0:
            raise ValueError(f"eps: expected a positive number, got {eps}")
        if not len(self) or torch.compiler.is_compiling() or not _span_checks.is_due(spans.device, (eps, without)):
            return
        span = float(spans.detach().median())
        if span == 0:
            warn_once("empty masks", f"the CAMs of at least half of {len(self)} pairs {without}")
        elif span < eps:
            warn_once(
                "flat masks",
                f"the CAMs span {span:.2g} (median over {len(self)} pairs), less than eps = {eps:g}: the normalised "
                "masks stay below 0.5 and teach little; pass a smaller eps",
            )


KINDS: dict[str, Callable[..., ClassMasks]] = {
    "logits": lambda masks, eps=None: masks.sigmoid(),
    "sigmoid": lambda masks, eps=None: masks,
    "relu": ClassMasks.max_normalized,
    "min-max": ClassMasks.normalized,
}
"""How CAMs of a kind become masks: see `ClassMasks.of_kind`."""


def _counted(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def check_kind(kind: str) -> None:
    """Raises a `ValueError` for a kind of CAMs that isn't known."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")


def check_unit_range(smallest: float, largest: float) -> None:
    """Raises a `ValueError` unless masks from `smallest` to `largest` are finite and in [0, 1]."""
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise ValueError("masks: NaN or infinite values; the CAMs diverged, or underflowed in half precision")
    if smallest < -_MASK_SLACK or largest > 1 + _MASK_SLACK:
        raise ValueError(
            f"masks: expected values in [0, 1], got {smallest:.3g} to {largest:.3g}; ClassMasks of logits take "
            ".sigmoid(), of ReLU maps or signed maps .max_normalized(), of non-negative maps .normalized(eps)"
        )


def masked_views(images: Tensor, masks: ClassMasks, fill: Tensor) -> Tensor:
    """Foreground and background views: M X + (1 - M) fill and (1 - M) X + M fill.

    With a fill of zero this is the paper's M_k X and (1 - M_k) X.

    Args:
        images: `[N, 3, H, W]` in CLIP's normalised space.
        masks: P masks of `[H, W]`.
        fill: colour of what is masked out, `[3]`, in the same space as the images.

    Returns:
        `[2 P, 3, H, W]`: all foreground views, then all background views.

    >>> image, left_half = torch.ones(1, 3, 1, 2), torch.tensor([[[1.0, 0.0]]])
    >>> views = masked_views(image, ClassMasks(left_half, torch.tensor([0]), torch.tensor([0])), fill=torch.zeros(3))
    >>> views[:, 0]  # the red channel of the foreground view and of the background view
    tensor([[[1., 0.]],
            [[0., 1.]]])
    """
    return pair_views(images[masks.image_index], masks.maps, fill)


def pair_views(pairs: Tensor, maps: Tensor, fill: Tensor) -> Tensor:
    """`masked_views` of P images `[P, 3, H, W]`, one for each of the maps `[P, H, W]`."""
    fill = fill.to(pairs).view(1, 3, 1, 1)
    mask = maps[:, None].to(pairs.dtype)
    difference = mask * (pairs - fill)
    return torch.cat([fill + difference, pairs - difference])
