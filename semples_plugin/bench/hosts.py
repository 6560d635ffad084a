"""A training step of three hosts, without and with SemPLeS: stages (a) and (c), each as its adapter adds them.

The hosts' own steps are written from what they compute: the same network, batch, crop, losses, precision and
passes through a CLIP of their own. Data loading is left out; it would make SemPLeS's share smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semples_plugin import BackgroundPrompts, FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.adapters.base import CamAdapter
from semples_plugin.adapters.clims import ClimsAdapter
from semples_plugin.adapters.weaktr import FineCam, WeakTrAdapter
from semples_plugin.bench.host_networks import ResNetCams, WeakTrNetwork

PAIRS_PER_IMAGE = 1.5  # VOC's train_aug has 16,458 present classes in 10,582 images (WeakTr's cls_labels.npy): 1.56


class HostSize(NamedTuple):
    """What a host trains with.

    Attributes:
        batch: images of a step on a GPU, the host's own default.
        cpu_batch: on a CPU, so that a step takes seconds.
        size: side of the crop in pixels.
    """

    batch: int
    cpu_batch: int
    size: int


HOSTS = {
    "clims": HostSize(16, 2, 512),  # run_sample.py: --cam_batch_size, and its training crop
    "weaktr": HostSize(64, 4, 224),  # main.py: --batch-size, --input-size
    "resnet50": HostSize(16, 2, 512),  # of the CAM baseline that IRN, CLIMS and many others start from
}
STAGES = {
    "own": "its own step",
    "a": "with (a)",
    "c": "with (c)",
    "refine": "with L_refine of (c) alone",  # what CLIMS's patch adds by default: L_match is among CLIMS's own
}


def settings_of(host: str, kind: str, batch: int | None, size: int | None, pairs_per_image: float) -> dict[str, Any]:
    """`batch` and `size` of a host's step, the host's own where they are None, and its `pairs_per_image`.

    Args:
        host: of `HOSTS`.
        kind: of the device, "cpu" or "cuda".
        batch, size: images, and side of the crop in pixels, a multiple of `STRIDE`.
        pairs_per_image: present classes of an image, in the mean.
    """
    usual = HOSTS[host]
    return {
        "batch": batch or (usual.cpu_batch if kind == "cpu" else usual.batch),
        "size": size or usual.size,
        "pairs_per_image": pairs_per_image,
    }


def pairs_of(settings: dict[str, Any]) -> int:
    """Pairs P of a host's batch; each image has one at least."""
    return max(settings["batch"], round(settings["pairs_per_image"] * settings["batch"]))


def stages_of(host: str) -> list[str]:
    """The stages that are measured for a host."""
    return [stage for stage in STAGES if stage != "refine" or host == "clims"]


def host_step(spec: dict[str, Any], clip: FrozenClip, own_clip: Callable[[str], FrozenClip]) -> Callable[[], None]:
    """A whole training step, with forward and backward pass and the optimizer's.

    Args:
        spec: `host`, `stage` (of `STAGES`), `batch`, `size`, `pairs_per_image`, `classes`, `length`, `max_pairs`.
        clip: SemPLeS's.
        own_clip: gives the host's own CLIP in a precision; CLIMS has one.
    """
    torch.manual_seed(0)
    images, labels = make_batch(spec, clip.device)
    host = _MAKERS[spec["host"]](spec, clip.device, own_clip)
    adapter = None if spec["stage"] == "own" else host.adapter(_regularizer(spec, clip))

    def step() -> None:
        host.optimizer.zero_grad()
        loss = host.loss(images, labels, adapter)
        host.scaler.scale(loss).backward()
        host.scaler.step(host.optimizer)
        host.scaler.update()

    return step


def make_batch(spec: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images `[N, 3, S, S]`, and labels `[N, K]` of `pairs_of(spec)` pairs."""
    count, classes = spec["batch"], spec["classes"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, spec["size"], spec["size"], generator=generator).clamp(-1.5, 1.5)
    labels = torch.zeros(count, classes)
    for pair in range(pairs_of(spec)):
        image, turn = pair % count, pair // count
        labels[image, (image + turn) % classes] = 1
    return images.to(device), labels.to(device)


def _regularizer(spec: dict[str, Any], clip: FrozenClip) -> SemPLeSRegularizer:
    """With VOC's weights, and prompts that count as learned in (c)."""
    names = [f"class {k}" for k in range(spec["classes"])]
    prompts = None
    if spec["stage"] != "a":
        prompts = BackgroundPrompts(len(names), spec["length"], clip.text_width)
        prompts.learned = True
    weights = LossWeights(background=2.4, text=0.02, refine=0.05)
    if spec["stage"] == "refine":
        weights = LossWeights(foreground=0, background=0, text=0.02, refine=0.05)
    return SemPLeSRegularizer(clip, names, weights=weights, prompts=prompts, max_pairs=spec["max_pairs"])


class _Host:
    """What the three have in common: a network, its optimizer, and a gradient scaler that may do nothing."""

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self.network = network.to(device).train()
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = optimizer(trained)
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)

    def adapter(self, regularizer: SemPLeSRegularizer) -> CamAdapter:
        """What adds SemPLeS's losses."""
        return CamAdapter(regularizer, "relu")

    def loss(self, images: Tensor, labels: Tensor, adapter: CamAdapter | None) -> Tensor:
        """The host's loss and, with an adapter, SemPLeS's."""
        raise NotImplementedError


