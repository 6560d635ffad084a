"""SemPLeS for any weakly-supervised segmentation code base: three losses, the prompts, and tools to judge them."""

from __future__ import annotations

from semples_plugin.clip import FrozenClip
from semples_plugin.masks import ClassMasks
from semples_plugin.presets import Preset, load_preset
from semples_plugin.prompt_learning import PromptHistory, learn_background_prompts
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import LossWeights, SemPLeSRegularizer
from semples_plugin.version import __version__

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
]
