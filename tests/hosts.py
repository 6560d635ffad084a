"""Small networks that keep the three hosts' contracts: shapes, ranges, and where they cut the graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClimsLike(nn.Module):
    """Sigmoid CAMs [N, K, H/4, W/4]; the first convolution is not trained."""

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1).requires_grad_(False)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(16, num_classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(self.stem(images))).sigmoid()


class Fusion(nn.Module):
    """Weights attention maps [N, A, T, T] by their features, and returns them twice."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(maps, maps)

    def forward(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weigh(features.mean((2, 3))).sigmoid()[:, :, None, None]
        return attention * weight, attention * weight


class WeakTrLike(nn.Module):
    """Class and patch tokens, dropped paths, a convolutional head, and a fine CAM that reaches the fusion alone."""

    def __init__(self, num_classes: int = 8, width: int = 16, blocks: int = 3, patch: int = 8, side: int = 8) -> None:
        super().__init__()
        self.num_classes, self.side = num_classes, side
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.tokens = nn.Parameter(0.02 * torch.randn(1, num_classes, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, num_classes + side * side, width))
        self.query = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.value = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Conv2d(width, num_classes, 3, padding=1)
        self.adaptive_attention_fusion = Fusion(blocks)

    def forward(self, images: Tensor, return_att: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.cat([self.tokens.expand(len(images), -1, -1), self.patch_embed(images).flatten(2).mT], 1)
        x, attention, features = x + self.places, [], []
        for query, value in zip(self.query, self.value):
            q, k = query(x).chunk(2, dim=-1)
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            kept = F.dropout(torch.ones(len(x), 1, 1), 0.3, self.training)  # drop path
            x = x + kept * (weights @ value(x))
            attention.append(weights)
            features.append(x)
        classes, side = self.num_classes, self.side
        coarse = self.head(x[:, classes:].mT.unflatten(2, (side, side)))
        maps, seen = torch.stack(attention, 1).detach(), torch.stack(features, 1).detach()
        cross, patch = self.adaptive_attention_fusion(seen, maps)
        cams = cross.mean(1)[:, :classes, classes:].reshape(coarse.shape) * coarse.detach().relu()
        patch = patch.mean(1)[:, classes:, classes:]
        fine = (patch[:, None] @ cams.flatten(2)[..., None]).reshape(cams.shape)
        if return_att:
            return x[:, :classes].mean(-1), cams, patch.unsqueeze(0)
        return x[:, :classes].mean(-1), coarse.mean((2, 3)), fine.mean((2, 3))


class FmaLike(nn.Module):
    """Signed Grad-CAMs [P, h, w] of the present classes; they depend on a learned context, by second order."""

    def __init__(self, num_classes: int = 8, width: int = 16) -> None:
        super().__init__()
        self.tower = nn.Conv2d(3, width, 8, stride=8).requires_grad_(False)
        self.texts = nn.Parameter(torch.randn(num_classes, width), requires_grad=False)
        self.ctx = nn.Parameter(0.1 * torch.randn(width))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        activations = self.tower(images).requires_grad_()
        features = F.normalize(activations.tanh().mean((2, 3)), dim=1)
        logits = features @ F.normalize(self.texts * (1 + self.ctx), dim=1).T
        maps = []
        for n, k in labels.nonzero().tolist():
            (gradient,) = torch.autograd.grad(logits[n, k], activations, create_graph=True)
            maps.append((activations[n].detach() * gradient[n].mean((1, 2), keepdim=True)).sum(0))
        return torch.stack(maps)
