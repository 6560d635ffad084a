"""The frozen CLIP: found, loaded, encoded with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semples_plugin.clip.frozen import FrozenClip

__all__ = ["FrozenClip"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from semples_plugin.clip import frozen  # on first use, as it imports torch

    return getattr(frozen, name)
