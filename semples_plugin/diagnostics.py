"""What can go wrong with a batch or a training: checks that raise, figures to look at, and warnings.

Nothing here changes a loss. Messages say what was expected, what came and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from semples_plugin import functional
from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.masks import ClassMasks, check_unit_range
from semples_plugin.utils.checks import check_tensor, warn_once

if TYPE_CHECKING:
    from semples_plugin.prompts import BackgroundPrompts

_PIXEL_SLACK = 1.5  # random erasing fills boxes with noise of several standard deviations; 0 to 255 is far beyond

CLAMPED_MATCHING = {
    "foreground": "foregrounds lie so far from their label that E[-log sim(v_f, u_f)] gives them no gradient",
    "prompt": "foregrounds lie so far from their background prompt that refinement gives them no gradient",
}
"""What it means where many similarities of a call are clamped."""

CLAMPED_PROMPTS = {
    "prompt_background": "backgrounds lie so far from their prompt that E[-log sim(u_b, v_b)] gives it no gradient",
    "prompt_foreground": "foregrounds lie so far from their prompt that refinement would give them no gradient, and "
    "LossWeights.prompt_foreground is larger than need be",
}
"""What it means where many similarities of `prompt_losses` are clamped."""


def check_clip(clip: Any) -> FrozenClip:
    """Returns `clip` if it is a `FrozenClip`; a `TypeError` says how to make one."""
    if not isinstance(clip, FrozenClip):
        raise TypeError(
            f"clip: expected a FrozenClip, got {type(clip).__name__}; wrap it: FrozenClip(model, tokenizer)"
        )
    return clip


class BatchRange(NamedTuple):
    """Extreme values of a batch, as Python numbers.

    Attributes:
        darkest, brightest: of the pixels on the scale of [0, 1], that is with the host's normalisation
            undone.
        lowest, highest: of the images as they came.
        highest_minimum: the highest of the three channels' minima.
        lowest_maximum: the lowest of the three channels' maxima.
        smallest, largest: of the masks.
        first_image, last_image: smallest and largest image index of the pairs.
        first_class, last_class: smallest and largest class index of the pairs.
    """

    darkest: float
    brightest: float
    lowest: float
    highest: float
    highest_minimum: float
    lowest_maximum: float
    smallest: float
    largest: float
    first_image: float
    last_image: float
    first_class: float
    last_class: float

    @classmethod
    @torch.no_grad()
    def of(cls, images: Tensor, masks: ClassMasks, mean: Tensor, std: Tensor) -> BatchRange:
        """Measures images `[N, 3, H, W]`, normalised by `mean` and `std` (three values each), and P > 0 masks."""
        minima, maxima = images.amin((0, 2, 3)), images.amax((0, 2, 3))
        mean, std = mean.view(3), std.view(3)
        values = {
            "darkest": (minima * std + mean).min(),
            "brightest": (maxima * std + mean).max(),
            "lowest": minima.min(),
            "highest": maxima.max(),
            "highest_minimum": minima.max(),
            "lowest_maximum": maxima.min(),
            "smallest": masks.maps.min(),
            "largest": masks.maps.max(),
            "first_image": masks.image_index.min(),
            "last_image": masks.image_index.max(),
            "first_class": masks.class_index.min(),
            "last_class": masks.class_index.max(),
        }
        # One transfer for all of them, as it waits for the device.
        numbers = torch.stack([value.float() for value in values.values()]).tolist()
        return cls(**dict(zip(values, numbers, strict=True)))


def check_batch(images: Tensor, masks: ClassMasks, num_classes: int, device: torch.device) -> None:
    """Raises a `TypeError` or `ValueError` unless types, shapes and devices of a batch fit; reads no values.

    Args:
        images: expected to be `[N, 3, H, W]`, floating point.
        masks: expected to be `ClassMasks` of these N images.
        num_classes: K.
        device: where CLIP is.
    """
    check_tensor("images", images, shape="[N, 3, H, W]")
    if not isinstance(masks, ClassMasks):
        raise TypeError(f"masks: expected ClassMasks, got {type(masks).__name__}; see ClassMasks.from_dense")
    if images.shape[1] != 3:
        raise ValueError(f"images: expected [N, 3, H, W], got {list(images.shape)}")
    if masks.num_classes not in (None, num_classes):
        hint = "; is one of the columns the background?" if masks.num_classes == num_classes + 1 else ""
        raise ValueError(
            f"masks: made from {masks.num_classes} label columns, but there are {num_classes} class names{hint}"
        )
    if masks.num_images not in (None, len(images)):
        raise ValueError(f"masks: made from a batch of {masks.num_images}, but there are {len(images)} images")
    if not images.device == masks.maps.device == device:
        raise ValueError(
            f"images are on {images.device}, masks on {masks.maps.device}, CLIP is on {device}; bring them together, "
            "CLIP with regularizer.to(device)"
        )


def check_masks_range(values: BatchRange) -> None:
    """Raises a `ValueError` unless masks are finite and in [0, 1]."""
    check_unit_range(values.smallest, values.largest)


def check_pairs(values: BatchRange, num_images: int, num_classes: int) -> None:
    """Raises a `ValueError` where a pair points to an image or a class that the batch doesn't have."""
    image = values.first_image if values.first_image < 0 else values.last_image
    label = values.first_class if values.first_class < 0 else values.last_class
    if not (0 <= image < num_images and 0 <= label < num_classes):
        raise ValueError(
            f"masks: pairs point to image {int(image)} of {num_images} and class {int(label)} of {num_classes} (both "
            "from 0); are these the masks of this batch, and do its labels belong to class_names?"
        )


