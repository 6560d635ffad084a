"""Stage (b): background prompts learn from background features that are encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semples_plugin.prompt_learning.epochs import PromptHistory
    from semples_plugin.prompt_learning.learn import learn_background_prompts

__all__ = ["PromptHistory", "learn_background_prompts"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from semples_plugin.prompt_learning import learn  # on first use, as it imports torch

    return getattr(learn, name)
