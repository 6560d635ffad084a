"""`SemPLeSRegularizer`: the three objectives as one thing to add to a host's loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor

from semples_plugin import functional
from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.masks import ClassMasks, masked_views
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.utils.checks import CheckSchedule, check_names, check_tensor, check_triple, warn_once
from semples_plugin.utils.chunked import sum_in_parts
from semples_plugin.utils.distributed import share_of_pairs

if TYPE_CHECKING:
    from semples_plugin.presets import Preset

Named = dict[str, Tensor]


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
        check_every: steps between two checks of values, which wait for the device; the first three steps are
            checked as well, and those where shapes, types or statistics change. 0: never after these. On a CPU
            every step is checked.

    Attributes:
        preset: that it was built from by `Preset.build_regularizer`, with what was replaced in it; else None.
        figures: detached scalars of the last call, to look at: mean similarities, the share of pairs whose
            similarity is clamped, so that they get no gradient from that term, and the masks' mean area.
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
        check_every: int = 100,
    ) -> None:
        if not isinstance(clip, FrozenClip):
            raise TypeError(
                f"clip: expected a FrozenClip, got {type(clip).__name__}; wrap it: FrozenClip(model, tokenizer)"
            )
        if weights is not None and not isinstance(weights, LossWeights):
            raise TypeError(
                f"weights: expected LossWeights, got {type(weights).__name__}; see load_preset(...).weights"
            )
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f'template: expected one "{{}}" where the class name goes, got {template!r}')
        if text_term not in ("paper", "release"):
            raise ValueError(f'text_term: expected "paper" or "release", got {text_term!r}')
        # One of them without the other would mix two normalisations, the default's being ImageNet's.
        if (input_mean is None, input_mean is IMAGENET_MEAN) != (input_std is None, input_std is IMAGENET_STD):
            raise ValueError("input_mean and input_std: give both, or None for both where images are CLIP-normalised")
        whole = isinstance(max_pairs, Integral) and not isinstance(max_pairs, bool)
        if max_pairs is not None and not (whole and max_pairs > 0):
            raise ValueError(f"max_pairs: expected a positive integer or None, got {max_pairs!r}")
        self._value_checks, self._prompt_checks = CheckSchedule(check_every), CheckSchedule(check_every)
        self.max_pairs = max_pairs
        self.align_corners = align_corners
        self.preset: Preset | None = None
        self.clip = clip
        self._class_names = check_names(class_names)
        self.weights = weights or LossWeights()
        self._template = template
        self.text_term = text_term
        self._input_mean = check_triple("input_mean", clip.image_mean if input_mean is None else input_mean)
        self._input_std = check_triple("input_std", clip.image_std if input_std is None else input_std, positive=True)
        self._fill = _fill_colour(fill, clip)
        self.figures: dict[str, Tensor] = {}
        self._label_features = clip.encode_texts([template.replace("{}", name) for name in self.class_names])
        self._constants: tuple[Any, Tensor] | None = None
        self._kept: _EncodedPrompts | None = None
        self._prompts: BackgroundPrompts | None = None
        self.prompts = prompts

    def __repr__(self) -> str:
        weights = ", ".join(f"{field.name} {getattr(self.weights, field.name):g}" for field in fields(self.weights))
        prompts = self._prompts
        learned = "learned" if prompts is not None and prompts.learned else "not learned"
        has = "no prompts" if prompts is None else f"prompts of length {prompts.vectors.shape[1]}, {learned}"
        return f"SemPLeSRegularizer({self.clip}; {len(self.class_names)} classes; weights: {weights}; {has})"

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
        """What the host normalised its images with."""
        return self._input_mean

    @property
    def input_std(self) -> tuple[float, float, float]:
        """What the host normalised its images with."""
        return self._input_std

    @property
    def fill(self) -> Tensor:
        """What masked-out pixels become, `[3]`, in CLIP's normalised space."""
        return self._fill

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
            prompts.check_belongs_to(self.clip, self.class_names)
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
        checked = self._check(images, masks)
        self._warn_of_lost_stages(masks, refine > 0)
        # All ranks ask, also one whose masks hang on no graph, for the others wait for it.
        share = share_of_pairs(len(masks), masks.maps.device) if torch.is_grad_enabled() else 1.0
        if len(masks) == 0:
            self.figures = {}
            return _zeros(masks.maps, wanted)
        losses, similarities = self._losses(images, masks, wanted)
        self.figures = {**_figures_of(similarities), "mask_area": masks.maps.detach().float().mean()}
        if checked:
            _warn_if_clamped(self.figures, {"foreground": _FAR_FROM_LABEL, "prompt": _FAR_FROM_PROMPT})
        return {name: share * loss for name, loss in losses.items()}

    def gradient_balance(self, images: Tensor, masks: ClassMasks) -> dict[str, float]:
        """How refinement's gradient on the masks stands to matching's, for a batch now and then.

        Args:
            images, masks: as for a call; every rank may ask for itself.

        Returns:
            Medians over the pairs: `refine_to_match`, the norm of the weighted L_refine's gradient over that of the
            weighted L_match's, and `refine_cosine`, the cosine between the two: below 0 they pull apart.
        """
        weights, maps = self.weights, masks.maps.detach().float().requires_grad_()
        match = {"loss_match_foreground": weights.foreground, "loss_match_background": weights.background}
        match, refine = {name: weight for name, weight in match.items() if weight}, {"loss_refine": weights.refine}
        if self._prompts is None or not (match and weights.refine and len(masks)):
            raise ValueError(
                "gradient_balance: expected prompts, weights of matching and refinement above 0, and at least one pair"
            )
        self._check(images, masks)
        with torch.enable_grad():
            losses, _ = self._losses(images, replace(masks, maps=maps), {**match, **refine})
            matching = torch.autograd.grad(sum_of({name: losses[name] for name in match}), maps, retain_graph=True)[0]
            refining = torch.autograd.grad(losses["loss_refine"], maps)[0]
        matching, refining = matching.flatten(1), refining.flatten(1)
        ratio = refining.norm(dim=1) / matching.norm(dim=1).clamp(min=1e-30)
        cosine = F.cosine_similarity(matching, refining, dim=1, eps=1e-30)
        return {"refine_to_match": float(ratio.median()), "refine_cosine": float(cosine.median())}

    def prompt_losses(self, images: Tensor, masks: ClassMasks) -> dict[str, Tensor]:
        """Equation (2), for stage (b): `loss_prompt_image` and `loss_prompt_text`, whose sum is L_prompt.

        Gradients reach the prompts alone, however the masks were made. To learn prompts from a whole data set use
        `learn_background_prompts`, which encodes each background once; after an optimiser of your own say
        `prompts.learned = True`, so that refinement doesn't warn of prompts that were never learned.
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
        self.figures = _figures_of(seen)
        if self._prompt_checks.is_due(backgrounds.device):
            _warn_if_clamped(self.figures, {"prompt_background": _FAR_FROM_BACKGROUND})
        named = dict(zip(("loss_prompt_image", "loss_prompt_text"), terms, strict=True))
        return {name: weight * named[name] for name, weight in wanted.items()}

    def background_features(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """v_b `[P, D]`, unit length, without gradients: what prompts are learned from."""
        return self._fixed_features(images, masks, foreground=False)[1]

    def pair_features(self, images: Tensor, masks: ClassMasks) -> tuple[Tensor, Tensor]:
        """v_f and v_b, each `[P, D]`, unit length, without gradients: the latter is what prompts are learned from."""
        return self._fixed_features(images, masks, foreground=True)

    @torch.no_grad()
    def _fixed_features(self, images: Tensor, masks: ClassMasks, foreground: bool) -> tuple[Tensor, Tensor]:
        self._check(images, masks)
        if len(masks) == 0:
            return self._label_features[:0], self._label_features[:0]
        with torch.autocast(self.clip.device.type, enabled=False):
            prepared, masks, pairs = self._for_clip(images), masks.detach(), self.max_pairs or len(masks)
            parts = [masks[start : start + pairs] for start in range(0, len(masks), pairs)]
            foregrounds, backgrounds = zip(
                *(self._features(prepared, part, foreground, True) for part in parts), strict=True
            )
            return torch.cat(foregrounds), torch.cat(backgrounds)

    @property
    def label_features(self) -> Tensor:
        """u_f `[K, D]`, encoded once."""
        return self._label_features

    def prompt_features(self) -> Tensor:
        """u_b `[K, D]`, without gradients; kept until the vectors change.

        Every change is noticed on a CPU; elsewhere one by `prompts.vectors.data` at the next check, see `check_every`.
        """
        prompts, kept = self._need_prompts(), self._kept
        vectors, text = prompts.vectors, (prompts.template, prompts.suffix_ids)
        version = _version_of(vectors)
        same = kept is not None and kept.source is vectors and (kept.version, kept.text) == (version, text)
        if kept is None or not same or self._has_changed(kept, vectors.detach()):
            with torch.no_grad():
                kept = _EncodedPrompts(vectors, version, text, vectors.detach().clone(), prompts.encode(self.clip))
            self._kept = kept
        return kept.features

    def _has_changed(self, kept: _EncodedPrompts, vectors: Tensor) -> bool:
        """Whether vectors were changed behind autograd's back."""
        if kept.vectors.device != vectors.device:
            return True
        compiling = torch.compiler.is_compiling()
        looks = compiling or self._prompt_checks.is_due(vectors.device, kept.version)
        return looks and not torch.equal(kept.vectors, vectors)

    def views(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """The foreground views, then the background views: `[2 P, 3, S, S]`, CLIP-normalised, S CLIP's resolution.

        Images (with antialiasing) and masks are resampled bilinearly to CLIP's square; other aspect ratios are
        squeezed, so that masks and images stay aligned and no object is cut off.
        """
        images, (height, width) = self._for_clip(images), self.clip.image_size
        return masked_views(images, masks.resized(height, width, self.align_corners), self._statistics(images)[4])

    def paint(self, images: Tensor, places: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` in the host's statistics, with `places` `[N, H, W]` (bool) in the fill's colour.

        There foreground and background views are the same, whatever the mask: no gradient, and nothing for prompts
        to learn from.
        """
        host_mean, host_std, clip_mean, clip_std, fill = self._statistics(images)
        colour = (fill * clip_std + clip_mean - host_mean) / host_std
        return torch.where(places[:, None], colour, images)

    def _statistics(self, like: Tensor) -> Tensor:
        """The host's and CLIP's mean and std and the fill, `[5, 3, 1, 1]`; copied to a device once, for that waits."""
        fill = id(self._fill), _version_of(self._fill)
        key = (like.dtype, like.device, self.clip.image_mean, self.clip.image_std, fill)
        if self._constants is None or self._constants[0] != key:
            rows = like.new_tensor([self.input_mean, self.input_std, self.clip.image_mean, self.clip.image_std])
            self._constants = key, torch.cat([rows, self._fill.to(like)[None]]).view(5, 3, 1, 1)
        return self._constants[1]

    def _for_clip(self, images: Tensor) -> Tensor:
        """The host's images at CLIP's resolution and in its normalised space."""
        dtype = torch.promote_types(images.dtype, torch.float32)
        images = images.detach().to(dtype)
        height, width = self.clip.image_size
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)
        host_mean, host_std, clip_mean, clip_std, _ = self._statistics(images)
        normalised: Tensor = (images * host_std + host_mean - clip_mean) / clip_std
        return normalised

    def _losses(self, images: Tensor, masks: ClassMasks, wanted: dict[str, float]) -> tuple[Named, Named]:
        """The wanted losses, weighted, and the similarities `[P]` that they are made of, in parts where asked for."""
        prompts = self.prompt_features() if "loss_refine" in wanted else None
        with torch.autocast(self.clip.device.type, enabled=False):
            terms = self._terms if len(masks) <= (self.max_pairs or len(masks)) else self._terms_in_parts
            return terms(self._for_clip(images), masks, wanted, prompts)

    def _terms(
        self, images: Tensor, masks: ClassMasks, wanted: dict[str, float], prompts: Tensor | None
    ) -> tuple[Named, Named]:
        """`_losses` of images as CLIP takes them and prompt features `[K, D]`, all pairs at once."""
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
        if prompts is not None:
            seen["prompt"] = functional.similarity(foreground, prompts[masks.class_index])
            losses["loss_refine"] = functional.refinement_loss(seen["prompt"])
        return {name: wanted[name] * loss for name, loss in losses.items()}, seen

    def _terms_in_parts(
        self, images: Tensor, masks: ClassMasks, wanted: dict[str, float], prompts: Tensor | None
    ) -> tuple[Named, Named]:
        """`_terms`, `max_pairs` pairs at a time."""
        kept: list[Named] = []
        now = copy.copy(self)  # a backward pass that computes the parts again has the settings of this forward pass
        now._fill = self._fill.clone()

        def share_of(maps: Tensor, part: slice) -> Tensor:
            some = replace(masks[part], maps=maps)
            losses, seen = now._terms(images, some, wanted, prompts)
            kept.append({name: values.detach() for name, values in seen.items()})
            return torch.stack(list(losses.values())) * (len(some) / len(masks))

        values: Tensor = sum_in_parts(share_of, masks.maps, self.max_pairs or len(masks))
        seen = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
        return dict(zip(wanted, values, strict=True)), seen

    def _features(self, images: Tensor, masks: ClassMasks, foreground: bool, background: bool) -> tuple[Tensor, Tensor]:
        """v_f and v_b, each `[P, D]`, or `[0, D]` where they aren't wanted; both in one batch for CLIP."""
        fill = self._statistics(images)[4]
        views = masked_views(images, masks.resized(*self.clip.image_size, self.align_corners), fill)
        views = views[0 if foreground else len(masks) : 2 * len(masks) if background else len(masks)]
        features = self.clip.encode_images(views)
        count = len(masks) if foreground else 0
        return features[:count], features[count:]

    def _check(self, images: Tensor, masks: ClassMasks) -> bool:
        """Checks shapes, and values where that is due; returns whether it was."""
        if torch.compiler.is_compiling():
            return False
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
        kind = images.dtype, images.shape[1:], masks.maps.dtype, masks.maps.shape[1:], self.input_mean, self.input_std
        if len(masks) == 0 or not self._value_checks.is_due(images.device, kind):
            return False
        self._check_values(images, masks)
        return True

    @torch.no_grad()
    def _check_values(self, images: Tensor, masks: ClassMasks) -> None:
        mean, std = (values.view(3) for values in self._statistics(images)[:2])
        low, high = images.detach().amin((0, 2, 3)), images.detach().amax((0, 2, 3))
        values = {
            "darkest": (low * std + mean).min(), "brightest": (high * std + mean).max(),  # pixels, of the statistics
            "lowest": low.min(), "highest": high.max(), "black": low.max(), "white": high.min(),  # as they are
            "smallest": masks.maps.min(), "largest": masks.maps.max(),
            "first image": masks.image_index.min(), "last image": masks.image_index.max(),
            "first class": masks.class_index.min(), "last class": masks.class_index.max(),
        }  # fmt: skip
        # One transfer for all of them, as the device is waited for.
        numbers = torch.stack([value.float() for value in values.values()]).tolist()
        of = dict(zip(values, numbers, strict=True))
        if not (math.isfinite(of["smallest"]) and math.isfinite(of["largest"])):
            raise ValueError("masks: NaN or infinite values; the CAMs diverged, or underflowed in half precision")
        if of["smallest"] < -_SLACK or of["largest"] > 1 + _SLACK:
            raise ValueError(
                f"masks: expected values in [0, 1], got {of['smallest']:.3g} to {of['largest']:.3g}; ClassMasks of "
                "logits take .sigmoid(), of ReLU maps or signed maps .max_normalized(), of non-negative maps "
                ".normalized(eps)"
            )
        count, classes = images.shape[0], len(self.class_names)
        image, klass = (of[f"first {n}"] if of[f"first {n}"] < 0 else of[f"last {n}"] for n in ("image", "class"))
        if not (0 <= image < count and 0 <= klass < classes):
            raise ValueError(
                f"masks: pairs point to image {int(image)} of {count} and class {int(klass)} of {classes} (both from "
                "0); are these the masks of this batch, and do its labels belong to class_names?"
            )
        if not (math.isfinite(of["lowest"]) and math.isfinite(of["highest"])):
            raise ValueError("images: NaN or infinite values")
        # Images in [0, 1] come close to black and white in every channel; normalised ones don't end there.
        ends = of["black"] < 0.1 and of["white"] > 0.8
        looks_raw = self.input_mean != (0, 0, 0) and ends and of["lowest"] >= 0 and of["highest"] <= 1
        if looks_raw or of["darkest"] < -_PIXEL_SLACK or of["brightest"] > 1 + _PIXEL_SLACK:
            raise ValueError(
                f"images: values from {of['lowest']:.3g} to {of['highest']:.3g} are not normalised with mean "
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
                "read its file with BackgroundPrompts.load(path); if you learned them by an optimiser of your own, set "
                "prompts.learned = True",
            )

    def _need_prompts(self) -> BackgroundPrompts:
        if self._prompts is None:
            raise ValueError(
                "the regularizer has no prompts: pass prompts=BackgroundPrompts("
                f"{len(self.class_names)}, length=30, width={self.clip.text_width}) or BackgroundPrompts.load(path)"
            )
        return self._prompts


@dataclass(frozen=True)
class _EncodedPrompts:
    """u_b, and what it was encoded from."""

    source: Tensor
    version: int | None
    text: tuple[str, tuple[int, ...] | None]
    vectors: Tensor
    features: Tensor


_SLACK = 1e-3  # rounding of half-precision masks
_FAR_FROM_LABEL = "foregrounds lie so far from their label that E[-log sim(v_f, u_f)] gives them no gradient"
_FAR_FROM_PROMPT = "foregrounds lie so far from their background prompt that refinement gives them no gradient"
_FAR_FROM_BACKGROUND = "backgrounds lie so far from their prompt that E[-log sim(u_b, v_b)] gives it no gradient"
_PIXEL_SLACK = 1.5  # random erasing fills boxes with noise of several standard deviations; 0 to 255 is far beyond


def _figures_of(similarities: Named) -> Named:
    """Mean similarities, and the share of clamped ones."""
    figures = {f"similarity_{name}": values.detach().mean() for name, values in similarities.items()}
    for name, values in similarities.items():
        figures[f"clamped_{name}"] = functional.is_clamped(values.detach()).float().mean()
    return figures


def _warn_if_clamped(figures: Named, meanings: dict[str, str]) -> None:
    """Warns, once each, of terms that at least half of the pairs get no gradient from."""
    for name, meaning in meanings.items():
        share = float(figures.get(f"clamped_{name}", 0.0))
        if share >= 0.5:
            low, high = functional.SIMILARITY_RANGE
            warn_once(
                f"clamped {name}",
                f"{100 * share:.0f} % of the {meaning}: their cosine is clamped to {low:g} or {high:g} (figure "
                f"clamped_{name}). CLIP's cosines are 0.15 to 0.35, SigLIP's near 0; prompts of L_T alone fall below",
            )


def sum_of(losses: dict[str, Tensor]) -> Tensor:
    """The sum of a loss dict: L_total, L_match or L_prompt."""
    return torch.stack(list(losses.values())).sum()


def _version_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place, by autograd's count; None where nobody counts."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


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
    colour = torch.tensor(check_triple('fill ("mean", "black" or a colour)', fill))
    if not bool(((colour >= 0) & (colour <= 1)).all()):
        raise ValueError(f'fill: expected "mean", "black" or an RGB triple in [0, 1], got {fill!r}')
    return (colour - mean) / std


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)
