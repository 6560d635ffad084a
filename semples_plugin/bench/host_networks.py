"""The networks of three hosts in their usual size, with random weights: what a step costs doesn't depend on them.

They are written from the hosts' descriptions and shapes, and carry no line of theirs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 16  # of all three: CAMs have a sixteenth of the crop's side


class ResNetCams(nn.Module):
    """A ResNet-50 at stride 16 with a 1 x 1 classifier: CAMs `[N, K, H / 16, W / 16]`, before any activation.

    Its first convolution and batch norm are not trained, and its batch norms are in training mode, as in CLIMS.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        from torchvision.models import resnet50

        network = resnet50(weights=None)
        first = network.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
        stem = [network.conv1, network.bn1]
        for module in stem:
            module.requires_grad_(False)
        self.features = nn.Sequential(
            *stem, network.relu, network.maxpool, network.layer1, network.layer2, network.layer3, network.layer4
        )
        self.classifier = nn.Conv2d(2048, classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """CAMs of images `[N, 3, H, W]`."""
        cams: Tensor = self.classifier(self.features(images))
        return cams


class _Block(nn.Module):
    """A vision transformer's block that also returns its attention `[N, A, T, T]` and features `[N, A, T, C / A]`."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # In full, as the maps are read; a fused kernel doesn't give them.
        attention = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        attended = self.out((attention @ value).transpose(1, 2).flatten(2))
        x = x + self._drop(attended)
        x = x + self._drop(self.mlp(self.norm2(x)))
        return x, attention, attended.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _drop(self, x: Tensor) -> Tensor:
        return x * F.dropout(x.new_ones(len(x), 1, 1), self.drop_path, self.training)


class AttentionFusion(nn.Module):
    """WeakTr's adaptive attention fusion: one weight per head from its features, max-pooled over the tokens.

    Args:
        heads: A, of all blocks together.
        width: of a head's features.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.of_features = nn.Sequential(nn.Linear(width, width // 8), nn.Linear(width // 8, 1))
        self.of_heads = nn.Sequential(
            nn.Linear(heads, heads // 8, bias=False), nn.ReLU(), nn.Linear(heads // 8, heads, bias=False), nn.Sigmoid()
        )

    def forward(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Attention `[N, A, T, T]`, weighed by features `[N, A, T, w]`; twice, as WeakTr computes it."""
        weights = self.of_heads(self.of_features(features.amax(2)).squeeze(2))[:, :, None, None]
        return attention * weights, attention * weights


class WeakTrNetwork(nn.Module):
    """WeakTr on DeiT-S/16: K class tokens, a 3 x 3 head, and a fine CAM from the attention of all twelve blocks.

    Copies that WeakTr makes of its attention maps are left out.

    Args:
        classes: K.
        size: of the images, a multiple of 16.
    """

    def __init__(self, classes: int, size: int, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.num_classes, self.side = classes, size // STRIDE
        self.patch_embed = nn.Conv2d(3, width, STRIDE, STRIDE)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, classes, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, classes + self.side**2, width))
        self.blocks = nn.ModuleList(_Block(width, heads, 0.1 * i / max(depth - 1, 1)) for i in range(depth))
        self.head = nn.Conv2d(width, classes, 3, padding=1)
        self.adaptive_attention_fusion = AttentionFusion(depth * heads, width // heads)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[N, K]` of the class tokens, the coarse and the fine CAM."""
        patches = self.patch_embed(images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        maps, features = [], []
        for block in self.blocks:
            x, attention, attended = block(x)
            maps.append(attention.detach())
            features.append(attended.detach())
        classes = self.num_classes
        coarse = self.head(x[:, classes:].mT.unflatten(2, (self.side, self.side)).contiguous())
        cross, patch = self.adaptive_attention_fusion(torch.cat(features, 1), torch.cat(maps, 1))
        fused = cross.mean(1)[:, :classes, classes:].reshape(coarse.shape) * coarse.detach().relu()
        fine = patch.mean(1)[:, None, classes:, classes:] @ fused.flatten(2)[..., None]
        return x[:, :classes].mean(-1), coarse.mean((2, 3)), fine.squeeze(3).mean(2)
