"""How to install optional packages, in the same words for errors, help and `semples doctor`."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """The command that installs "crf" or "mmseg" (`optional-dependencies` in pyproject.toml)."""
    return f"pip install '.[{extra}]' in the checkout of semples-plugin"
