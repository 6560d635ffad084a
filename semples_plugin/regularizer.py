"""`SemPLeSRegularizer`: the three objectives as one thing to add to a host's loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from semples_plugin import functional
from semples_plugin.checks import check_names, check_tensor, warn_once
from semples_plugin.clip import FrozenClip
from semples_plugin.distributed import share_of_pairs
from semples_plugin.masks import ClassMasks, masked_views
from semples_plugin.parts import sum_in_parts
from semples_plugin.prompts import BackgroundPrompts

if TYPE_CHECKING:
    from semples_plugin.presets import Preset

Named = dict[str, Tensor]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; 0 leaves a term out, and its cost with it. Defaults: the paper's for VOC.

    Attributes:
        foreground: of E[-log sim(v_f, u_f)] in L_match (1).
        background: lambda_b, of E[-log(1 - sim(v_b, u_f))] in L_match (1).
        refine: lambda, of L_refine (3).
        image: of L_prompt^I in (2).
        text: lambda_T, of L_prompt^T in (2).
    """

    foreground: float = 1.0
    background: float = 2.4
    refine: float = 0.05
    image: float = 1.0
    text: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"LossWeights.{field.name}: expected a finite number of at least 0, got {value}")


class SemPLeSRegularizer:
    """Losses that make masks match their class (1), prompts describe backgrounds (2), masks avoid these (3).

    It holds no trainable state of the host's and is no `nn.Module`: a model that keeps one has the state dict,
    parameters and DDP wrapping that it had before. CLIP stays on the device where it was put.

    Args:
        clip: the frozen CLIP.
        class_names: K names, in the order of the label columns; they are put into `template`. A wrong order can't
            be noticed here: print `dict(zip(class_names, labels[0]))` beside an image once.
        weights: of the terms.
        prompts: background prompts; without them a call gives L_match alone.
        template: of the label texts u_f.
        input_mean, input_std: statistics that the host normalised its images with, on the scale of [0, 1] pixels;
            None: the images are CLIP-normalised already (or are to go in as they are, which the release does).
        fill: what masked-out pixels become: "mean", CLIP's mean colour, zero in its normalised space, as the
            equations M X read; "black"; or an RGB triple in [0, 1].
        text_term: of (2), "paper" or "release", see `functional.prompt_loss`.
        max_pairs: pairs that CLIP sees at once; with more of them a step goes part by part, with the same losses and
            gradients, and memory does not grow with them. Losses that are added with factors of their own, instead
            of by `weights`, make it encode the parts again in the backward pass.
        align_corners: of the masks' resampling to CLIP's square; the release aligns them.

    Attributes:
        preset: that it was built from by `Preset.build_regularizer`, with what was replaced in it; else None.
        figures: detached scalars of the last call, to look at: mean similarities and mask area.
    """

    def __init__(
        self,
        clip: FrozenClip,
        class_names: Sequence[str],
        *,
        weights: LossWeights | None = None,
        prompts: BackgroundPrompts | None = None,
        template: str = "a photo of {}.",
        input_mean: Sequence[float] | None = IMAGENET_MEAN,
        input_std: Sequence[float] | None = IMAGENET_STD,
        fill: str | Sequence[float] = "mean",
        text_term: str = "paper",
        max_pairs: int | None = None,
        align_corners: bool = False,
    ) -> None:
        if not isinstance(clip, FrozenClip):
            raise TypeError(
                f"clip: expected a FrozenClip, got {type(clip).__name__}; wrap it: FrozenClip(model, tokenizer)"
            )
        if weights is not None and not isinstance(weights, LossWeights):
            raise TypeError(
                f"weights: expected LossWeights, got {type(weights).__name__}; see load_preset(...).weights"
            )
        if template.count("{}") != 1:
            raise ValueError(f'template: expected one "{{}}" where the class name goes, got {template!r}')
        if text_term not in ("paper", "release"):
            raise ValueError(f'text_term: expected "paper" or "release", got {text_term!r}')
        if (input_mean is None) != (input_std is None):
            raise ValueError("input_mean and input_std: give both, or None for both where images are CLIP-normalised")
        if max_pairs is not None and not (isinstance(max_pairs, int) and max_pairs > 0):
            raise ValueError(f"max_pairs: expected a positive integer or None, got {max_pairs!r}")
        self.max_pairs = max_pairs
        self.align_corners = align_corners
        self.preset: Preset | None = None
        self.clip = clip
        self.class_names = check_names(class_names)
        self.weights = weights or LossWeights()
        self.template = template
        self.text_term = text_term
        self.input_mean = tuple(clip.image_mean if input_mean is None else input_mean)
        self.input_std = tuple(clip.image_std if input_std is None else input_std)
        self.fill = _fill_colour(fill, clip)
        self.figures: dict[str, Tensor] = {}
        self._label_features = clip.encode_texts([template.format(name) for name in self.class_names])
        self._kept: tuple[Tensor, tuple[str, tuple[int, ...] | None], Tensor] | None = None
        self._prompts: BackgroundPrompts | None = None
        self.prompts = prompts

    @property
    def prompts(self) -> BackgroundPrompts | None:
        """The background prompts; set them to go from stage (a) to (c). Wrong ones are refused."""
        return self._prompts

    @prompts.setter
    def prompts(self, prompts: BackgroundPrompts | None) -> None:
        if prompts is not None:
            if not isinstance(prompts, BackgroundPrompts):
                raise TypeError(
                    f"prompts: expected BackgroundPrompts, got {type(prompts).__name__}; a file is read by "
                    "BackgroundPrompts.load(path)"
                )
            prompts.claim(self.clip, self.class_names)
            prompts.to(self.clip.device)
        self._prompts, self._kept = prompts, None

    def to(self, device: str | torch.device) -> SemPLeSRegularizer:
        """Moves CLIP and the prompts, in place, and returns self."""
        self.clip.to(device)
        self._label_features, self._kept = self._label_features.to(device), None
        if self._prompts is not None:
            self._prompts.to(device)
        return self

    def __call__(self, images: Tensor, masks: ClassMasks) -> dict[str, Tensor]:
        """Equations (1) and (3), for stages (a) and (c).

        Args:
            images: the host's batch `[N, 3, H, W]`, normalised with `input_mean` and `input_std`.
            masks: P masks in [0, 1], of any resolution.

        Returns:
            Weighted scalars whose sum is L_total: `loss_match_foreground`, `loss_match_background` and, with
            prompts, `loss_refine`. Gradients reach the masks alone. A batch without a pair gives zeros that hang
            on the graph of the masks. Under torch.distributed each rank's losses are its part of the mean over all
            ranks' pairs, so that DDP's average is the gradient of the whole batch; all ranks must call together.
        """
        weights, prompts = self.weights, self._prompts
        refine = weights.refine if prompts is not None else 0.0
        wanted = {
            "loss_match_foreground": weights.foreground,
            "loss_match_background": weights.background,
            "loss_refine": refine,
        }
        wanted = {name: weight for name, weight in wanted.items() if weight}
        if not wanted:
            raise ValueError("every term of (1) and (3) has the weight 0; there is nothing to train the masks with")
        self._check(images, masks)
        self._warn_of_lost_stages(masks, refine > 0)
        if torch.is_grad_enabled() and masks.maps.requires_grad:
            share = share_of_pairs(len(masks), masks.maps.device)
            wanted = {name: share * weight for name, weight in wanted.items()}
        if len(masks) == 0:
            self.figures = {}
            return _zeros(masks.maps, wanted)
        with torch.autocast(self.clip.device.type, enabled=False):
            terms = self._terms if len(masks) <= (self.max_pairs or len(masks)) else self._terms_in_parts
            losses, seen = terms(self._for_clip(images), masks, wanted)
        self._note(masks, seen)
        return losses

    def prompt_losses(self, images: Tensor, masks: ClassMasks) -> dict[str, Tensor]:
        """Equation (2), for stage (b): `loss_prompt_image` and `loss_prompt_text`, whose sum is L_prompt.

        Gradients reach the prompts alone, however the masks were made. To learn prompts from a whole data set use
        `learn_background_prompts`, which encodes each background once.
        """
        self._check(images, masks)
        return self.prompt_losses_of(self.background_features(images, masks), masks.class_index)

    def prompt_losses_of(self, backgrounds: Tensor, class_index: Tensor) -> dict[str, Tensor]:
        """`prompt_losses` for background features v_b `[P, D]` of the classes `[P]` that are at hand already."""
        prompts, weights = self._need_prompts(), self.weights
        wanted = {"loss_prompt_image": weights.image, "loss_prompt_text": weights.text}
        wanted = {name: weight for name, weight in wanted.items() if weight}
        if not wanted:
            raise ValueError("both terms of (2) have the weight 0; there is nothing to learn the prompts with")
        prompts.learned = True
        if len(class_index) == 0:
            return _zeros(prompts.vectors, wanted)
        with torch.autocast(self.clip.device.type, enabled=False):
            present, places = class_index.unique(return_inverse=True)
            described = prompts.encode(self.clip, present)[places]
            seen = {
                "prompt_background": functional.similarity(described, backgrounds),
                "prompt_label": functional.similarity(described, self._label_features[class_index]),
            }
            terms = functional.prompt_loss(seen["prompt_background"], seen["prompt_label"], self.text_term)
        self.figures = {f"similarity_{name}": values.detach().mean() for name, values in seen.items()}
        named = dict(zip(("loss_prompt_image", "loss_prompt_text"), terms))
        return {name: weight * named[name] for name, weight in wanted.items()}

    @torch.no_grad()
    def background_features(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """v_b `[P, D]`, unit length, without gradients: what prompts are learned from."""
        self._check(images, masks)
        if len(masks) == 0:
            return self._label_features.new_zeros(0, self._label_features.shape[1])
        with torch.autocast(self.clip.device.type, enabled=False):
            prepared, masks, pairs = self._for_clip(images), masks.detach(), self.max_pairs or len(masks)
            parts = [masks[start : start + pairs] for start in range(0, len(masks), pairs)]
            return torch.cat([self._features(prepared, part, False, True)[1] for part in parts])

    @property
    def label_features(self) -> Tensor:
        """u_f `[K, D]`, encoded once."""
        return self._label_features

    def prompt_features(self) -> Tensor:
        """u_b `[K, D]`, without gradients; kept until the vectors change, in whatever way they do."""
        prompts = self._need_prompts()
        vectors, text = prompts.vectors.detach(), (prompts.template, prompts.suffix_ids)
        if self._kept is None or self._kept[1] != text or not torch.equal(self._kept[0], vectors):
            with torch.no_grad():
                self._kept = vectors.clone(), text, prompts.encode(self.clip)
        return self._kept[2]

    def views(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """The foreground views, then the background views: `[2 P, 3, S, S]`, CLIP-normalised, S CLIP's resolution.

        Images (with antialiasing) and masks are resampled bilinearly to CLIP's square; other aspect ratios are
        squeezed, so that masks and images stay aligned and no object is cut off.
        """
        images, (height, width) = self._for_clip(images), self.clip.image_size
        return masked_views(images, masks.resized(height, width, self.align_corners), self.fill.to(images))

    def _for_clip(self, images: Tensor) -> Tensor:
        """The host's images at CLIP's resolution and in its normalised space."""
        dtype = torch.promote_types(images.dtype, torch.float32)
        images = images.detach().to(dtype)
        height, width = self.clip.image_size
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)
        channel = images.new_tensor([self.input_mean, self.input_std, self.clip.image_mean, self.clip.image_std])
        host_mean, host_std, clip_mean, clip_std = channel.view(4, 1, 3, 1, 1)
        normalised: Tensor = (images * host_std + host_mean - clip_mean) / clip_std
        return normalised

    def _terms(self, images: Tensor, masks: ClassMasks, wanted: dict[str, float]) -> tuple[Named, Named]:
        """The wanted losses, weighted, and the similarities `[P]` that they are made of."""
        labels = self._label_features[masks.class_index]
        seen: Named = {}
        losses: Named = {}
        # A view that no term looks at isn't encoded.
        match, repel, refine = (f"loss_{name}" in wanted for name in ("match_foreground", "match_background", "refine"))
        foreground, background = self._features(images, masks, match or refine, repel)
        if match:
            seen["foreground"] = functional.similarity(foreground, labels)
            losses["loss_match_foreground"] = functional.attract(seen["foreground"])
        if repel:
            seen["background"] = functional.similarity(background, labels)
            losses["loss_match_background"] = functional.repel(seen["background"])
        if refine:
            seen["prompt"] = functional.similarity(foreground, self.prompt_features()[masks.class_index])
            losses["loss_refine"] = functional.refinement_loss(seen["prompt"])
        return {name: wanted[name] * loss for name, loss in losses.items()}, seen

    def _terms_in_parts(self, images: Tensor, masks: ClassMasks, wanted: dict[str, float]) -> tuple[Named, Named]:
        """`_terms`, `max_pairs` pairs at a time."""
        kept: list[Named] = []

        def share_of(maps: Tensor, part: slice) -> Tensor:
            some = replace(masks[part], maps=maps)
            losses, seen = self._terms(images, some, wanted)
            kept.append({name: values.detach() for name, values in seen.items()})
            return torch.stack(list(losses.values())) * (len(some) / len(masks))

        values: Tensor = sum_in_parts(share_of, masks.maps, self.max_pairs or len(masks))
        seen = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
        return dict(zip(wanted, values)), seen

    def _features(self, images: Tensor, masks: ClassMasks, foreground: bool, background: bool) -> tuple[Tensor, Tensor]:
        """v_f and v_b, each `[P, D]`, or `[0, D]` where they aren't wanted; both in one batch for CLIP."""
        views = masked_views(images, masks.resized(*self.clip.image_size, self.align_corners), self.fill.to(images))
        views = views[0 if foreground else len(masks) : 2 * len(masks) if background else len(masks)]
        features = self.clip.encode_images(views)
        count = len(masks) if foreground else 0
        return features[:count], features[count:]

    def _check(self, images: Tensor, masks: ClassMasks) -> None:
        if torch.compiler.is_compiling():
            return
        check_tensor("images", images, shape="[N, 3, H, W]")
        if not isinstance(masks, ClassMasks):
            raise TypeError(f"masks: expected ClassMasks, got {type(masks).__name__}; see ClassMasks.from_dense")
        count, classes = images.shape[0], len(self.class_names)
        if images.shape[1] != 3:
            raise ValueError(f"images: expected [N, 3, H, W], got {list(images.shape)}")
        if masks.num_classes not in (None, classes):
            hint = "; is one of the columns the background?" if masks.num_classes == classes + 1 else ""
            raise ValueError(
                f"masks: made from {masks.num_classes} label columns, but there are {classes} class names{hint}"
            )
        if masks.num_images not in (None, count):
            raise ValueError(f"masks: made from a batch of {masks.num_images}, but there are {count} images")
        if not images.device == masks.maps.device == self.clip.device:
            raise ValueError(
                f"images are on {images.device}, masks on {masks.maps.device}, CLIP is on {self.clip.device}; bring "
                "them together, CLIP with regularizer.to(device)"
            )
        if len(masks) == 0:
            return
        self._check_values(images, masks, count, classes)

    @torch.no_grad()
    def _check_values(self, images: Tensor, masks: ClassMasks, count: int, classes: int) -> None:
        mean, std = images.new_tensor([self.input_mean, self.input_std]).float().view(2, 3)
        low, high = images.detach().amin((0, 2, 3)).float(), images.detach().amax((0, 2, 3)).float()
        indices = torch.stack([masks.image_index.max(), masks.class_index.max()])
        values = torch.stack(
            [(low * std + mean).min(), (high * std + mean).max(), low.min(), high.max(), low.max(), high.min()]
        )
        values = torch.cat([values.double(), masks.maps.aminmax()[0].double()[None], masks.maps.max().double()[None]])
        # One transfer for all checks: a training step waits for the device once.
        figures = torch.cat([values, indices]).tolist()
        darkest, brightest, lowest, highest, black, white, smallest, largest, image, klass = figures
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise ValueError("masks: NaN or infinite values; the CAMs diverged, or underflowed in half precision")
        if smallest < -_SLACK or largest > 1 + _SLACK:
            raise ValueError(
                f"masks: expected values in [0, 1], got {smallest:.3g} to {largest:.3g}; ClassMasks of logits take "
                ".sigmoid(), of ReLU maps or signed maps .max_normalized(), of non-negative maps .normalized(eps)"
            )
        if image >= count or klass >= classes:
            raise ValueError(
                f"masks: pairs point to image {int(image)} of {count} and class {int(klass)} of {classes} (both from "
                "0); are these the masks of this batch, and do its labels belong to class_names?"
            )
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError("images: NaN or infinite values")
        # Photographs in [0, 1] come close to black and white in every channel; normalised ones don't end there.
        looks_raw = self.input_mean != (0, 0, 0) and 0 <= lowest <= black < 0.1 and 0.8 < white <= highest <= 1
        if looks_raw or darkest < -_PIXEL_SLACK or brightest > 1 + _PIXEL_SLACK:
            raise ValueError(
                f"images: values from {lowest:.3g} to {highest:.3g} are not normalised with mean "
                f"{_rounded(self.input_mean)} and std {_rounded(self.input_std)}; pass what the host used as "
                "input_mean and input_std ((0, 0, 0) and (1, 1, 1) for images in [0, 1])"
            )

    def _warn_of_lost_stages(self, masks: ClassMasks, refine: bool) -> None:
        if torch.compiler.is_compiling():
            return
        if torch.is_grad_enabled() and not masks.maps.requires_grad:
            warn_once(
                "detached masks",
                "the masks carry no gradient, so that these losses train nothing: were the CAMs detached, or made "
                "under torch.no_grad()?",
            )
        if refine and self._prompts is not None and not self._prompts.learned:
            warn_once(
                "unlearned prompts",
                "refinement with prompts that were never learned: run stage (b), learn_background_prompts, first, or "
                "read its file with BackgroundPrompts.load(path)",
            )

    def _need_prompts(self) -> BackgroundPrompts:
        if self._prompts is None:
            raise ValueError(
                "the regularizer has no prompts: pass prompts=BackgroundPrompts("
                f"{len(self.class_names)}, length=30, width={self.clip.text_width}) or BackgroundPrompts.load(path)"
            )
        return self._prompts

    @torch.no_grad()
    def _note(self, masks: ClassMasks, similarities: dict[str, Tensor]) -> None:
        self.figures = {f"similarity_{name}": values.detach().mean() for name, values in similarities.items()}
        self.figures["mask_area"] = masks.maps.detach().float().mean()


_SLACK = 1e-3  # rounding of half-precision masks
_PIXEL_SLACK = 1.5  # random erasing fills boxes with noise of several standard deviations; 0 to 255 is far beyond


def sum_of(losses: dict[str, Tensor]) -> Tensor:
    """The sum of a loss dict: L_total, L_match or L_prompt."""
    return torch.stack(list(losses.values())).sum()


def _zeros(anchor: Tensor, wanted: dict[str, float]) -> dict[str, Tensor]:
    # Zeros on the graph: backward() runs and, under DDP, every parameter still takes part.
    zero = anchor.sum() * 0.0
    return {name: zero.clone() for name in wanted}


def _fill_colour(fill: str | Sequence[float], clip: FrozenClip) -> Tensor:
    mean, std = torch.tensor([clip.image_mean, clip.image_std])
    if isinstance(fill, str):
        if fill not in ("mean", "black"):
            raise ValueError(f'fill: expected "mean", "black" or an RGB triple in [0, 1], got {fill!r}')
        return torch.zeros(3) if fill == "mean" else -mean / std
    colour = torch.tensor([float(value) for value in fill])
    if colour.shape != (3,) or not bool(((colour >= 0) & (colour <= 1)).all()):
        raise ValueError(f'fill: expected "mean", "black" or an RGB triple in [0, 1], got {fill!r}')
    return (colour - mean) / std


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)
