"""`semples run fma-wsss --cfg KEY=VALUE`: entries of FMA-WSSS's config, given in the command and not by an edit."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from semples_plugin.utils.checks import suggestion

_ARGUMENTS = "semples"  # the branch of our own config whose entries are a function's arguments
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
        _check_finite(text, options[key])
    return options


def _check_finite(text: str, value: Any) -> None:
    """Refuses 1e400, which Python reads as infinite, also within lists and the like."""
    try:
        ast.literal_eval(repr(value))
    except ValueError:
        raise ValueError(f"--cfg: expected finite numbers, got {text!r:.100}") from None


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
        ValueError: for an entry that isn't there, such as `solver.max_iters`: nothing would read it. New ones are taken
            within `semples` alone, which are arguments of `LossItem`; that refuses unknown ones by itself.
    """
    for key, value in options.items():
        *branches, name = key.split(".")
        branch = seen = config
        for depth, part in enumerate(branches):
            _check_entry(key, seen, depth)
            branch, seen = branch[part], _with_bases(seen[part])
            if not isinstance(seen, Mapping):
                raise ValueError(f"--cfg {key}: {'.'.join(branches[: depth + 1])} is no branch, it is {seen!r:.100}")
        if branches[:1] != [_ARGUMENTS]:
            _check_entry(key, seen, len(branches))
        branch[name] = value
    return config


def _check_entry(key: str, branch: Mapping[str, Any], depth: int) -> None:
    """Refuses the part of a key at a depth where the branch there has no such entry."""
    parts = key.split(".")
    if parts[depth] not in branch:
        place, names = ".".join(parts[:depth]) or "the config", [str(name) for name in branch]
        hint = suggestion(parts[depth], names)
        raise ValueError(f"--cfg {key}: {place} has no {parts[depth]!r}; it has {', '.join(names):.300}{hint}")


def _with_bases(branch: Any) -> Any:
    """A branch as it will be read: one such as `infer.cfg` reads its own bases later, in another process."""
    ask = getattr(branch, "get_attribute", None)
    if not (callable(ask) and ask("_cfgs_update_at_parser")):
        return branch
    whole = branch.branch_copy()
    whole.update_at_parser()
    return whole
