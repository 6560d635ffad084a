"""Class names, weights and schedules of the paper (`voc`, `coco`) and of its authors' release (`release-...`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

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


_VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
_COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
# COCO's category ids run from 1 to 90; these ten were never annotated, and the release's label columns keep them.
_COCO_UNUSED = {
    12: "street sign", 26: "hat", 29: "shoe", 30: "eye glasses", 45: "plate",
    66: "mirror", 68: "window", 69: "desk", 71: "door", 83: "blender",
}  # fmt: skip


def _coco_with_unused() -> tuple[str, ...]:
    used = iter(_COCO)
    return tuple(_COCO_UNUSED.get(identifier) or next(used) for identifier in range(1, 91))


_VOC_ALIASES = MappingProxyType(
    {
        "airplane": "aeroplane", "diningtable": "dining table", "motorcycle": "motorbike", "player": "person",
        "pottedplant": "potted plant", "couch": "sofa", "tvmonitor": "tv monitor", "tv/monitor": "tv monitor",
        "tv": "tv monitor",
    }
)  # fmt: skip
_COCO_ALIASES = MappingProxyType(
    {
        "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv", "tv monitor": "tv",
        "pottedplant": "potted plant", "diningtable": "dining table", "hair dryer": "hair drier",
        "hairdrier": "hair drier", "television": "tv",
    }
)  # fmt: skip
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
            _VOC,
            LossWeights(background=2.4, text=0.02, refine=0.05),
            "SemPLeS (WACV 2025), section 4.2; weight decay is AdamW's default, eps and template are the release's",
            lr=5e-4,
            prompt_lr=5e-4,
            aliases=_VOC_ALIASES,
        ),
        Preset(
            "coco",
            _COCO,
            LossWeights(background=0.75, text=0.01, refine=0.2),
            "SemPLeS (WACV 2025), section 4.2; weight decay is AdamW's default, eps and template are the release's",
            lr=5e-6,
            prompt_lr=5e-6,
            aliases=_COCO_ALIASES,
        ),
        Preset(
            "release-voc",
            tuple("player" if name == "person" else name for name in _VOC),
            LossWeights(background=2.4, text=0.02, refine=0.05),
            "the authors' public code, as described in its scripts: lr = base lr x batch x GPUs / 512",
            lr=5.12e-4,
            prompt_lr=0.1,
            aliases=MappingProxyType({**{k: v for k, v in _VOC_ALIASES.items() if k != "player"}, "person": "player"}),
            **_RELEASE,
        ),
        Preset(
            "release-coco",
            _coco_with_unused(),
            LossWeights(background=0.75, text=0.01, refine=0.2),
            "the authors' public code, as described in its scripts: lr = base lr x batch x GPUs / 512",
            lr=5.12e-6,
            prompt_lr=0.01,
            batch_size=32,
            aliases=_COCO_ALIASES,
            **_RELEASE,
        ),
    )
}
