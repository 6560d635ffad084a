"""Class names, weights and schedules of the paper (`voc`, `coco`) and of its authors' release (`release-...`)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from semples_plugin.clip.frozen import PROMPT_TEMPLATE, FrozenClip
from semples_plugin.data.class_names import (
    COCO,
    COCO_ALIASES,
    RELEASE_COCO,
    RELEASE_VOC,
    RELEASE_VOC_ALIASES,
    VOC,
    VOC_ALIASES,
)
from semples_plugin.loss_weights import LossWeights
from semples_plugin.prompts import RELEASE_SUFFIX, BackgroundPrompts
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD, SemPLeSRegularizer
from semples_plugin.utils.checks import check_known, check_names, check_number, class_positions, suggestion
from semples_plugin.utils.stages import STAGES

Statistics = tuple[Sequence[float] | None, Sequence[float] | None]
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)
_FIELD_TYPES: dict[str, type] = {"str": str, "float": Real, "int": Integral, "bool": bool}
"""What a field of that annotation takes; the others have checks of their own."""


@dataclass(frozen=True)
class Preset:
    """Everything that a data set's row of the paper, or of the release, fixes, and what is built from it.

    Regularizer, prompts, the eps of the masks and the schedule of stage (b) come from the methods below;
    `with_` replaces single values.

    Attributes:
        name: of the preset.
        class_names: K names, in label order, without background.
        aliases: other spellings, lower case, to the name used here ("tvmonitor": "tv monitor").
        weights: of the loss terms.
        source: where the numbers come from.
        clip: open_clip name and tag.
        template: of the label texts.
        prompt_length: L.
        prompt_init: start of the prompts, see `BackgroundPrompts`.
        prompt_std: of the normal start. The paper says "randomly initialized" alone; 0.02 is what CLIP's own
            word vectors, and the context vectors of CoOp, are initialised with.
        suffix_ids: see `BackgroundPrompts`.
        text_term: see `functional.prompt_loss`.
        renormalize: whether host images are brought to CLIP's statistics (the release leaves them).
        epochs, batch_size, lr: of stages (a) and (c); AdamW, cosine to 0. Where a host trains by its own loop
            they are the host's to set, and `departures` tells how far they are from these.
        prompt_epochs, prompt_batch_size, prompt_lr: of stage (b).
        weight_decay: AdamW's, in all three stages.
        mask_eps, prompt_mask_eps: eps of the masks' normalisation, whether by their maximum or by min and
            max, in (a) and (c), and in (b); in the units of CAMs that reach 1. Sigmoid CAMs take none.
        align_corners: of the masks' upsampling.
        refine_share: of matching's gradient, which sets lambda in place of `weights.refine`, see
            `SemPLeSRegularizer`; None in all presets.
        prompt_shared, prompt_mask_tau: one prompt for all classes, and harder masks, in (b), see
            `learn_background_prompts`; False and 1 in all presets.

    >>> preset = load_preset("voc").with_(class_names=["train", "boat"], prompt_length=4)
    >>> preset
    Preset("voc": 2 classes; weights: foreground 1, background 2.4, refine 0.05, image 1, text 0.02,
    prompt_foreground 0; ViT-B-32-quickgelu (openai); prompts of length 4; 60 epochs with lr 0.0005, of prompts 60
    with 0.0005)
    >>> regularizer = preset.build_regularizer(preset.load_clip("demo"))
    >>> regularizer.prompts = preset.new_prompts(regularizer.clip.text_width)
    >>> regularizer.prompts.vectors.shape
    torch.Size([2, 4, 64])
    """

    name: str
    class_names: tuple[str, ...]
    weights: LossWeights
    source: str
    lr: float
    prompt_lr: float
    batch_size: int = 64
    prompt_batch_size: int = 64
    epochs: int = 60
    prompt_epochs: int = 60
    weight_decay: float = 0.01
    clip: tuple[str, str] = ("ViT-B-32-quickgelu", "openai")
    template: str = "a photo of {}."
    prompt_length: int = 30
    prompt_init: str = "normal"
    prompt_std: float = 0.02
    suffix_ids: tuple[int, ...] | None = None
    text_term: str = "paper"
    renormalize: bool = True
    mask_eps: float = 0.1
    prompt_mask_eps: float = 0.1
    align_corners: bool = False
    refine_share: float | None = None
    prompt_shared: bool = False
    prompt_mask_tau: float = 1.0
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        plain = {  # a config's lists; and a model that keeps a preset can be copied
            "class_names": check_names(self.class_names),
            "clip": tuple(self.clip),
            "suffix_ids": None if self.suffix_ids is None else tuple(self.suffix_ids),
            "aliases": dict(self.aliases),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        """Raises a `TypeError` for a field of another type than its annotation says."""
        for field_ in fields(self):
            expected, value = _FIELD_TYPES.get(str(field_.type)), getattr(self, field_.name)
            if expected and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
                raise TypeError(f"preset {self.name}, {field_.name}: expected {field_.type}, got {value!r:.80}")
        if not isinstance(self.weights, LossWeights):
            raise TypeError(f"preset {self.name}, weights: expected LossWeights, got {type(self.weights).__name__}")
        if self.refine_share is not None:
            check_number(f"preset {self.name}, refine_share", self.refine_share, 0, above=True)
        pair = self.clip if isinstance(self.clip, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError(
                f"preset {self.name}, clip: expected open_clip's name and tag, such as "
                f'("ViT-B-32-quickgelu", "openai"), got {self.clip!r:.80}'
            )
        if self.suffix_ids is not None and not isinstance(self.suffix_ids, Iterable):
            raise TypeError(f"preset {self.name}, suffix_ids: expected token ids, got {self.suffix_ids!r:.80}")
        if not isinstance(self.aliases, Mapping):
            raise TypeError(f"preset {self.name}, aliases: expected a mapping of names, got {self.aliases!r:.80}")

    def __repr__(self) -> str:
        name, tag = self.clip
        return (
            f'Preset("{self.name}": {len(self.class_names)} classes; weights: {self.weights}; {name} ({tag}); '
            f"prompts of length {self.prompt_length}; {self.epochs} epochs with lr {self.lr:g}, "
            f"of prompts {self.prompt_epochs} with {self.prompt_lr:g})"
        )

    def with_(self, **values: Any) -> Preset:
        """The preset with other values of some fields; `weights` may be a mapping of those to replace.

        Raises:
            ValueError: for a name that is no field; near ones are named.
            TypeError: for a value of another type.

        >>> load_preset("coco").with_(weights={"refine": 0.1}).weights
        LossWeights(foreground=1.0, background=0.75, refine=0.1, image=1.0, text=0.01, prompt_foreground=0.0)
        """
        check_known(f"preset {self.name}", values, _FIELDS)
        if isinstance(values.get("weights"), Mapping):
            check_known("weights", values["weights"], [field_.name for field_ in fields(LossWeights)])
            values["weights"] = replace(self.weights, **values["weights"])
        if "class_names" in values:
            names = check_names(values["class_names"])
            aliases = {alias: name for alias, name in self.aliases.items() if name in names and alias not in names}
            values.setdefault("aliases", aliases)
        return replace(self, **values)

    def load_clip(self, name: str | None = None, pretrained: str | None = None, **options: Any) -> FrozenClip:
        """`FrozenClip.load` of the preset's model, or of another; the preset's tag belongs to its model alone."""
        if name is None:
            name, pretrained = self.clip[0], pretrained or self.clip[1]
        return FrozenClip.load(name, pretrained, **options)

    def build_regularizer(
        self, clip: FrozenClip, *, statistics: Statistics = IMAGENET, **replaced: Any
    ) -> SemPLeSRegularizer:
        """The regularizer of this preset, which keeps the preset as `regularizer.preset`.

        Args:
            clip: see `load_clip`.
            statistics: mean and standard deviation that the host normalised its images with, on the scale of
                [0, 1] pixels; (None, None): they are CLIP-normalised already.
            replaced: fields of the preset, as in `with_`, and further options of `SemPLeSRegularizer`.

        Raises:
            ValueError: for a name that is neither; near ones are named.
            TypeError: for a value of another type.

        >>> preset = load_preset("voc")
        >>> regularizer = preset.build_regularizer(preset.load_clip("demo"), max_pairs=16, weights={"refine": 0.1})
        >>> regularizer.max_pairs, regularizer.preset.weights.refine
        (16, 0.1)
        """
        check_known(f"preset {self.name}", replaced, [*_FIELDS, *_REGULARIZER_OPTIONS])
        preset = self.with_(**{name: value for name, value in replaced.items() if name in _FIELDS})
        options = {name: value for name, value in replaced.items() if name in _REGULARIZER_OPTIONS}
        in_options = [name for name in ("input_mean", "input_std") if name in options]
        if len(in_options) == 1 or (in_options and statistics is not IMAGENET):
            raise ValueError("statistics, or input_mean and input_std both: expected one way, got a mixture")
        regularizer = SemPLeSRegularizer(clip, **{**preset.regularizer_options(statistics), **options})
        regularizer.preset = preset
        return regularizer

    def new_prompts(self, width: int, seed: int = 0) -> BackgroundPrompts:
        """Prompts to learn, as many and as long as the preset says, for a CLIP of text width `width`.

        >>> load_preset("release-voc").new_prompts(512)
        BackgroundPrompts(20 classes, 30 vectors of 512, not learned, for no CLIP yet)
        """
        return BackgroundPrompts(
            len(self.class_names),
            self.prompt_length,
            width,
            init=self.prompt_init,
            std=self.prompt_std,
            seed=seed,
            template=PROMPT_TEMPLATE,
            suffix_ids=self.suffix_ids,
        )

    def stage_eps(self, stage: str) -> float:
        """eps of the masks' normalisation in stage (a) "match", (b) "prompts" or (c) "refine".

        >>> load_preset("release-voc").stage_eps("prompts")
        0.0001
        """
        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
        return self.prompt_mask_eps if stage == "prompts" else self.mask_eps

    def regularizer_options(self, statistics: Statistics = IMAGENET) -> dict[str, Any]:
        """Keyword arguments for `SemPLeSRegularizer(clip, **options)`; see `build_regularizer` for the statistics."""
        mean, std = statistics if self.renormalize else (None, None)
        return {
            "class_names": self.class_names,
            "weights": self.weights,
            "template": self.template,
            "text_term": self.text_term,
            "align_corners": self.align_corners,
            "refine_share": self.refine_share,
            "input_mean": mean,
            "input_std": std,
        }

    def learning_options(self) -> dict[str, Any]:
        """Keyword arguments for `learn_background_prompts(regularizer, batches, **options)`."""
        return {
            "epochs": self.prompt_epochs,
            "lr": self.prompt_lr,
            "batch_size": self.prompt_batch_size,
            "weight_decay": self.weight_decay,
            "shared": self.prompt_shared,
            "mask_tau": self.prompt_mask_tau,
        }

    def optimizer_options(self) -> dict[str, Any]:
        """Keyword arguments for `torch.optim.AdamW(parameters, **options)` in stages (a) and (c)."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def departures(self, **values: Any) -> str:
        """Which of a host's values of some fields aren't the preset's, in a line; "" where all of them are.

        >>> load_preset("voc").departures(lr=5e-5, batch_size=64)
        'lr 5e-05 (voc: 0.0005)'
        """
        differing = []
        for name, value in values.items():
            expected = getattr(self, name)
            same = math.isclose(value, expected, rel_tol=1e-6) if isinstance(expected, float) else value == expected
            if not same:
                differing.append(f"{name} {_short(value)} ({self.name}: {_short(expected)})")
        return ", ".join(differing)

    def class_index(self, name: str) -> int:
        """0-based index of a class by its name, in whatever spelling, or by an alias.

        Raises:
            ValueError: for another name; near ones are named.

        >>> voc = load_preset("voc")
        >>> voc.class_index("TV_Monitor"), voc.class_index("airplane")
        (19, 0)
        """
        position_of = class_positions(self.class_names)
        plain = name.strip().lower()
        index = position_of(name)
        if index is None and plain in self.aliases:
            index = position_of(self.aliases[plain])
        if index is None:
            known = [*self.class_names, *self.aliases]
            raise ValueError(f"{self.name} has no class {name!r}{suggestion(plain, known)}")
        return index


