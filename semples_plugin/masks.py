"""`ClassMasks`: the soft masks of a batch, one for each (image, present class) pair, with gradients.

CAM networks speak many dialects: dense maps for all classes or maps of the present classes alone, sigmoids,
ReLU maps, signed Grad-CAMs of 5e-4. They all become one thing here: P maps in [0, 1], each knowing its image
and its class. From there on nothing loops over pairs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from semples_plugin.utils.checks import CheckSchedule, check_tensor, waits, warn_once

_looks = CheckSchedule()  # at the range of the CAMs


@dataclass(frozen=True, eq=False)
class ClassMasks:
    """P soft masks and the pairs that they belong to. Build it with `from_dense` or `from_pairs`.

    Attributes:
        maps: `[P, h, w]`, floating point; the losses take values in [0, 1], see the methods below.
        image_index: `[P]`, int64, the image of each pair within its batch.
        class_index: `[P]`, int64, the class of each pair, 0-based, without a background class.
        num_images, num_classes: N and K where they are known (from dense maps), else None.
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
            labels: multi-hot image labels `[N, K]` of any dtype, holding 0 and 1 alone.

        Returns:
            The P = number of ones pairs, in row-major order: image by image, classes ascending.
        """
        check_tensor("cams", cams, shape="[N, K, h, w]")
        check_tensor("labels", labels, shape="[N, K]", floating=False)
        if cams.shape[:2] != labels.shape:
            raise ValueError(
                f"cams {list(cams.shape)} and labels {list(labels.shape)} disagree: expected labels of shape "
                f"{list(cams.shape[:2])}; neither has a column for the background, and COCO's have 80 or 90"
            )
        labels = (
            labels.detach().cpu()
        )  # how many pairs there are must be known: labels on a device are waited for, once
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError("labels: expected a multi-hot matrix of 0 and 1, got other values; pass hard image labels")
        image_index, class_index = (index.to(cams.device, non_blocking=True) for index in labels.nonzero(as_tuple=True))
        return cls(cams[image_index, class_index], image_index, class_index, *cams.shape[:2])

    @classmethod
    def from_pairs(cls, maps: Tensor, image_index: Tensor, class_index: Tensor) -> ClassMasks:
        """Takes maps that the host made for the present classes only.

        Args:
            maps: `[P, h, w]`, floating point.
            image_index: `[P]`, integers: which image of the batch each map belongs to.
            class_index: `[P]`, integers: which class, 0-based.
        """
        check_tensor("maps", maps, shape="[P, h, w]")
        indices = []
        for name, index in (("image_index", image_index), ("class_index", class_index)):
            index = torch.as_tensor(index)
            if index.numel() == 0:
                index = index.long()  # an empty list comes as float32
            if index.shape != maps.shape[:1] or index.is_floating_point() or index.dtype == torch.bool:
                raise ValueError(
                    f"{name}: expected {maps.shape[0]} integers, one for each map, "
                    f"got {index.dtype} of shape {list(index.shape)}"
                )
            # Indices on a device are checked with the other values there, by the regularizer.
            if index.numel() and not waits(index.device) and int(index.min()) < 0:
                raise ValueError(f"{name}: expected indices from 0, got {int(index.min())}")
            indices.append(index.long().to(maps.device, non_blocking=True))
        return cls(maps, indices[0], indices[1])

    def __len__(self) -> int:
        return self.maps.shape[0]

    def __repr__(self) -> str:
        height, width = self.maps.shape[1:]
        known = zip((self.num_images, self.num_classes), ("images", "classes"), strict=True)
        of = "".join(f", {count} {what}" for count, what in known if count is not None)
        dtype, gradient = str(self.maps.dtype).removeprefix("torch."), ", with gradients" * self.maps.requires_grad
        return f"ClassMasks({len(self)} pairs{of}; maps {height} x {width}, {dtype}, on {self.maps.device}{gradient})"

    def __getitem__(self, part: int | slice | Tensor) -> ClassMasks:
        """Some of the pairs, or one of them: a number, a slice, numbers `[Q]` or a choice `[P]` of booleans."""
        if not isinstance(part, slice) and getattr(part, "ndim", 0) == 0:
            part = operator.index(part)
            if not -len(self) <= part < len(self):
                raise IndexError(f"there is no pair {part}, the masks are of {len(self)} pairs")
            part = slice(part % len(self), part % len(self) + 1)
        return replace(
            self, maps=self.maps[part], image_index=self.image_index[part], class_index=self.class_index[part]
        )

    def relu(self) -> ClassMasks:
        """max(map, 0): for signed CAMs, before a normalisation."""
        return replace(self, maps=self.maps.relu())

    def sigmoid(self) -> ClassMasks:
        """1 / (1 + exp(-map)): for hosts whose maps are logits per pixel; the result needs no normalisation."""
        return replace(self, maps=self._as_float32().sigmoid())  # half precision rounds a mask of 0.9999 to 1

    def normalized(self, eps: float = 0.1) -> ClassMasks:
        """Min-max per pair, (c - min) / (max - min + eps), with gradients through min and max.

        Args:
            eps: in the units of the maps. The release's 0.1 suits maps that reach 1 and more; raw CAMs of 5e-4
                are flattened by it (a warning says so, once): give such a host an eps well below its maxima.
        """
        maps = self._as_float32()
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        self._warn_if_flat(high - low, eps, "are constant: check that the model was trained, or is in eval mode")
        return replace(self, maps=(maps - low) / (high - low + eps))

    def max_normalized(self, eps: float = 1e-5) -> ClassMasks:
        """relu(c) / (max + eps) per pair, with gradients through the maximum; zero stays zero.

        Args:
            eps: in the units of the maps, see `normalized`.
        """
        maps = self._as_float32().relu()
        high = maps.amax((1, 2), keepdim=True)
        self._warn_if_flat(
            high,
            eps,
            "have no positive value, and max_normalized leaves them empty: logits take .sigmoid(), or .normalized()",
        )
        return replace(self, maps=maps / (high + eps))

    def of_kind(self, kind: str, eps: float | None = None) -> ClassMasks:
        """Masks in [0, 1] from CAMs of a kind, one of `KINDS`; the one table behind `wrap` and the adapters.

        Args:
            kind: "logits" per pixel take `sigmoid`; "sigmoid" are masks already; "relu", ReLU maps or signed ones,
                take `max_normalized`; "min-max", non-negative maps, take `normalized`.
            eps: of the last two, in the units of the maps; None for their own default.
        """
        check_kind(kind)
        given = {} if eps is None else {"eps": eps}
        return KINDS[kind](self, **given)

    def resized(self, height: int, width: int, align_corners: bool = False) -> ClassMasks:
        """Bilinear resampling to `[P, height, width]`, with gradients; the release aligns the corners.

        Masks that shrink are antialiased, as images are, unless corners are aligned.
        """
        if self.maps.shape[1:] == (height, width):
            return self
        if len(self) == 0:  # interpolate refuses an empty batch; an expanded sum keeps the graph
            return replace(self, maps=self.maps.sum() * self.maps.new_zeros(0, height, width))
        maps = self._as_float32()[:, None]
        # Where masks shrink every pixel takes part, as in the images; antialiasing knows no aligned corners.
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
        if not eps > 0:
            raise ValueError(f"eps: expected a positive number, got {eps}")
        if not len(self) or torch.compiler.is_compiling() or not _looks.is_due(spans.device, (eps, without)):
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
"""How CAMs of a kind become masks: logits and sigmoids by themselves, the others divided by their own range."""


def check_kind(kind: str) -> None:
    """Raises a `ValueError` for a kind of CAMs that isn't known."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")


def masked_views(images: Tensor, masks: ClassMasks, fill: Tensor) -> Tensor:
    """Foreground and background views: M X + (1 - M) fill and (1 - M) X + M fill.

    With a fill of zero this is the paper's M_k X and (1 - M_k) X.

    Args:
        images: `[N, 3, H, W]` in CLIP's normalised space.
        masks: P masks of `[H, W]`.
        fill: colour of what is masked out, `[3]`, in the same space as the images.

    Returns:
        `[2 P, 3, H, W]`: all foreground views, then all background views.
    """
    pairs = images[masks.image_index]
    fill = fill.to(pairs).view(1, 3, 1, 1)
    mask = masks.maps[:, None].to(pairs.dtype)
    difference = mask * (pairs - fill)
    return torch.cat([fill + difference, pairs - difference])
