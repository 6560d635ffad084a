"""The CAM network of the demo: small enough that its three stages take seconds on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD


class CamNet(nn.Module):
    """A fully convolutional classifier whose last layer's maps are the raw CAMs.

    The logits of the multi-label baseline are the maps' averages, `cams.mean((2, 3))`.

    Args:
        num_classes: number of object classes K.
        width: channels of the first block; the others have twice as many.
    """

    def __init__(self, num_classes: int, width: int = 24) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(3, width),
            nn.MaxPool2d(2),
            _block(width, 2 * width),
            nn.MaxPool2d(2),
            _block(2 * width, 2 * width),
            _block(2 * width, 2 * width),
        )
        self.classifier = nn.Conv2d(2 * width, num_classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Raw, signed class maps [N, K, H/4, W/4] of images [N, 3, H, W] in ImageNet's statistics."""
        maps: Tensor = self.classifier(self.features(images))
        return maps


def normalize_images(
    images: np.ndarray,
    device: str | torch.device = "cpu",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """uint8 RGB `[N, H, W, 3]` to normalised floats `[N, 3, H, W]`."""
    shift, scale = torch.tensor([mean, std], device=device).view(2, 1, 3, 1, 1)
    return (torch.from_numpy(images).to(device).permute(0, 3, 1, 2) / 255 - shift) / scale


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