_FIELDS = [field_.name for field_ in fields(Preset)]
_REGULARIZER_OPTIONS = [  # that are no fields
    name for name in inspect.signature(SemPLeSRegularizer).parameters if name not in (*_FIELDS, "clip")
]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def load_preset(name: str) -> Preset:
    """The preset of that name: "voc", "coco", "release-voc" or "release-coco".

    Raises:
        ValueError: for another name.

    >>> load_preset("voc").class_names[:3]
    ('aeroplane', 'bicycle', 'bird')
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


_PAPER = "SemPLeS (WACV 2025), section 4.2; weight decay is AdamW's default, eps and template are the release's"
_VOC_WEIGHTS = LossWeights(background=2.4, text=0.02, refine=0.05)
_COCO_WEIGHTS = LossWeights(background=0.75, text=0.01, refine=0.2)
_VOC = Preset("voc", VOC, _VOC_WEIGHTS, _PAPER, lr=5e-4, prompt_lr=5e-4, aliases=VOC_ALIASES)
_COCO = Preset("coco", COCO, _COCO_WEIGHTS, _PAPER, lr=5e-6, prompt_lr=5e-6, aliases=COCO_ALIASES)
_RELEASE: dict[str, Any] = {
    "source": "the authors' public code, as described in its scripts: lr = base lr x batch x GPUs / 512",
    "weight_decay": 0.03,
    "prompt_batch_size": 128,
    "prompt_init": "uniform",
    "suffix_ids": RELEASE_SUFFIX,
    "text_term": "release",
    "renormalize": False,
    "prompt_mask_eps": 1e-4,
    "align_corners": True,
}
_RELEASE_VOC = replace(
    _VOC,
    name="release-voc",
    class_names=RELEASE_VOC,
    aliases=RELEASE_VOC_ALIASES,
    lr=5.12e-4,
    prompt_lr=0.1,
    **_RELEASE,
)
_RELEASE_COCO = replace(
    _COCO,
    name="release-coco",
    class_names=RELEASE_COCO,
    lr=5.12e-6,
    prompt_lr=0.01,
    batch_size=32,
    **_RELEASE,
)
PRESETS = {preset.name: preset for preset in (_VOC, _COCO, _RELEASE_VOC, _RELEASE_COCO)}
