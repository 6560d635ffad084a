"""Small networks with the contracts of the three hosts: shapes, ranges, and where they cut the graph.

They are written from the hosts' descriptions, carry no line of theirs, and are what the adapters are tested with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from semples_plugin import FrozenClip
from semples_plugin.demo.network import CamNet


class ClimsHead(CamNet):
    """CLIMS: sigmoid CAMs [N, K, h, w]; the first convolution and its batch norm are not trained."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.n_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Sigmoid CAMs [N, K, h, w]."""
        return self.logits(images).sigmoid()

    def logits(self, images: Tensor) -> Tensor:
        """The same before the sigmoid."""
        return super().forward(images)

    def freeze_stem(self) -> ClimsHead:
        """What CLIMS does before it trains."""
        self.features[0].requires_grad_(False)
        return self


class Fusion(nn.Module):
    """Weighs A attention maps [N, A, T, T] by their tokens [N, A, T, C], and returns them twice."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(maps, maps)

    def forward(self, tokens: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        weighed = attention * self.weigh(tokens.mean((2, 3))).sigmoid()[:, :, None, None]
        return weighed, weighed


class Block(nn.Module):
    """Attention and an MLP, with drop path; it returns its attention maps [N, A, T, T] too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        with torch.no_grad():  # keys that start as the queries look at what is alike and near, as in a trained ViT
            query, key, _ = self.qkv.weight.chunk(3)
            key.copy_(query.mul_(3))
            self.qkv.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        x = x + self._drop_path(self.out((attention @ value).transpose(1, 2).flatten(2)))
        return x + self._drop_path(self.mlp(self.norms[1](x))), attention

    def _drop_path(self, x: Tensor) -> Tensor:
        return F.dropout(x.new_ones(len(x), 1, 1), 0.1, self.training) * x


class WeakTrHead(nn.Module):
    """WeakTr: class and patch tokens, a convolutional head, and a fine CAM whose loss reaches the fusion alone."""

    def __init__(self, num_classes: int, width: int = 48, blocks: int = 3, heads: int = 3, side: int = 16) -> None:
        super().__init__()
        self.num_classes, self.side = num_classes, side
        self.patch_embed = nn.Sequential(
            *_convolution(3, width // 2, stride=2), *_convolution(width // 2, width, stride=2),
            *_convolution(width, width), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip
        self.tokens = nn.Parameter(0.02 * torch.randn(1, num_classes, width))
        self.places = nn.Parameter(torch.cat([torch.zeros(num_classes, width), _places(side, width)])[None])
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Conv2d(width, num_classes, 3, padding=1)
        self.adaptive_attention_fusion = Fusion(blocks * heads)

    def forward(self, images: Tensor, return_att: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of class tokens, coarse and fine CAM [N, K]; or logits, CAMs and patch affinity [1, N, T, T]."""
        classes = self.num_classes
        x = torch.cat([self.tokens.expand(len(images), -1, -1), self.patch_embed(images).flatten(2).mT], 1)
        x, maps, seen = x + self.places, [], []
        for block in self.blocks:
            x, attention = block(x)
            maps.append(attention)
            seen.append(x[:, None].expand(-1, block.heads, -1, -1))
        logits = 4 * x[:, :classes].mean(-1)
        coarse = self.head(self.norm(x)[:, classes:].mT.unflatten(2, (self.side, self.side)))
        cross, patch = self.adaptive_attention_fusion(torch.cat(seen, 1).detach(), torch.cat(maps, 1).detach())
        cams = cross.mean(1)[:, :classes, classes:].reshape(coarse.shape) * coarse.detach().relu()
        patch = patch.mean(1)[:, classes:, classes:]
        if return_att:
            return logits, cams, patch[None]
        fine = (patch[:, None] @ cams.flatten(2)[..., None]).reshape(cams.shape)
        return logits, coarse.mean((2, 3)), fine.mean((2, 3))


class FmaHead(nn.Module):
    """FMA-WSSS: signed Grad-CAMs of a CLIP's own score for its texts, whose shared context is all that is trained.

    Args:
        clip: an own one, its visual tower a residual network; the maps come from its second layer.
        class_names: K names.
        length: of the context.
    """

    def __init__(self, clip: FrozenClip, class_names: tuple[str, ...], length: int = 16) -> None:
        super().__init__()
        self._clip, self.class_names = clip, class_names
        self.ctx = nn.Parameter(0.5 * clip.token_std * torch.randn(1, length, clip.text_width))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Grad-CAMs [P, h, w] of the present classes, in the order of nonzero(labels), and the logits [P, K]."""
        clip, (image_index, class_index) = self._clip, labels.nonzero(as_tuple=True)
        kept: list[Tensor] = []

        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept.append(output.detach().requires_grad_())
            return kept[0]

        # Only the plain attention has the second-order gradients that the context needs.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            hook = clip.model.visual.layer2.register_forward_hook(keep)  # type: ignore[union-attr, operator]
            try:
                features = clip.encode_images(images[image_index])
            finally:
                hook.remove()
            texts = [clip.encode_prompts(self.ctx, f"{{}} {name}.") for name in self.class_names]
            logits = float(clip.model.logit_scale.exp()) * features @ torch.cat(texts).T  # type: ignore[operator]
            others = labels[image_index].bool() & (F.one_hot(class_index, labels.shape[1]) == 0)
            scores = logits.masked_fill(others, -torch.inf).softmax(1)  # classes of one image don't compete
            own = scores.gather(1, class_index[:, None]).sum()
            (gradient,) = torch.autograd.grad(own, kept[0], create_graph=True)
            maps = (kept[0].detach() * gradient.mean((2, 3), keepdim=True)).sum(1)
        return maps, logits


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


def _places(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column `[side * side, width]`."""
    row, column = torch.meshgrid(*2 * [torch.arange(side).float()], indexing="ij")
    rates = math.pi / 2 ** torch.linspace(0, math.log2(side), width // 4)
    waves = [wave(place[..., None] * rates) for place in (row, column) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, -1).flatten(0, 1)
