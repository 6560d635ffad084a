"""mmsegmentation, `--cfg-options KEY=VALUE` of a run: parsed, compared with the config, and set in it."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mmseg.registry
from mmengine.config import Config, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import DataLoader

from semples_plugin.adapters.mmseg_testing import LOADERS
from semples_plugin.utils.checks import suggestion

_Reader = Callable[..., Any]
# What takes entries that a config may leave out, by their place in it; "" is the config itself.
_READERS: dict[str, _Reader] = {"": Runner, "randomness": set_random_seed, **dict.fromkeys(LOADERS, DataLoader)}


class Options(DictAction):
    """mmengine's parser of `KEY=VALUE`, whose errors end the command in a sentence."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        """Parses the words behind the option, into a dictionary by key."""
        for word in values:
            key, equals, _ = word.partition("=")
            if not equals or not all(key.split(".")):
                parser.error(f"{option}: expected KEY=VALUE such as train_cfg.max_iters=20000, got {word!r:.100}")
            try:
                super().__call__(parser, namespace, [word], option)
            except (AssertionError, ValueError) as error:
                parser.error(f"{option}: {word!r:.100} has no value that can be read ({error})")


def set_options(config: Config, options: Mapping[str, Any]) -> None:
    """Sets entries of a config, by dotted keys; a number stands for a position in a list.

    An entry that the config doesn't have is taken where the class or function that reads it names it: nothing would
    read another one, and many of mmengine's classes don't say so.

    Raises:
        ValueError: for an entry that isn't there, and that nothing would read.
    """
    content = config.to_dict()
    for key in options:
        _check(key, content, options)
    config.merge_from_dict(dict(options))


def _check(key: str, content: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    parts = key.split(".")
    place: Any = content
    for depth, part in enumerate(parts):
        path = ".".join(parts[:depth])
        if isinstance(place, Mapping):
            names = [str(name) for name in place]
            if part not in names:
                known = [*names, *_arguments(path, options.get(f"{path}.type", place.get("type")))]
                if part in known:
                    return
                raise ValueError(
                    f"--cfg-options {key}: {path or 'the config'} has no {part!r}; it has {', '.join(names):.300}, "
                    f"and a file given by --with may add others{suggestion(part, dict.fromkeys(known))}"
                )
            place = place[part]
        elif isinstance(place, Sequence) and not isinstance(place, str):
            if not part.isdecimal() or int(part) >= len(place):
                raise ValueError(f"--cfg-options {key}: {path} is a list of {len(place)}, expected a position from 0")
            place = place[int(part)]
        else:
            raise ValueError(f"--cfg-options {key}: {path} has no entries, it is {place!r:.100}")
    if isinstance(place, Mapping) and options[key] is not None:
        shown = ", ".join(map(str, place))
        raise ValueError(f"--cfg-options {key}: expected {key}.NAME=VALUE with NAME such as {shown:.300}, or None")


def _arguments(path: str, kind: Any) -> list[str]:
    """Names of what is taken at a place of the config, by its reader or by the class that its `type` names."""
    reader: Any = _READERS.get(path) if kind is None else _class_of(kind)
    if reader is None:
        return []
    bases: list[Any] = list(inspect.getmro(reader)) if inspect.isclass(reader) else [reader]
    names = [
        name
        for base in bases
        for name in inspect.signature(base.__init__ if inspect.isclass(base) else base).parameters
    ]
    return [name for name in names if name not in ("self", "args", "kwargs", "cfg")]


def _class_of(kind: Any) -> Any:
    """The class, or function, that a `type` names in any of mmsegmentation's registries; None where it is in none."""
    if not isinstance(kind, str):
        return kind
    registries = [value for value in vars(mmseg.registry).values() if isinstance(value, Registry)]
    return next((found for registry in registries if (found := registry.get(kind)) is not None), None)
