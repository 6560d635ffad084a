"""Class names, weights and schedules of the paper (`voc`, `coco`) and of its authors' release (`release-...`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from semples_plugin.class_names import (
    COCO,
    COCO_ALIASES,
    RELEASE_COCO,
    RELEASE_VOC,
    RELEASE_VOC_ALIASES,
    VOC,
    VOC_ALIASES,
)
from semples_plugin.clip import PROMPT_TEMPLATE
from semples_plugin.prompts import RELEASE_SUFFIX, BackgroundPrompts
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD, LossWeights


@dataclass(frozen=True)
class Preset:
    """Everything that a data set's row of the paper, or of the release, fixes.

    Attributes:
        name: of the preset.
        class_names: K names, in label order, without background.
        aliases: other spellings, lower case, to the name used here ("tvmonitor": "tv monitor").
        weights: of the loss terms.
        source: where the numbers come from.
        clip: open_clip name and tag.
        prompt_length: L.
        prompt_init: start of the prompts, see `BackgroundPrompts`.
        suffix_ids: see `BackgroundPrompts`.
        text_term: see `functional.prompt_loss`.
        renormalize: whether host images are brought to CLIP's statistics (the release feeds them as they are).
        epochs, batch_size, lr, weight_decay: of stages (a) and (c); AdamW, cosine to 0.
        prompt_epochs, prompt_batch_size, prompt_lr: of stage (b).
        mask_eps, prompt_mask_eps: eps of the min-max normalisation in (a) and (c), and in (b).
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
    suffix_ids: tuple[int, ...] | None = None
    text_term: str = "paper"
    renormalize: bool = True
    mask_eps: float = 0.1
    prompt_mask_eps: float = 0.1
    align_corners: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def new_prompts(self, width: int, seed: int = 0) -> BackgroundPrompts:
        """Prompts to learn, as many and as long as the preset says, for a CLIP of text width `width`."""
        return BackgroundPrompts(
            len(self.class_names),
            self.prompt_length,
            width,
            init=self.prompt_init,
            seed=seed,
            template=PROMPT_TEMPLATE,
            suffix_ids=self.suffix_ids,
        )

    def regularizer_options(self) -> dict[str, Any]:
        """Keyword arguments for `SemPLeSRegularizer(clip, **options)`, for a host with ImageNet statistics."""
        return {
            "class_names": self.class_names,
            "weights": self.weights,
            "template": self.template,
            "text_term": self.text_term,
            "input_mean": IMAGENET_MEAN if self.renormalize else None,
            "input_std": IMAGENET_STD if self.renormalize else None,
        }

    def learning_options(self) -> dict[str, Any]:
        """Keyword arguments for `learn_background_prompts(regularizer, batches, **options)`."""
        return {
            "epochs": self.prompt_epochs,
            "lr": self.prompt_lr,
            "batch_size": self.prompt_batch_size,
            "weight_decay": self.weight_decay,
        }

    def class_index(self, name: str) -> int:
        """0-based index of a class by its name or an alias, whatever its case."""
        lowered = name.strip().lower()
        lowered = self.aliases.get(lowered, lowered)
        if lowered not in self.class_names:
            near = difflib.get_close_matches(lowered, [*self.class_names, *self.aliases], n=3)
            raise ValueError(
                f"{self.name} has no class {name!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
            )
        return self.class_names.index(lowered)


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
