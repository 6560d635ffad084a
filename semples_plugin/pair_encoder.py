"""`PairEncoder`: CLIP's features of the (image, present class) pairs of a batch: v_f, v_b and u_f.

Images come as the host normalised them. They are brought to CLIP's resolution and statistics, each pair is
seen twice, as M X and as (1 - M) X, and both views are encoded in one batch. The losses on these features are
in `regularizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.clip.part_size import PartSize
from semples_plugin.diagnostics import (
    BatchRange,
    check_batch,
    check_clip,
    check_images_range,
    check_masks_range,
    check_pairs,
)
from semples_plugin.masks import ClassMasks, masked_views
from semples_plugin.utils.checks import CheckSchedule, check_names, check_triple
from semples_plugin.utils.tensor_version import version_of


class Statistics(NamedTuple):
    """Colours that views are computed with, each `[3, 1, 1]`, on the images' device and in their type."""

    host_mean: Tensor
    host_std: Tensor
    clip_mean: Tensor
    clip_std: Tensor
    fill: Tensor


class PairEncoder:
    """Encodes pairs of images and masks, and the texts of their classes; the arguments are `SemPLeSRegularizer`'s."""

    def __init__(
        self,
        clip: FrozenClip,
        class_names: Sequence[str],
        *,
        template: str,
        input_mean: Sequence[float] | None,
        input_std: Sequence[float] | None,
        fill: str | Sequence[float],
        max_pairs: int | str | None,
        align_corners: bool,
        check_every: int,
    ) -> None:
        check_clip(clip)
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f'template: expected one "{{}}" where the class name goes, got {template!r}')
        # One of them without the other would mix two normalisations, as the default is ImageNet's.
        if (input_mean is None, input_mean is IMAGENET_MEAN) != (input_std is None, input_std is IMAGENET_STD):
            raise ValueError("input_mean and input_std: give both, or None for both where images are CLIP-normalised")
        self.clip = clip
        self.max_pairs = max_pairs
        self.align_corners = align_corners
        self._class_names = check_names(class_names)
        self._template = template
        self._input_mean = check_triple("input_mean", clip.image_mean if input_mean is None else input_mean)
        self._input_std = check_triple("input_std", clip.image_std if input_std is None else input_std, positive=True)
        self._fill = _fill_colour(fill, clip)
        self._value_checks = CheckSchedule(check_every)
        clip._checks.every = check_every
        self._cached_statistics: dict[Any, Statistics] = {}
        self._part_size = PartSize(check_every)
        self._label_features = clip.encode_texts([template.replace("{}", name) for name in self.class_names])

    @property
    def max_pairs(self) -> int | str | None:
        """Pairs that CLIP sees at once: a number, "auto", or None for all of them."""
        return self._max_pairs

    @max_pairs.setter
    def max_pairs(self, max_pairs: int | str | None) -> None:
        _check_max_pairs(max_pairs)
        self._max_pairs = max_pairs

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names. They, the template, the statistics and the fill are fixed: the label texts are encoded already."""
        return self._class_names

    @property
    def template(self) -> str:
        """Of the label texts."""
        return self._template

    @property
    def input_mean(self) -> tuple[float, float, float]:
        """Mean that the host normalised its images with, on the scale of [0, 1] pixels."""
        return self._input_mean

    @property
    def input_std(self) -> tuple[float, float, float]:
        """Standard deviation that the host normalised its images with, on the scale of [0, 1] pixels."""
        return self._input_std

    @property
    def fill(self) -> Tensor:
        """What masked-out pixels become, `[3]`, in CLIP's normalised space."""
        return self._fill

    @property
    def label_features(self) -> Tensor:
        """u_f `[K, D]`, unit length, encoded once."""
        return self._label_features

    def to(self, device: str | torch.device) -> PairEncoder:
        """Moves CLIP and the label features, in place, and returns self."""
        self.clip.to(device)
        self._label_features = self._label_features.to(device)
        return self

    def background_features(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """v_b `[P, D]`, unit length, without gradients: what prompts are learned from."""
        return self._fixed_features(images, masks, foreground=False)[1]

    def pair_features(self, images: Tensor, masks: ClassMasks) -> tuple[Tensor, Tensor]:
        """v_f and v_b, each `[P, D]`, unit length, without gradients: the latter is what prompts are learned from."""
        return self._fixed_features(images, masks, foreground=True)

    def views(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """The foreground views, then the background views: `[2 P, 3, S, S]`, CLIP-normalised, S CLIP's resolution.

        Images (with antialiasing) and masks are resampled bilinearly to CLIP's square; other aspect ratios
        are squeezed, so that masks and images stay aligned and no object is cut off.
        """
        return self._views(self._prepare(images), masks)

    def paint(self, images: Tensor, places: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` in the host's statistics, with `places` `[N, H, W]` (bool) in the fill's colour.

        There foreground and background views are the same, whatever the mask: no gradient, and nothing for
        prompts to learn from.
        """
        host_mean, host_std, clip_mean, clip_std, fill = self._statistics(images)
        colour = (fill * clip_std + clip_mean - host_mean) / host_std
        return torch.where(places[:, None], colour, images)

    @torch.no_grad()
    def _fixed_features(self, images: Tensor, masks: ClassMasks, foreground: bool) -> tuple[Tensor, Tensor]:
        """v_f (`[0, D]` unless wanted) and v_b without gradients, `max_pairs` pairs at a time."""
        self._check(images, masks)
        if len(masks) == 0:
            return self._label_features[:0], self._label_features[:0]
        size = self._most_pairs(images, masks)
        foregrounds, backgrounds = [], []
        with torch.autocast(self.clip.device.type, enabled=False):
            prepared = self._prepare(images)
            for start in range(0, len(masks), size):
                part = masks[start : start + size].detach()
                v_f, v_b = self._encode_views(prepared, part, foreground=foreground, background=True)
                foregrounds.append(v_f)
                backgrounds.append(v_b)
            return torch.cat(foregrounds), torch.cat(backgrounds)

    def _most_pairs(self, images: Tensor, masks: ClassMasks) -> int:
        """How many of a batch's P > 0 pairs CLIP is to see at once: `max_pairs`, or what is measured for "auto"."""
        if self.max_pairs is None:
            return len(masks)
        if isinstance(self.max_pairs, str):
            return self._part_size(self.clip, (images.dtype, images.shape[1:]))
        return self.max_pairs

    def _encode_views(
        self, images: Tensor, masks: ClassMasks, *, foreground: bool, background: bool
    ) -> tuple[Tensor, Tensor]:
        """v_f and v_b of prepared images, `[P, D]` each, `[0, D]` where not wanted; in one batch for CLIP."""
        return encode_pair(self.clip.encode_images, self._views(images, masks), foreground, background)

    def _views(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """`views` of prepared images."""
        return masked_views(images, self._resized(masks), self._statistics(images).fill)

    def _resized(self, masks: ClassMasks) -> ClassMasks:
        """The masks at CLIP's resolution."""
        return masks.resized(*self.clip.image_size, self.align_corners)

    def _prepare(self, images: Tensor) -> Tensor:
        """The host's images, detached, at CLIP's resolution and in its normalised space; float32 or better."""
        dtype = torch.promote_types(images.dtype, torch.float32)
        images = images.detach().to(dtype)
        height, width = self.clip.image_size
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)
        host_mean, host_std, clip_mean, clip_std, _ = self._statistics(images)
        normalised: Tensor = (images * host_std + host_mean - clip_mean) / clip_std
        return normalised

    def _statistics(self, like: Tensor) -> Statistics:
        """On the device and in the type of `like`; kept, since a copy to a device waits for it."""
        key = self._statistics_key(like)
        if key not in self._cached_statistics:
            rows = like.new_tensor([self.input_mean, self.input_std, self.clip.image_mean, self.clip.image_std])
            colours = torch.cat([rows, self._fill.to(like)[None]]).view(5, 3, 1, 1)
            self._cached_statistics[key] = Statistics(*colours.unbind())
        return self._cached_statistics[key]

    def _statistics_key(self, like: Tensor) -> tuple[Any, ...]:
        fill = id(self._fill), version_of(self._fill)
        return like.dtype, like.device, self.clip.image_mean, self.clip.image_std, fill

    def _check(self, images: Tensor, masks: ClassMasks) -> bool:
        """Checks a batch; returns whether its values were looked at as well, which waits for the device."""
        if torch.compiler.is_compiling():
            return False
        check_batch(images, masks, len(self.class_names), self.clip.device)
        # Where any of this changes, the schedule begins anew.
        shapes = images.dtype, images.shape[1:], masks.maps.dtype, masks.maps.shape[1:]
        kind = *shapes, self.input_mean, self.input_std
        if len(masks) == 0 or not self._value_checks.is_due(images.device, kind):
            return False
        statistics = self._statistics(images)
        values = BatchRange.of(images, masks, statistics.host_mean, statistics.host_std)
        check_masks_range(values)
        check_pairs(values, len(images), len(self.class_names))
        check_images_range(values, self.input_mean, self.input_std)
        return True


def encode_pair(
    encode: Callable[[Tensor], Tensor], views: Tensor, foreground: bool, background: bool
) -> tuple[Tensor, Tensor]:
    """v_f and v_b of the views `[2 P, 3, S, S]`, `[P, D]` each, `[0, D]` where not wanted; in one batch for CLIP."""
    count = len(views) // 2
    start = 0 if foreground else count
    end = 2 * count if background else count
    features = encode(views[start:end])
    return features[: count - start], features[count - start :]


def _check_max_pairs(max_pairs: int | str | None) -> None:
    is_integer = isinstance(max_pairs, Integral) and not isinstance(max_pairs, bool)
    if max_pairs is not None and max_pairs != "auto" and not (is_integer and int(max_pairs) > 0):
        raise ValueError(f'max_pairs: expected a positive integer, "auto" or None, got {max_pairs!r}')


def _fill_colour(fill: str | Sequence[float], clip: FrozenClip) -> Tensor:
    """The fill `[3]` in CLIP's normalised space."""
    mean, std = torch.tensor([clip.image_mean, clip.image_std])
    if isinstance(fill, str):
        if fill not in ("mean", "black"):
            raise ValueError(f'fill: expected "mean", "black" or an RGB triple in [0, 1], got {fill!r}')
        return torch.zeros(3) if fill == "mean" else -mean / std
    colour = torch.tensor(check_triple('fill ("mean", "black" or a colour)', fill))
    if not bool(((colour >= 0) & (colour <= 1)).all()):
        raise ValueError(f'fill: expected "mean", "black" or an RGB triple in [0, 1], got {fill!r}')
    return (colour - mean) / std