class _ResNet50(_Host):
    """The CAM baseline: image labels alone, in fp32."""

    def __init__(self, spec: dict[str, Any], device: torch.device, own_clip: Callable[[str], FrozenClip]) -> None:
        super().__init__(ResNetCams(spec["classes"]), device, _sgd)

    def loss(self, images: Tensor, labels: Tensor, adapter: CamAdapter | None) -> Tensor:
        cams = self.network(images)
        loss = F.multilabel_soft_margin_loss(cams.mean((2, 3)), labels)
        return loss if adapter is None else loss + adapter.loss(images, cams, labels)


class _Clims(_Host):
    """CLIMS: sigmoid CAMs, and its own four terms through an unfrozen CLIP ViT-B/32, in half precision on a GPU.

    Its equations: masked foregrounds and backgrounds at CLIP's size; -log of the foreground's similarity to the
    text of its class, -log(1 - .) of the background's, -log(1 - .) of the foreground's to each known background's
    where that exceeds a threshold, and the mean CAM. Each term encodes its images and texts anew: three image
    passes per pair, and gradients of CLIP's weights that nobody uses.
    """

    def __init__(self, spec: dict[str, Any], device: torch.device, own_clip: Callable[[str], FrozenClip]) -> None:
        super().__init__(ResNetCams(spec["classes"]), device, _sgd)
        clip: Any = own_clip("fp16" if device.type == "cuda" else "fp32")
        self.clip = clip.model.requires_grad_()
        self.dtype = self.clip.visual.conv1.weight.dtype
        self.side = clip.image_size
        texts = [f"a photo of class {k}." for k in range(spec["classes"])]
        backgrounds = [f"a photo of background {i}." for i in range(10)]  # as many as CLIMS knows for VOC
        self.texts, self.backgrounds = (clip.tokenizer(lines).to(device) for lines in (texts, backgrounds))

    def adapter(self, regularizer: SemPLeSRegularizer) -> CamAdapter:
        return ClimsAdapter(regularizer, scale=10.0)

    def loss(self, images: Tensor, labels: Tensor, adapter: CamAdapter | None) -> Tensor:
        cams = self.network(images).sigmoid()
        image, label = labels.nonzero(as_tuple=True)
        masks = F.interpolate(cams, self.side, mode="bilinear", align_corners=True)[image, label, None]
        pixels = F.interpolate(images, self.side, mode="bilinear", align_corners=True)[image]
        foregrounds, backgrounds, texts = masks * pixels, (1 - masks) * pixels, self.texts[label]
        match = -self._similarity(foregrounds, texts).clamp(1e-4, 0.9999).log().mean()
        repel = -(1 - self._similarity(backgrounds, texts).clamp(1e-4, 0.9999)).log().mean()
        known = self._image_features(foregrounds) @ self._text_features(self.backgrounds).T
        suppress = -((1 - known).log() * (known > 0.26)).sum()
        loss = 10 * match + 24 * repel + suppress + 0.2 * cams.mean()
        return loss if adapter is None else loss + adapter.loss(images, cams, labels)

    def _similarity(self, views: Tensor, texts: Tensor) -> Tensor:
        return (self._image_features(views) * self._text_features(texts)).sum(1)

    def _image_features(self, views: Tensor) -> Tensor:
        return F.normalize(self.clip.encode_image(views.to(self.dtype)).float(), dim=-1)

    def _text_features(self, texts: Tensor) -> Tensor:
        return F.normalize(self.clip.encode_text(texts).float(), dim=-1)


class _WeakTr(_Host):
    """WeakTr: three classification losses, under autocast and with a gradient scaler on a GPU."""

    def __init__(self, spec: dict[str, Any], device: torch.device, own_clip: Callable[[str], FrozenClip]) -> None:
        super().__init__(WeakTrNetwork(spec["classes"], spec["size"]), device, _adamw)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def adapter(self, regularizer: SemPLeSRegularizer) -> CamAdapter:
        return WeakTrAdapter(regularizer)

    def loss(self, images: Tensor, labels: Tensor, adapter: CamAdapter | None) -> Tensor:
        with torch.autocast(images.device.type, torch.float16, enabled=images.is_cuda):
            if adapter is None:
                return self._own_loss(images, labels)
            with FineCam(self.network) as fine:
                loss = self._own_loss(images, labels)
                return loss + adapter.loss(images, fine(), labels)

    def _own_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.network(images)
        return torch.stack([F.multilabel_soft_margin_loss(each, labels) for each in logits]).sum()


# With rates so small that random weights stay what they are, whatever the number of steps.
_sgd = partial(torch.optim.SGD, lr=1e-9, momentum=0.9, weight_decay=1e-4)
_adamw = partial(torch.optim.AdamW, lr=1e-9, weight_decay=0.03)
_MAKERS: dict[str, Callable[..., _Host]] = {"clims": _Clims, "weaktr": _WeakTr, "resnet50": _ResNet50}