def check_images_range(values: BatchRange, input_mean: Sequence[float], input_std: Sequence[float]) -> None:
    """Raises a `ValueError` where images are not finite, or were clearly not normalised with these statistics."""
    if not (math.isfinite(values.lowest) and math.isfinite(values.highest)):
        raise ValueError("images: NaN or infinite values")
    # Images in [0, 1] come close to black and white in every channel; normalised ones don't end there.
    ends_at_black_and_white = values.highest_minimum < 0.1 and values.lowest_maximum > 0.8
    in_unit_range = values.lowest >= 0 and values.highest <= 1
    looks_raw = tuple(input_mean) != (0, 0, 0) and ends_at_black_and_white and in_unit_range
    if looks_raw or values.darkest < -_PIXEL_SLACK or values.brightest > 1 + _PIXEL_SLACK:
        raise ValueError(
            f"images: values from {values.lowest:.3g} to {values.highest:.3g} are not normalised with mean "
            f"{_rounded(input_mean)} and std {_rounded(input_std)}; pass what the host used as input_mean and "
            "input_std ((0, 0, 0) and (1, 1, 1) for images in [0, 1])"
        )


def figures_of(similarities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean of each kind of similarities `[P]`, and the share of them that is clamped: detached scalars."""
    figures = {f"similarity_{name}": values.detach().mean() for name, values in similarities.items()}
    for name, values in similarities.items():
        figures[f"clamped_{name}"] = functional.is_clamped(values.detach()).float().mean()
    return figures


def gradient_ratios(matching: Tensor, refining: Tensor) -> Tensor:
    """Of P pairs: the norm of one gradient on their masks over that of the other, `[P, h, w]` each.

    Returns:
        `[P]`, 0 where refinement has no gradient, infinite where matching has none, NaN where neither has.
    """
    return refining.flatten(1).norm(dim=1) / matching.flatten(1).norm(dim=1)


def compare_gradients(matching: Tensor, refining: Tensor) -> dict[str, float]:
    """Medians over P pairs of how two gradients on their masks, `[P, h, w]` each, stand to each other.

    Returns:
        `refine_to_match`, the ratio of their norms, and `refine_cosine`, their cosine.
    """
    ratio = gradient_ratios(matching, refining).nan_to_num(0.0)
    cosine = F.cosine_similarity(matching.flatten(1), refining.flatten(1), dim=1, eps=1e-30)
    return {"refine_to_match": float(ratio.median()), "refine_cosine": float(cosine.median())}


def warn_if_clamped(figures: Mapping[str, Tensor], meanings: Mapping[str, str]) -> None:
    """Warns, once each, of terms that give no gradient to at least half of the pairs.

    Args:
        figures: of `figures_of`.
        meanings: name of the similarities -> what it means, see `CLAMPED_MATCHING`.
    """
    for name, meaning in meanings.items():
        share = float(figures.get(f"clamped_{name}", 0.0))
        if share >= 0.5:
            low, high = functional.SIMILARITY_RANGE
            warn_once(
                f"clamped {name}",
                f"{100 * share:.0f} % of the {meaning}: their cosine is clamped to {low:g} or {high:g} (figure "
                f"clamped_{name}). CLIP's cosines are 0.15 to 0.35, SigLIP's near 0; prompts of L_T alone fall below",
            )


def warn_of_idle_terms(masks: ClassMasks, prompts: BackgroundPrompts | None) -> None:
    """Warns, once each, of masks that carry no gradient, and of refinement (where it has prompts) not yet learned."""
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled() and not masks.maps.requires_grad:
        warn_once(
            "detached masks",
            "the masks carry no gradient, so that these losses train nothing: were the CAMs detached, or made under "
            "torch.no_grad()?",
        )
    if prompts is not None and not prompts.learned:
        warn_once(
            "unlearned prompts",
            "refinement with prompts that were never learned: run stage (b), learn_background_prompts, first, or read "
            "its file with BackgroundPrompts.load(path); if you learned them by an optimiser of your own, set "
            "prompts.learned = True",
        )


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)
