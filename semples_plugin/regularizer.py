"""`SemPLeSRegularizer`: the three objectives as one thing to add to a host's loss.

`functional` holds the equations, `pair_encoder` the features that they compare, `pair_terms` how the former are
made of the latter, `diagnostics` checks and warnings. For a loss of your own on the masks, add its weight to
`LossWeights` and `_term_weights`, and its formula to `pair_terms`, or to `_terms` in a class of your own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from torch import Tensor

from semples_plugin import diagnostics, functional
from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.compiled import CompiledTerms
from semples_plugin.loss_weights import LossWeights
from semples_plugin.masks import ClassMasks
from semples_plugin.pair_encoder import PairEncoder
from semples_plugin.pair_terms import Named, pair_terms
from semples_plugin.prompts import BackgroundPrompts, EncodedPrompts
from semples_plugin.refine_strength import RefineStrength
from semples_plugin.utils.checks import CheckSchedule
from semples_plugin.utils.chunked import sum_in_parts
from semples_plugin.utils.distributed import share_of_pairs

if TYPE_CHECKING:
    from semples_plugin.presets import Preset


class SemPLeSRegularizer(PairEncoder):
    """Losses that make masks match their class (1), prompts describe backgrounds (2), masks avoid these (3).

    It holds no trainable state of the host's and is no `nn.Module`: a model that keeps one has the state
    dict, parameters and DDP wrapping that it had before. CLIP stays on the device where it was put.

    Args:
        clip: the frozen CLIP.
        class_names: K names, in the order of the label columns; they are put into `template`. A wrong order
            can't be noticed here: print `dict(zip(class_names, labels[0]))` beside an image once.
        weights: of the terms.
        prompts: background prompts; without them a call gives L_match alone.
        template: of the label texts u_f.
        input_mean, input_std: statistics that the host normalised its images with, on the scale of [0, 1]
            pixels; None: the images are CLIP-normalised already (or are to go in as they are, which the
            release does).
        fill: what masked-out pixels become: "mean", CLIP's mean colour, zero in its normalised space, as the
            equations M X read; "black"; or an RGB triple in [0, 1].
        text_term: of (2), "paper" or "release", see `functional.prompt_loss`.
        refine_share: instead of `weights.refine`, how strong refinement is to pull at the masks: its gradient's
            norm over that of L_match's, median over the pairs, as `gradient_balance` measures it. lambda follows
            from the first ten calls that train with these prompts (with gradients, and a pair on some rank), and
            is fixed then; each of them costs one more pass of the batch through CLIP, forward and back. In a
            process that resumes (c) it is measured anew. Ours, not the paper's. None: `weights.refine`.
        max_pairs: pairs that CLIP sees at once; with more of them a step goes part by part, with the same
            losses and gradients, and memory does not grow with them. Losses that are added with factors of
            their own, instead of by `weights`, make it encode the parts again in the backward pass. "auto": a number
            that is quick on a CPU, from what one pair is measured to keep, or that fits into a GPU's free memory.
            It isn't the default: those factors would cost a second pass, and a GPU's free memory differs from run
            to run, and with it the rounding.
        align_corners: of the masks' resampling to CLIP's square; the release aligns them.
        check_every: steps between two checks of values, which wait for the device; the first three steps are
            checked as well, and those where shapes, types or statistics change. 0: never after these. On a
            CPU every step is checked.

    Attributes:
        preset: that it was built from by `Preset.build_regularizer`, with what was replaced in it; else None.
        figures: detached scalars of the last call, to look at: mean similarities, the share of pairs whose
            similarity is clamped, so that they get no gradient from that term, and the masks' mean area.

    Raises:
        TypeError: for an argument of another type.
        ValueError: for one that doesn't fit, such as prompts of other classes.

    >>> clip = FrozenClip.load("demo")  # the embedded tiny CLIP
    >>> regularizer = SemPLeSRegularizer(clip, ["train", "boat"], weights=LossWeights(refine=0.2))
    >>> regularizer.prompts = BackgroundPrompts.for_clip(clip, ["train", "boat"], length=4)
    >>> regularizer
    SemPLeSRegularizer(FrozenClip(...); 2 classes; weights: foreground 1, background 2.4, refine 0.2, image 1,
    text 0.02, prompt_foreground 0; prompts of length 4, not learned)
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
        refine_share: float | None = None,
        max_pairs: int | str | None = None,
        align_corners: bool = False,
        check_every: int = 100,
    ) -> None:
        if weights is not None and not isinstance(weights, LossWeights):
            raise TypeError(
                f"weights: expected LossWeights, got {type(weights).__name__}; see load_preset(...).weights"
            )
        if text_term not in ("paper", "release"):
            raise ValueError(f'text_term: expected "paper" or "release", got {text_term!r}')
        super().__init__(
            clip,
            class_names,
            template=template,
            input_mean=input_mean,
            input_std=input_std,
            fill=fill,
            max_pairs=max_pairs,
            align_corners=align_corners,
            check_every=check_every,
        )
        self.weights = weights or LossWeights()
        self.text_term = text_term
        self.preset: Preset | None = None
        self.figures: Named = {}
        self._compiled: CompiledTerms | None = None
        self._strength = None if refine_share is None else RefineStrength(refine_share)
        self._prompt_checks = CheckSchedule(check_every)
        self._encoded_prompts: EncodedPrompts | None = None
        self._prompts: BackgroundPrompts | None = None
        self.prompts = prompts

    def __repr__(self) -> str:
        prompts = "no prompts"
        if self._prompts is not None:
            learned = "learned" if self._prompts.learned else "not learned"
            prompts = f"prompts of length {self._prompts.vectors.shape[1]}, {learned}"
        weights = str(self.weights)
        if self._strength is not None:
            weights += f"; refine_share {self._strength.share:g}"
        return f"SemPLeSRegularizer({self.clip}; {len(self.class_names)} classes; weights: {weights}; {prompts})"

    @property
    def refine_weight(self) -> float:
        """lambda in use: `weights.refine` or, with a `refine_share`, what was measured for these prompts so far.

        The latter is 0 before the first call that trains.
        """
        return self.weights.refine if self._strength is None else self._strength.weight_for(self._prompts)

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
        self._prompts, self._encoded_prompts = prompts, None

    def to(self, device: str | torch.device) -> SemPLeSRegularizer:
        """Moves CLIP and the prompts, in place, and returns self."""
        super().to(device)
        self._encoded_prompts = None
        if self._prompts is not None:
            self._prompts.to(device)
        return self

    def compile(self, **options: Any) -> SemPLeSRegularizer:
        """From now on calls, stages (a) and (c), run CLIP and the losses as one graph of `torch.compile`, in place.

        Pairs are padded to a few numbers (1 to 6, 8, 10, 12, 16, 20, 24, 32, ...), each with a graph of its own that
        is made when it is first needed; padding changes neither losses nor gradients, to rounding. Stage (b) and
        what isn't trained with, `gradient_balance` for one, stay as they are, as do terms of your own. A graph's
        gradient can be asked for once: sum the losses, and don't keep the graph (`retain_graph`, `create_graph`).

        Args:
            options: of `torch.compile`, such as `mode="reduce-overhead"` for CUDA graphs. With `backend="aot_eager"`
                `backward()` has to be called outside autocast: torch would run that backend's under it, and fail.

        Returns:
            self.

        Raises:
            TypeError: for `fullgraph` and `dynamic`, which are set: one graph without a break, for fixed sizes.
            RuntimeError: for other options that `torch.compile` doesn't know.

        >>> regularizer = SemPLeSRegularizer(FrozenClip.load("demo"), ["train", "boat"]).compile(backend="aot_eager")
        """
        self._compiled = CompiledTerms(pair_terms, options)
        return self

    def __call__(self, images: Tensor, masks: ClassMasks) -> Named:
        """Equations (1) and (3), for stages (a) and (c).

        Args:
            images: the host's batch `[N, 3, H, W]`, normalised with `input_mean` and `input_std`.
            masks: P masks in [0, 1], of any resolution.

        Returns:
            Weighted scalars whose sum is L_total: `loss_match_foreground`, `loss_match_background` and, with
            prompts, `loss_refine`. Gradients reach the masks alone. A batch without a pair gives zeros that
            hang on the graph of the masks. Under torch.distributed each rank's losses are its part of the
            mean over all ranks' pairs, so that DDP's average is the gradient of the whole batch; all ranks
            must call together.

        Raises:
            TypeError, ValueError: for a batch that doesn't fit, such as images normalised otherwise.

        >>> regularizer = SemPLeSRegularizer(FrozenClip.load("demo"), ["train", "boat"])
        >>> images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
        >>> cams = torch.zeros(2, 2, 8, 8, requires_grad=True)  # a model's, here
        >>> masks = ClassMasks.from_dense(cams, labels=torch.tensor([[1, 0], [1, 1]])).sigmoid()
        >>> losses = regularizer(images, masks)
        >>> list(losses)
        ['loss_match_foreground', 'loss_match_background']
        >>> sum(losses.values()).backward()
        >>> (cams.grad != 0).any((2, 3))  # the first image doesn't show the second class
        tensor([[ True, False],
                [ True,  True]])
        """
        if not self._term_weights():
            raise ValueError("every term of (1) and (3) has the weight 0; there is nothing to train the masks with")
        values_checked = self._check(images, masks)
        if self._strength is not None and self._prompts is not None and torch.is_grad_enabled():
            self._measure_strength(images, masks, self._strength, self._prompts)
        weights = self._term_weights()  # with lambda as it was measured just now
        diagnostics.warn_of_idle_terms(masks, self._prompts if "loss_refine" in weights else None)
        # All ranks ask, even one without a gradient, as each waits for the others.
        share = share_of_pairs(len(masks), masks.maps.device) if torch.is_grad_enabled() else 1.0
        if len(masks) == 0:
            self.figures = {}
            return _zeros(masks.maps, weights)
        losses, similarities = self._losses(images, masks, weights)
        self.figures = diagnostics.figures_of(similarities)
        self.figures["mask_area"] = masks.maps.detach().float().mean()
        if values_checked:
            diagnostics.warn_if_clamped(self.figures, diagnostics.CLAMPED_MATCHING)
        return {name: share * loss for name, loss in losses.items()}

    def prompt_losses(self, images: Tensor, masks: ClassMasks) -> Named:
        """Equation (2), for stage (b): `loss_prompt_image` and `loss_prompt_text`, whose sum is L_prompt.

        With `LossWeights.prompt_foreground` above 0 there is `loss_prompt_foreground` as well, and foregrounds are
        encoded in the same batch as backgrounds.

        Gradients reach the prompts alone, however the masks were made. To learn prompts from a whole data set
        use `learn_background_prompts`, which encodes each background once; after an optimiser of your own say
        `prompts.learned = True`, so that refinement doesn't warn of prompts that were never learned.

        Args:
            images, masks: as for a call.

        Raises:
            ValueError: without prompts.

        >>> clip = FrozenClip.load("demo")
        >>> prompts = BackgroundPrompts.for_clip(clip, ["train", "boat"], length=4)
        >>> regularizer = SemPLeSRegularizer(clip, ["train", "boat"], prompts=prompts)
        >>> images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
        >>> masks = ClassMasks.from_dense(torch.zeros(1, 2, 8, 8), labels=torch.tensor([[1, 0]])).sigmoid()
        >>> losses = regularizer.prompt_losses(images, masks)
        >>> list(losses)
        ['loss_prompt_image', 'loss_prompt_text']
        >>> sum(losses.values()).backward()
        >>> (prompts.vectors.grad != 0).any(2).any(1)  # no image shows the second class
        tensor([ True, False])
        """
        self._check(images, masks)
        if self.weights.prompt_foreground == 0:
            return self.prompt_losses_of(self.background_features(images, masks), masks.class_index)
        foregrounds, backgrounds = self.pair_features(images, masks)
        return self.prompt_losses_of(backgrounds, masks.class_index, foregrounds)

    def prompt_losses_of(self, backgrounds: Tensor, class_index: Tensor, foregrounds: Tensor | None = None) -> Named:
        """`prompt_losses` of features that were encoded before.

        Args:
            backgrounds: v_b `[P, D]`.
            class_index: `[P]`, on the CPU where you have it there: on a device, finding the classes that are
                present waits for it.
            foregrounds: v_f `[P, D]`, for `LossWeights.prompt_foreground` alone.

        Raises:
            ValueError: without prompts, or without foregrounds where that weight is above 0.
        """
        prompts = self._need_prompts()
        weights = self.weights.of_prompts()
        if not weights:
            raise ValueError("every term of (2) has the weight 0; there is nothing to learn the prompts with")
        if "loss_prompt_foreground" in weights and foregrounds is None:
            raise ValueError(
                f"LossWeights.prompt_foreground is {self.weights.prompt_foreground:g}, but there are backgrounds "
                "alone: give v_f as well, both from regularizer.pair_features(images, masks), or set it to 0"
            )
        if len(class_index) == 0:
            return _zeros(prompts.vectors, weights)
        with torch.autocast(self.clip.device.type, enabled=False):
            present, position = class_index.unique(return_inverse=True)  # which a device would be waited for
            present, position, class_index = (
                index.to(self.clip.device, non_blocking=True) for index in (present, position, class_index)
            )
            u_b = prompts.encode(self.clip, present)[position]  # each class is encoded once
            u_f = self._label_features[class_index]
            prompt_background = functional.similarity(u_b, backgrounds)
            prompt_label = functional.similarity(u_b, u_f)
            image_term, text_term = functional.prompt_loss(prompt_background, prompt_label, self.text_term)
            similarities = {"prompt_background": prompt_background, "prompt_label": prompt_label}
            terms = {"loss_prompt_image": image_term, "loss_prompt_text": text_term}
            if "loss_prompt_foreground" in weights and foregrounds is not None:
                similarities["prompt_foreground"] = functional.similarity(u_b, foregrounds)
                terms["loss_prompt_foreground"] = functional.repel(similarities["prompt_foreground"])
        self.figures = diagnostics.figures_of(similarities)
        if self._prompt_checks.is_due(backgrounds.device):
            diagnostics.warn_if_clamped(self.figures, diagnostics.CLAMPED_PROMPTS)
        return {name: weight * terms[name] for name, weight in weights.items()}

    def prompt_features(self) -> Tensor:
        """u_b `[K, D]`, without gradients; kept until the vectors change.

        Every change is noticed on a CPU. Elsewhere a change through `prompts.vectors.data` is not, as autograd doesn't
        count it and comparing values would wait for the device: change `prompts.vectors` itself, under
        `torch.no_grad()`.
        """
        prompts = self._need_prompts()
        if self._encoded_prompts is None or not self._encoded_prompts.is_current(prompts):
            self._encoded_prompts = EncodedPrompts.of(prompts, self.clip)
        return self._encoded_prompts.features

    def gradient_balance(self, images: Tensor, masks: ClassMasks) -> dict[str, float]:
        """How refinement's gradient on the masks stands to matching's, for a batch now and then.

        Args:
            images, masks: as for a call; every rank may ask for itself.

        Returns:
            Medians over the pairs: `refine_to_match`, the norm of the weighted L_refine's gradient over that
            of the weighted L_match's, and `refine_cosine`, the cosine between the two: below 0 they pull
            apart.
        """
        if not (self.weights.of_matching() and "loss_refine" in self._term_weights() and len(masks)):
            raise ValueError(
                "gradient_balance: expected prompts, weights of matching and refinement above 0, and at least one pair"
            )
        self._check(images, masks)
        balance = diagnostics.compare_gradients(*self._gradients(images, masks))
        return {**balance, "refine_to_match": self.refine_weight * balance["refine_to_match"]}

    @torch.compiler.disable
    def _measure_strength(
        self, images: Tensor, masks: ClassMasks, strength: RefineStrength, prompts: BackgroundPrompts
    ) -> None:
        """Lets `strength` see a call that trains, while it needs to; all ranks must call together."""
        if strength.is_due(prompts):
            strength.add(diagnostics.gradient_ratios(*self._gradients(images, masks)))

    def _gradients(self, images: Tensor, masks: ClassMasks) -> tuple[Tensor, Tensor]:
        """Gradients on the masks `[P, h, w]` of the weighted L_match and of L_refine without its weight.

        Each pair's have a factor of their own, the same in both.
        """
        match, prompts = self.weights.of_matching(), self.prompt_features()
        maps = masks.maps.detach().float()
        plain = copy.copy(self)
        plain._compiled = None  # a graph's gradient can be asked for once alone
        matching, refining = torch.zeros_like(maps), torch.zeros_like(maps)
        size = self._most_pairs(images, masks) if len(masks) else 1
        with torch.enable_grad(), torch.autocast(self.clip.device.type, enabled=False):
            prepared = self._prepare(images)
            for start in range(0, len(masks), size):
                rows = slice(start, start + size)
                part = replace(masks[rows], maps=maps[rows].requires_grad_())
                terms, _ = plain._terms(prepared, part, {**match, "loss_refine": 1.0}, prompts)
                matched = sum_of({name: weight * terms[name] for name, weight in match.items()})
                (matching[rows],) = torch.autograd.grad(matched, part.maps, retain_graph=True)
                (refining[rows],) = torch.autograd.grad(terms["loss_refine"], part.maps)
        return matching, refining

    def _term_weights(self) -> dict[str, float]:
        """Weights of the terms that a call computes: those above 0, and refinement's with prompts alone."""
        matching = self.weights.of_matching()
        if self._prompts is None:
            return matching
        if self._strength is None:
            return {**matching, **self.weights.of_refinement()}
        if not matching:
            raise ValueError(
                "refine_share is a share of L_match's gradient, but both weights of L_match are 0: set one of "
                "LossWeights.foreground and background, or leave refine_share out and set LossWeights.refine"
            )
        return {**matching, "loss_refine": self.refine_weight}  # also where it is 0, before the first call that trains

    def _terms(
        self, images: Tensor, masks: ClassMasks, weights: dict[str, float], prompts: Tensor | None
    ) -> tuple[Named, Named]:
        """The terms of (1) and (3), unweighted, and the similarities `[P]` that they are made of.

        Args:
            images: `[N, 3, S, S]`, CLIP-normalised.
            masks: P > 0 of them; each term is a mean over these pairs.
            weights: of `_term_weights`; what isn't among them is not computed.
            prompts: u_b of all classes, `[K, D]`, for refinement.
        """
        masks, fill = self._resized(masks), self._statistics(images).fill
        tables = fill, self._label_features, prompts
        if self._compiled is not None and not torch.compiler.is_compiling():
            most = None if isinstance(self.max_pairs, str) else self.max_pairs  # "auto" chooses what isn't padded
            return self._compiled(self.clip, tuple(weights), images, masks, *tables, most=most)
        pairs = images[masks.image_index]
        return pair_terms(self.clip.encode_images, tuple(weights), pairs, masks.maps, masks.class_index, *tables)

    def _losses(self, images: Tensor, masks: ClassMasks, weights: dict[str, float]) -> tuple[Named, Named]:
        """`_terms` of the host's images, weighted; in parts where there are more than `max_pairs` pairs."""
        prompts = self.prompt_features() if "loss_refine" in weights else None
        with torch.autocast(self.clip.device.type, enabled=False):
            size = self._most_pairs(images, masks)
            images = self._prepare(images)
            if len(masks) > size:
                return self._losses_in_parts(images, masks, weights, prompts, size)
            terms, similarities = self._terms(images, masks, weights, prompts)
            return {name: weight * terms[name] for name, weight in weights.items()}, similarities

    def _losses_in_parts(
        self, images: Tensor, masks: ClassMasks, weights: dict[str, float], prompts: Tensor | None, size: int
    ) -> tuple[Named, Named]:
        """`_losses` of prepared images, `size` pairs at a time."""
        similarities: list[Named] = []
        # A backward pass that computes the parts again has the settings of this forward pass.
        snapshot = copy.copy(self)
        snapshot._fill = self._fill.clone()
        snapshot._cached_statistics = {snapshot._statistics_key(images): self._statistics(images)}

        def share_of(maps: Tensor, rows: slice) -> Tensor:
            part = replace(masks[rows], maps=maps)
            terms, part_similarities = snapshot._terms(images, part, weights, prompts)
            similarities.append({name: values.detach() for name, values in part_similarities.items()})
            losses = torch.stack([weight * terms[name] for name, weight in weights.items()])
            return losses * (len(part) / len(masks))

        losses: Tensor = sum_in_parts(share_of, masks.maps, size)
        snapshot._compiled = None  # a graph can't be differentiated twice, for which parts are computed again
        joined = {name: torch.cat([part[name] for part in similarities]) for name in similarities[0]}
        return dict(zip(weights, losses, strict=True)), joined

    def _need_prompts(self) -> BackgroundPrompts:
        if self._prompts is None:
            raise ValueError(
                "the regularizer has no prompts: pass prompts=BackgroundPrompts.for_clip(clip, class_names), to learn "
                "them, or BackgroundPrompts.load(path)"
            )
        return self._prompts


def sum_of(losses: Named) -> Tensor:
    """The sum of a loss dict: L_total, L_match or L_prompt."""
    return torch.stack(list(losses.values())).sum()


def _zeros(anchor: Tensor, weights: dict[str, float]) -> Named:
    # Zeros on the graph: backward() runs and, under DDP, every parameter still takes part.
    zero = anchor.sum() * 0.0
    return {name: zero.clone() for name in weights}
