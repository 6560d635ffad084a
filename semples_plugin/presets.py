"""Class names, weights and schedules of the paper (`voc`, `coco`) and of its authors' release (`release-...`)."""

from __future__ import annotations

import difflib
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
from semples_plugin.prompts import RELEASE_SUFFIX, BackgroundPrompts
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD, LossWeights, SemPLeSRegularizer
from semples_plugin.utils.checks import check_known, check_names, class_positions

STAGES = ("match", "prompts", "refine")
Statistics = tuple[Sequence[float] | None, Sequence[float] | None]
IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)
_KINDS: dict[str, type] = {"str": str, "float": Real, "int": Integral, "bool": bool}


@dataclass(frozen=True)
class Preset:
    """Everything that a data set's row of the paper, or of the release, fixes, and what is built from it.

    A host gets its regularizer, its prompts, the eps of its masks and the schedule of stage (b) from the methods below,
    and nowhere else; `with_` replaces single values.

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
        prompt_std: of the normal start. The paper says "randomly initialized" alone; 0.02 is what CLIP's own word
            vectors, and the context vectors of CoOp, are initialised with.
        suffix_ids: see `BackgroundPrompts`.
        text_term: see `functional.prompt_loss`.
        renormalize: whether host images are brought to CLIP's statistics (the release feeds them as they are).
        epochs, batch_size, lr: of stages (a) and (c); AdamW, cosine to 0. Where a host trains by its own loop they are
            the host's to set, and `departures` tells how far they are from these.
        prompt_epochs, prompt_batch_size, prompt_lr: of stage (b).
        weight_decay: AdamW's, in all three stages.
        mask_eps, prompt_mask_eps: eps of the masks' normalisation, whether by their maximum or by min and max, in (a)
            and (c), and in (b); in the units of CAMs that reach 1. Sigmoid CAMs take none.
        align_corners: of the masks' upsampling.
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
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            kind, value = _KINDS.get(str(each.type)), getattr(self, each.name)
            if kind and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
                raise TypeError(f"preset {self.name}, {each.name}: expected {each.type}, got {value!r:.80}")
        if not isinstance(self.weights, LossWeights):
            raise TypeError(f"preset {self.name}, weights: expected LossWeights, got {type(self.weights).__name__}")
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
        plain = {  # a config's lists; and a model that keeps a preset can be copied
            "class_names": check_names(self.class_names),
            "clip": tuple(self.clip),
            "suffix_ids": None if self.suffix_ids is None else tuple(self.suffix_ids),
            "aliases": dict(self.aliases),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def with_(self, **values: Any) -> Preset:
        """The preset with other values of some fields; `weights` may be a mapping of those to replace.

        Raises:
            ValueError: for a name that is no field; near ones are named.
            TypeError: for a value of another type.
        """
        check_known(f"preset {self.name}", values, _FIELDS)
        if isinstance(values.get("weights"), Mapping):
            check_known("weights", values["weights"], [each.name for each in fields(LossWeights)])
            values["weights"] = replace(self.weights, **values["weights"])
        if "class_names" in values:
            names = check_names(values["class_names"])
            values.setdefault("aliases", {a: b for a, b in self.aliases.items() if b in names and a not in names})
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
            statistics: mean and standard deviation that the host normalised its images with, on the scale of [0, 1]
                pixels; (None, None): they are CLIP-normalised already.
            replaced: fields of the preset, as in `with_`, and further options of `SemPLeSRegularizer`.
        """
        check_known(f"preset {self.name}", replaced, [*_FIELDS, *_OWN])
        preset = self.with_(**{name: value for name, value in replaced.items() if name in _FIELDS})
        own = {name: value for name, value in replaced.items() if name in _OWN}
        given = [name for name in ("input_mean", "input_std") if name in own]
        if len(given) == 1 or (given and statistics is not IMAGENET):
            raise ValueError("statistics, or input_mean and input_std both: expected one way, got a mixture")
        regularizer = SemPLeSRegularizer(clip, **{**preset.regularizer_options(statistics), **own})
        regularizer.preset = preset
        return regularizer

    def new_prompts(self, width: int, seed: int = 0) -> BackgroundPrompts:
        """Prompts to learn, as many and as long as the preset says, for a CLIP of text width `width`."""
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
        """eps of the masks' normalisation in stage (a) "match", (b) "prompts" or (c) "refine"."""
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
        }

    def optimizer_options(self) -> dict[str, Any]:
        """Keyword arguments for `torch.optim.AdamW(parameters, **options)` in stages (a) and (c)."""
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def departures(self, **values: Any) -> str:
        """Which of a host's values of some fields aren't the preset's: "lr 5e-05 (voc: 0.0005), ..."; "" for none."""
        found = [(name, value, getattr(self, name)) for name, value in values.items()]
        differing = [
            f"{name} {_short(value)} ({self.name}: {_short(own)})"
            for name, value, own in found
            if not (math.isclose(value, own, rel_tol=1e-6) if isinstance(own, float) else value == own)
        ]
        return ", ".join(differing)

    def class_index(self, name: str) -> int:
        """0-based index of a class by its name, in whatever spelling, or by an alias."""
        place = class_positions(self.class_names)
        k = place(name)
        if k is None and (alias := self.aliases.get(name.strip().lower())):
            k = place(alias)
        if k is None:
            near = difflib.get_close_matches(name.strip().lower(), [*self.class_names, *self.aliases], n=3)
            raise ValueError(
                f"{self.name} has no class {name!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
            )
        return k


_FIELDS = [each.name for each in fields(Preset)]
_OWN = [  # options of the regularizer that are no fields
    name for name in inspect.signature(SemPLeSRegularizer).parameters if name not in (*_FIELDS, "clip")
]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def load_preset(name: str) -> Preset:
    """The preset of that name: "voc", "coco", "release-voc" or "release-coco"."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


_RELEASE: dict[str, Any] = {
    "weight_decay": 0.03,
    "prompt_batch_size": 128,
    "prompt_init": "uniform",
    "suffix_ids": RELEASE_SUFFIX,
    "text_term": "release",
    "renormalize": False,
    "prompt_mask_eps": 1e-4,
    "align_corners": True,
}
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "voc",
            VOC,
            LossWeights(background=2.4, text=0.02, refine=0.05),
            "SemPLeS (WACV 2025), section 4.2; weight decay is AdamW's default, eps and template are the release's",
            lr=5e-4,
            prompt_lr=5e-4,
            aliases=VOC_ALIASES,
        ),
        Preset(
            "coco",
            COCO,
            LossWeights(background=0.75, text=0.01, refine=0.2),
            "SemPLeS (WACV 2025), section 4.2; weight decay is AdamW's default, eps and template are the release's",
            lr=5e-6,
            prompt_lr=5e-6,
            aliases=COCO_ALIASES,
        ),
        Preset(
            "release-voc",
            RELEASE_VOC,
            LossWeights(background=2.4, text=0.02, refine=0.05),
            "the authors' public code, as described in its scripts: lr = base lr x batch x GPUs / 512",
            lr=5.12e-4,
            prompt_lr=0.1,
            aliases=RELEASE_VOC_ALIASES,
            **_RELEASE,
        ),
        Preset(
            "release-coco",
            RELEASE_COCO,
            LossWeights(background=0.75, text=0.01, refine=0.2),
            "the authors' public code, as described in its scripts: lr = base lr x batch x GPUs / 512",
            lr=5.12e-6,
            prompt_lr=0.01,
            batch_size=32,
            aliases=COCO_ALIASES,
            **_RELEASE,
        ),
    )
}
