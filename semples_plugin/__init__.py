"""SemPLeS for weakly-supervised segmentation: three objectives that improve class activation maps.

    from semples_plugin import ClassMasks, FrozenClip, SemPLeSRegularizer

See `docs/loop.md` for the three stages, and `semples demo` for all of them in some four minutes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from semples_plugin.version import __version__

if TYPE_CHECKING:
    from semples_plugin.adapters.base import wrap
    from semples_plugin.adapters.cam_inference import write_cams_of
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.loss_weights import LossWeights
    from semples_plugin.masks import ClassMasks
    from semples_plugin.presets import Preset, load_preset
    from semples_plugin.prompt_learning.epochs import PromptHistory
    from semples_plugin.prompt_learning.learn import learn_background_prompts
    from semples_plugin.prompts import BackgroundPrompts
    from semples_plugin.regularizer import SemPLeSRegularizer

_MODULES = {
    "BackgroundPrompts": "prompts",
    "ClassMasks": "masks",
    "FrozenClip": "clip.frozen",
    "LossWeights": "loss_weights",
    "Preset": "presets",
    "PromptHistory": "prompt_learning.epochs",
    "SemPLeSRegularizer": "regularizer",
    "learn_background_prompts": "prompt_learning.learn",
    "load_preset": "presets",
    "wrap": "adapters.base",
    "write_cams_of": "adapters.cam_inference",
}
__all__ = [
    "BackgroundPrompts",
    "ClassMasks",
    "FrozenClip",
    "LossWeights",
    "Preset",
    "PromptHistory",
    "SemPLeSRegularizer",
    "__version__",
    "learn_background_prompts",
    "load_preset",
    "wrap",
    "write_cams_of",
]


def __getattr__(name: str) -> Any:
    # On first use: torch takes seconds to import, and half of the commands do without it.
    if name not in _MODULES:
        raise AttributeError(f"module 'semples_plugin' has no attribute {name!r}")
    return getattr(import_module(f"semples_plugin.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
