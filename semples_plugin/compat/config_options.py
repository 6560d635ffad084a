"""`semples run fma-wsss --cfg KEY=VALUE`: entries of FMA-WSSS's config, given in the command and not by an edit."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

VARIABLE = "SEMPLES_HOST_CFG"
"""Brings the options to the script's process, which takes them out, so that scripts which that one starts have none."""


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options `KEY=VALUE`, where VALUE is a Python literal (true, false and none in any case) or a text.

    >>> parse_options(["solver.max_iter=3", "rslt_dir=experiment/a", "seed.dir=None", "seed.bg_methods=[{'pow': 1}]"])
    {'solver.max_iter': 3, 'rslt_dir': 'experiment/a', 'seed.dir': None, 'seed.bg_methods': [{'pow': 1}]}
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise ValueError(f"--cfg: expected KEY=VALUE such as solver.max_iter=3, got {text!r:.100}")
        value = {"true": "True", "false": "False", "none": "None"}.get(value.lower(), value)
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            options[key] = value
    return options


def to_environment(options: Mapping[str, Any]) -> str:
    """What `VARIABLE` holds; texts, since a tuple would come back from JSON as a list."""
    return json.dumps({key: repr(value) for key, value in options.items()}) if options else ""


def take_options() -> dict[str, Any]:
    """The options of this process's command, taken out of the environment."""
    texts = json.loads(os.environ.pop(VARIABLE, "") or "{}")
    return {key: ast.literal_eval(text) for key, text in texts.items()}


def apply_options(config: Any, options: Mapping[str, Any]) -> Any:
    """Sets entries of an alchemy_cat config whose lazy entries aren't computed yet, and returns it.

    Raises:
        ValueError: where a branch of the key isn't there, such as `slover` in `slover.max_iter`. Within a config that
            reads its own bases later, such as `infer.cfg`, nothing can be told to be wrong.
    """
    for key, value in options.items():
        *branches, name = key.split(".")
        branch, is_whole = config, True
        for depth, part in enumerate(branches):
            is_whole = is_whole and (branch is config or not _reads_bases_later(branch))
            if is_whole and part not in branch:
                place = ".".join(branches[:depth]) or "the config"
                raise ValueError(f"--cfg {key}: {place} has no {part!r}; it has {', '.join(map(str, branch)):.300}")
            branch = branch[part]
            if not isinstance(branch, Mapping):
                raise ValueError(f"--cfg {key}: {'.'.join(branches[: depth + 1])} is no branch, it is {branch!r:.100}")
        branch[name] = value
    return config


def _reads_bases_later(branch: Any) -> bool:
    ask = getattr(branch, "get_attribute", None)
    return bool(callable(ask) and ask("_cfgs_update_at_parser"))
