"""What learned prompts mean: where CLIP sees them in an image, and which words are near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.masks import ClassMasks, masked_views
from semples_plugin.prompt_quality import ClassQuality
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.utils.checks import class_positions
from semples_plugin.viz.overlays import Picture, overlay_cam

VOCABULARY = (
    "sky", "clouds", "sunset", "sea", "ocean", "lake", "river", "waves", "beach", "sand", "desert", "snow", "ice",
    "grass", "field", "meadow", "pasture", "hay", "farm", "garden", "flowers", "leaves", "bush", "tree", "branch",
    "forest", "mountain", "hill", "rock", "cliff", "road", "street", "asphalt", "highway", "sidewalk", "crosswalk",
    "parking lot", "railroad", "rails", "train station", "platform", "bridge", "tunnel", "airport", "runway",
    "harbor", "dock", "pier", "building", "house", "skyscraper", "roof", "wall", "brick", "fence", "door", "window",
    "stairs", "room", "kitchen", "living room", "bedroom", "bathroom", "office", "shop", "restaurant", "floor",
    "wooden floor", "carpet", "tiles", "ceiling", "curtain", "lamp", "shelf", "bookcase", "desk", "table",
    "tablecloth", "plate", "food", "bed", "pillow", "blanket", "cushion", "rug", "computer", "keyboard", "screen",
    "crowd", "hands", "shadow", "darkness", "water", "mud", "stones", "dirt", "playground", "stadium", "saddle",
    "helmet", "cage", "bird feeder", "wire", "pole", "sign", "traffic light", "text", "logo", "blur",
)  # fmt: skip
"""Words of scenes and stuff to look among, where no vocabulary is given."""


@dataclass(frozen=True)
class NearWords:
    """A class's learned prompt in words.

    Attributes:
        class_name: of the prompt.
        words: the nearest, with their cosines, descending.
        label: cosine of the prompt and its class's label text.
        quality: what the prompt was near to when it had been learned; None where the file doesn't say.
        shared: whether all classes have this very prompt.
    """

    class_name: str
    words: tuple[tuple[str, float], ...]
    label: float
    quality: ClassQuality | None
    shared: bool = False

    @property
    def unseen(self) -> bool:
        """Whether no image showed the class, so that its prompt says nothing."""
        return self.quality is not None and not self.quality.seen

    @property
    def columns(self) -> tuple[str, str, str, str]:
        """The figures under `tables.COLUMNS`, as text."""
        if self.quality is None:
            return f"{self.label:.2f}", "-", "-", "-"
        after = self.quality.after
        values = (after.background, after.foreground, after.separation)
        background, foreground, separation = ("-" if value is None else f"{value:.2f}" for value in values)
        return f"{self.label:.2f}", background, foreground, separation


@torch.no_grad()
def nearest_words(
    prompts: BackgroundPrompts,
    clip: FrozenClip,
    words: Sequence[str] = VOCABULARY,
    count: int = 5,
    template: str = "a photo of {}.",
) -> list[NearWords]:
    """The nearest words of each class's prompt.

    Args:
        prompts: that know their classes.
        clip: the CLIP that they were learned with.
        words: to look among.
        count: words for each class at most.
        template: for class names and words.

    Raises:
        ValueError: where the prompts don't say their classes, belong to another CLIP, or there are no words.
    """
    if prompts.class_names is None:
        raise ValueError(
            "the prompts don't say their classes, as the release's btp.pth doesn't: call check_belongs_to first"
        )
    if not words:
        raise ValueError("the vocabulary has no words")
    names = prompts.class_names
    prompts.check_belongs_to(clip, names)
    features = prompts.to(clip.device).encode(clip)
    labels = clip.encode_texts([template.format(name) for name in names])
    cosines = features @ clip.encode_texts([template.format(word) for word in words]).T
    highest, positions = cosines.topk(min(count, len(words)))
    nearest = [
        tuple((words[i], float(cosine)) for i, cosine in zip(row.tolist(), values, strict=True))
        for row, values in zip(positions, highest, strict=True)
    ]
    quality = prompts.quality or [None] * len(names)
    shared = len(names) > 1 and bool((prompts.vectors == prompts.vectors[:1]).all())
    return [
        NearWords(name, nearest[k], float(features[k] @ labels[k]), quality[k], shared) for k, name in enumerate(names)
    ]


@torch.no_grad()
def where_clip_sees(
    clip: FrozenClip, texts: Tensor, image: NDArray[np.uint8], grid: int = 10, width: float = 0.12
) -> NDArray[np.float32]:
    """How similar each place of an image is to texts: cosines `[Q, grid, grid]`.

    CLIP sees the image through a soft round window at each place, everything else being its mean colour: the
    view M X of training (the paper's Figure 5 takes patches instead).

    Args:
        clip: the CLIP.
        texts: features `[Q, D]` of prompts or words, unit length.
        image: RGB `[H, W, 3]`; squeezed to CLIP's square, as in training.
        grid: places per side.
        width: standard deviation of a window, as a fraction of the side.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    pixels = torch.nn.functional.interpolate(pixels, clip.image_size, mode="bilinear", antialias=True)
    mean, std = torch.tensor([clip.image_mean, clip.image_std]).view(2, 1, 3, 1, 1)
    pixels = ((pixels - mean) / std).to(clip.device)
    cosines = []
    for windows in _round_windows(grid, clip.image_size, width).to(pixels).split(32):
        first = torch.zeros(len(windows), dtype=torch.int64, device=pixels.device)  # the only image
        views = masked_views(pixels, ClassMasks(windows, first, first), torch.zeros(3))[: len(windows)]
        cosines.append(clip.encode_images(views) @ texts.T)
    maps: NDArray[np.float32] = torch.cat(cosines).T.reshape(-1, grid, grid).float().cpu().numpy()
    return maps


def _round_windows(grid: int, size: tuple[int, int], width: float) -> Tensor:
    """A Gaussian around each place of a grid, `[grid * grid, H, W]` in [0, 1]; `width` is a fraction of the side."""
    places = (torch.arange(grid) + 0.5) / grid
    rows, columns = (((torch.arange(side) + 0.5) / side)[None] - places[:, None] for side in size)
    squares = rows[:, None, :, None] ** 2 + columns[None, :, None, :] ** 2
    return torch.exp(-squares / (2 * width**2)).flatten(0, 1)


@torch.no_grad()
def draw_prompt(
    prompts: BackgroundPrompts,
    clip: FrozenClip,
    class_name: str,
    image: Picture,
    beside: Sequence[str] = (),
    template: str = "a photo of {}.",
) -> list[tuple[str, Picture]]:
    """An image, and where CLIP sees a class's learned prompt, its label and hand-written texts; with captions.

    Each map is stretched to its own range; compare places within a map, not colours between maps.

    Args:
        prompts: that know their classes.
        clip: the CLIP that they were learned with.
        class_name: of the prompt.
        image: RGB `[H, W, 3]`.
        beside: hand-written texts.
        template: for the class name and these texts.

    Raises:
        ValueError: where the prompts have no such class.
    """
    names = prompts.class_names or ()
    position = class_positions(names)(class_name)
    if position is None:
        raise ValueError(f"the prompts have no class {class_name!r}; they have {', '.join(names):.300}")
    texts = (names[position], *beside)
    prompt = prompts.encode(clip, torch.tensor([position], device=clip.device))
    features = torch.cat([prompt, clip.encode_texts([template.format(text) for text in texts])])
    maps = stretched(where_clip_sees(clip, features, image))
    captions = ["learned prompt", *(f'"{text}"' for text in texts)]
    pictures = [overlay_cam(image, heat) for heat in maps]
    return [("image", image), *zip(captions, pictures, strict=True)]


def stretched(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps `[Q, h, w]` of cosines, each stretched from its own range to [0, 1]."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)
