"""Any of timm's backbones as a CAM network, with low layers that stay fixed and so are computed once per image."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from semples_plugin.utils.checkpoint_files import read_checkpoint, weights_of
from semples_plugin.utils.checks import suggestion
from semples_plugin.utils.text import reason, shown

TRUNK = "visual.trunk."
"""What open_clip puts before the names of timm's tensors."""

Modules = list[tuple[str, nn.Module]]
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Backbone:
    """A network in two parts, `upper(lower(images))`.

    Attributes:
        lower: stays as it is, so that its features of an image can be kept; None where all is trained.
        upper: what is trained.
        channels: C of the last features `[N, C, h, w]`.
        mean, std: statistics that images are normalised with, on the scale of [0, 1] pixels.
    """

    lower: nn.Module | None
    upper: nn.Module
    channels: int
    mean: RGB
    std: RGB

    def cam_network(self, num_classes: int) -> nn.Sequential:
        """A copy of `upper` and a 1 x 1 classifier without bias: raw CAMs `[N, K, h, w]`, whose means are the logits.

        It is in eval mode, and stays there: batch norm keeps the statistics that it has.
        """
        classifier = nn.Conv2d(self.channels, num_classes, 1, bias=False)
        return nn.Sequential(OrderedDict(upper=copy.deepcopy(self.upper), classifier=classifier)).eval()


class LastFeatures(nn.Module):
    """A network's last feature map `[N, C, h, w]`; a vision transformer's tokens are put back on their grid."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]


def load_backbone(
    name: str, weights: Path | None = None, *, size: int = 224, train_from: str | None = None, train_all: bool = False
) -> Backbone:
    """A backbone with its weights, cut in two.

    Args:
        name: of one of timm's networks.
        weights: a state dict in a `.safetensors` or PyTorch's file, of the backbone or of an open_clip model
            with this backbone as its image tower; None: timm's own are downloaded.
        size: of the images, in pixels.
        train_from: name of the first module that is trained; None: the one after the second-last of timm's levels
            of features, such as ResNet's layer4.
        train_all: nothing stays fixed, which any network can do.

    Raises:
        FileNotFoundError: where there is no file of weights.
        ValueError: for an unknown name, weights that don't fit, or a network that can't be cut like this.
    """
    network = _new_network(name)
    if weights is None:
        _download_weights(network, name)
    else:
        _read_weights(network, name, weights)
    config = timm.data.resolve_model_data_config(network)
    whole, image = LastFeatures(network.eval()), torch.rand(1, 3, size, size)
    try:
        with torch.no_grad():
            features = whole(image)
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{name} makes no feature map of images of {size} x {size}: {reason(error)}") from error
    statistics = tuple(config["mean"]), tuple(config["std"])
    if train_all:
        return Backbone(None, whole, features.shape[1], *statistics)
    lower, upper = _cut(_chain(network), train_from, network.feature_info[-2]["module"])
    if not _is_equal(nn.Sequential(lower, upper), image, features):
        raise ValueError(
            f"{name} does more than to call its modules one after the other, so that its low layers can't be computed "
            "apart: give --train-all, with which the whole network is trained, or take another backbone"
        )
    return Backbone(lower, upper, features.shape[1], *statistics)


def _new_network(name: str) -> nn.Module:
    """A network without classifier, with one feature for 16 x 16 pixels where it can have them."""
    if not timm.is_model(name):
        raise ValueError(f"timm has no backbone {shown(name)}{suggestion(name, timm.list_models())}")
    for stride in ({"output_stride": 16}, {}):
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **stride)
        except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
            refused = error
    raise ValueError(f"timm can't make {name}: {reason(refused)}") from refused


def _download_weights(network: nn.Module, name: str) -> None:
    try:
        timm.models.load_pretrained(network, num_classes=0)
    except Exception as error:  # the HTTP client's own, or timm's where there are no weights
        raise ValueError(
            f"timm's weights of {name} could not be downloaded ({reason(error)}): give a file, --weights FILE"
        ) from error


def _read_weights(network: nn.Module, name: str, path: Path) -> None:
    if path.suffix == ".safetensors" and path.is_file():
        try:
            state = load_file(path)
        except Exception as error:  # damaged bytes raise nearly anything
            raise ValueError(f"{path} is damaged: get it again ({reason(error)})") from error
    else:
        state = weights_of(path, read_checkpoint(path))
    trunk = {key.removeprefix(TRUNK): tensor for key, tensor in state.items() if key.startswith(TRUNK)}
    heads = network.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    try:
        missing, unexpected = network.load_state_dict(trunk or state, strict=False)
    except RuntimeError as error:  # tensors of another shape
        raise ValueError(f"{path} does not hold the weights of {name}: {reason(error)}") from error
    unexpected = [key for key in unexpected if not key.startswith(prefixes)]
    if missing or unexpected:
        raise ValueError(
            f"{path} does not hold the weights of {name}: {len(missing)} of its tensors are missing"
            f"{_first(missing)}, {len(unexpected)} are another network's{_first(unexpected)}"
        )


def _first(keys: Sequence[str]) -> str:
    return f" ({keys[0]}{', ...' if len(keys) > 1 else ''})" if keys else ""


def _chain(network: nn.Module) -> Modules:
    """The modules up to the last features, with those of the container that the last one is in by themselves."""
    last = network.feature_info[-1]["module"]
    container = last.rpartition(".")[0]
    chain: Modules = []
    for name, child in network.named_children():
        within = [(f"{name}.{key}", module) for key, module in child.named_children()] if name == container else []
        chain += within or [(name, child)]
        if last in (chain[-1][0], name):
            break
    return chain


def _cut(chain: Modules, first_trained: str | None, level: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The modules before `first_trained`, by default what follows `level`, and those from it on."""
    names = [name for name, _ in chain]
    if first_trained is not None and first_trained not in names[1:]:
        raise ValueError(
            f"--train-from: expected one of {', '.join(names[1:])}, got {shown(first_trained)}; --train-all trains all"
        )
    cut = names.index(first_trained) if first_trained else min(_end_of(level, names), len(names) - 1)
    modules = [module for _, module in chain]
    return nn.Sequential(*modules[:cut]), nn.Sequential(*modules[cut:])


def _end_of(level: str, names: Sequence[str]) -> int:
    """How many of the modules make the features of `level`, which may lie within one of them."""
    return next((i + 1 for i, name in enumerate(names) if level == name or level.startswith(f"{name}.")), len(names))


@torch.no_grad()
def _is_equal(network: nn.Module, image: Tensor, expected: Tensor) -> bool:
    """Whether a network's features of an image are the expected ones."""
    try:
        features = network(image)
    except Exception:  # modules that don't follow one another raise anything
        return False
    return features.shape == expected.shape and bool((features - expected).abs().max() <= 1e-4 * expected.abs().max())
