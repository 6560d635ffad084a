"""Photographs in PASCAL VOC's layout, in memory, with the classes that enough of them show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from semples_plugin.data.cam_files import read_image_list
from semples_plugin.data.image_labels import load_image_labels
from semples_plugin.data.images import IGNORED, find_image, find_mask, read_image, read_mask, write_mask
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.text import shown


@dataclass
class Photographs:
    """N photographs, squeezed to squares of S x S pixels.

    Attributes:
        names: of the images.
        pixels: RGB, uint8 `[N, S, S, 3]`.
        labels: multi-hot `[N, K]`, float32.
        mean, std: statistics that `images` normalises with.
        features: of a network's fixed part, `[N, C, h, w]`, once `keep_features` has computed them.
    """

    names: list[str]
    pixels: NDArray[np.uint8]
    labels: Tensor
    mean: Sequence[float]
    std: Sequence[float]
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def images(self, index: Tensor, device: str) -> Tensor:
        """Normalised images `[n, 3, S, S]`, as the regularizer takes them."""
        mean, std = torch.tensor([self.mean, self.std], device=device).view(2, 1, 3, 1, 1)
        pixels = torch.from_numpy(self.pixels[index.numpy()]).to(device)
        return (pixels.permute(0, 3, 1, 2) / 255 - mean) / std

    def inputs(self, index: Tensor, device: str) -> Tensor:
        """What the trained part of the CAM network takes: kept features, or images where all of it is trained."""
        return self.images(index, device) if self.features is None else self.features[index].to(device)

    @torch.no_grad()
    def keep_features(self, network: nn.Module, device: str) -> None:
        """Computes the features of all photographs."""
        parts = tqdm(list(self.parts()), "features", unit="batch")
        self.features = torch.cat([network(self.images(part, device)).cpu() for part in parts])

    def parts(self, size: int = 32) -> Iterator[Tensor]:
        """Indices of all photographs, some at a time."""
        yield from torch.arange(len(self)).split(size)


@dataclass(frozen=True)
class Dataset:
    """Photographs to train on, others to judge by, and the classes of both.

    Attributes:
        class_names: K of them.
        train, val: photographs that show at least one of these.
        masks: folder of the masks of `val`, of these classes alone.
        image_folder: where the photographs are.
    """

    class_names: tuple[str, ...]
    train: Photographs
    val: Photographs
    masks: Path
    image_folder: Path


def read_dataset(
    root: Path,
    lists: tuple[str, str],
    class_names: Sequence[str],
    out: Path,
    *,
    labels: Path | None,
    masks: Path | None,
    min_images: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    """Reads lists, labels and photographs; writes `masks/` and `classes.txt` into `out`, for `semples eval`.

    Args:
        root: folder in VOC's layout.
        lists: names in ImageSets/Segmentation, or paths, of the images to train on and of those to judge by.
        class_names: of the columns of the labels and of the values of the masks, background excepted.
        out: folder to write into.
        labels, masks: where they aren't `root`'s cls_labels.npy and SegmentationClassAug or SegmentationClass.
        min_images: a class that fewer training images show is background, as pixels without any class are.
        size: of the photographs, in pixels.
        mean, std: statistics to normalise with.

    Raises:
        FileNotFoundError: for a list, an image or a mask that isn't there.
        ValueError: for labels that don't fit, or where no class is left.
    """
    folder, label_file = root / "JPEGImages", labels or root / "cls_labels.npy"
    label_of = load_image_labels(label_file)
    names = [_read_list(root, name) for name in lists]
    absent = [name for image_list in names for name in image_list if name not in label_of]
    if absent:
        raise ValueError(f"{label_file} has no labels of {len(absent)} images, {absent[0]} the first")
    if len(label_of[names[0][0]]) != len(class_names):
        raise ValueError(f"{label_file} has {len(label_of[names[0][0]])} columns, expected {len(class_names)} classes")
    counts = np.sum([label_of[name] for name in names[0]], 0)
    kept = np.flatnonzero(counts >= min_images)
    if not len(kept):
        raise ValueError(f"no class is in {min_images} images of {lists[0]}: give a lower --min-images")
    kept_names = tuple(class_names[k] for k in kept)
    print(f"{len(kept)} classes: " + ", ".join(f"{class_names[k]} {counts[k]:.0f}" for k in kept))
    photographs = []
    for title, image_list in zip(lists, names, strict=True):
        shown_in = [name for name in image_list if label_of[name][kept].any()]
        if not shown_in:
            raise ValueError(f"no image of {title} shows any of these classes")
        print(f"{title}: {len(shown_in)} of {len(image_list)} images show any of them")
        pixels = _read_pixels(folder, shown_in, size)
        label_rows = torch.from_numpy(np.stack([label_of[name][kept] for name in shown_in]))
        photographs.append(Photographs(shown_in, pixels, label_rows, mean, std))
    _write_masks(masks or _mask_folder(root), photographs[1].names, kept, out / "masks")
    with replacing(out / "classes.txt") as temporary:
        temporary.write_text("\n".join(kept_names) + "\n", encoding="utf-8")
    return Dataset(kept_names, *photographs, out / "masks", folder)


def _read_list(root: Path, name: str) -> list[str]:
    paths = [root / "ImageSets" / "Segmentation" / f"{name}.txt", Path(name)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"there is no list {shown(name)}: neither {paths[0]} nor {paths[1]} is a file")
    names = read_image_list(path)
    if not names:
        raise ValueError(f"{path} names no image")
    return names


def _read_pixels(folder: Path, names: Sequence[str], size: int) -> NDArray[np.uint8]:
    pixels = np.empty((len(names), size, size, 3), np.uint8)
    for row, name in zip(pixels, tqdm(names, "photographs", unit="image"), strict=True):
        row[:] = cv2.resize(read_image(find_image(folder, name)), (size, size), interpolation=cv2.INTER_AREA)
    return pixels


def _mask_folder(root: Path) -> Path:
    augmented, plain = root / "SegmentationClassAug", root / "SegmentationClass"
    return augmented if augmented.is_dir() else plain


def _write_masks(source: Path, names: Sequence[str], kept: NDArray[np.intp], target: Path) -> None:
    """Masks of the kept classes alone, numbered anew."""
    numbers = np.zeros(256, np.uint8)
    numbers[kept + 1], numbers[IGNORED] = np.arange(1, len(kept) + 1), IGNORED
    for name in tqdm(names, "masks", unit="image"):
        write_mask(target / f"{name}.png", numbers[read_mask(find_mask(source, name))])
