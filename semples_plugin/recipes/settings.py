"""What the placeholders of a recipe stand for: its defaults, the user's TOML file, and `--set NAME=VALUE`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semples_plugin.recipes.recipe import PLACEHOLDER, Recipe, fill, words_of
from semples_plugin.utils.atomic_files import read_lines
from semples_plugin.utils.text import reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "semples.toml"
"""The settings file that is read where none is named."""
_CHECKOUTS = {"clims": "CLIMS", "weaktr": "WeakTr", "fma-wsss": "FMA-WSSS"}


@dataclass(frozen=True)
class Settings:
    """Everything that a recipe's commands depend on, for one seed.

    Attributes:
        texts: placeholder -> text.
        values: placeholder -> text of those that may stand for several words, before their own placeholders are filled.
        folder: this recipe's own, `{shared}`.
        seed: of these commands.
    """

    texts: Mapping[str, str]
    values: Mapping[str, str]
    folder: Path
    seed: int

    def words(self, command: str) -> list[str]:
        """The words of a command."""
        return words_of(command, self.texts, self.values)

    def named_files(self) -> list[Path]:
        """Files that values name by absolute paths, also as `local-dir:PATH` and `KEY=PATH`."""
        words = [fill(word, self.texts) for value in self.values.values() for word in shlex.split(value)]
        paths = [re.sub(r"^[\w.]+=|^local-dir:", "", re.sub(r"^[\w.]+=", "", word)) for word in words]
        return [Path(path) for path in paths if path.startswith("/")]

    def path(self, text: str) -> Path:
        """A path that a step names."""
        return Path(fill(text, self.texts))


def settings_for(recipe: Recipe, given: Mapping[str, str], seed: int, miniature: bool) -> Settings:
    """The settings of one seed.

    Args:
        recipe: whose placeholders are filled.
        given: what the user sets, see `read_given`.
        seed: from 0.
        miniature: take the values of a miniature run.
    """
    defaults = {**recipe.values, **(recipe.miniature if miniature else {})}
    values = {name: given.get(name, default) for name, default in defaults.items()}
    paths = {name: _absolute(given.get(name, default)) for name, default in recipe.paths.items()}
    folder = Path(paths["runs"]) / (f"{recipe.name}-miniature" if miniature else recipe.name)
    texts = {
        **paths,
        "shared": str(folder),
        "out": str(folder / f"seed{seed}"),
        "checkout": str(folder / _CHECKOUTS[recipe.host]),
        "seed": str(seed),
    }
    texts.update({name: fill(text, texts) for name, text in values.items()})
    return Settings(texts, values, folder, seed)


def read_given(recipe: Recipe, file: str | Path | None, options: Sequence[str]) -> dict[str, str]:
    """What the user sets.

    Args:
        recipe: whose names `options` may set; the file may hold those of other recipes as well.
        file: TOML of names and texts, numbers or lists of them; left out, `semples.toml` in the working folder where
            it exists.
        options: `NAME=VALUE`, which win over the file.

    Raises:
        FileNotFoundError: where a named file isn't there.
        ValueError: for a file that is no TOML, names that no recipe has, or another kind of value.
    """
    given: dict[str, str] = {}
    if file is not None or Path(FILE).is_file():
        given = _read_file(Path(file or FILE))
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in {**recipe.paths, **recipe.values}:
            raise ValueError(
                f"--set {option}: expected NAME=VALUE with a name of {recipe.name}: "
                f"{', '.join([*recipe.paths, *recipe.values])}"
            )
        given[name] = value
    _check_values(recipe, given)
    return given


def _check_values(recipe: Recipe, given: Mapping[str, str]) -> None:
    """A `ValueError` for an empty path, unclosed quotes, or a placeholder that isn't there."""
    known = {*recipe.paths, "shared", "out", "checkout", "seed"}
    for name, value in given.items():
        if name in recipe.paths and not value.strip():
            raise ValueError(f"{name}: expected a path, got nothing")
        if name in recipe.values:
            unknown = [found for found in PLACEHOLDER.findall(value) if found not in known]
            if unknown:
                raise ValueError(
                    f"{name}: {{{unknown[0]}}} stands for nothing; expected one of {', '.join(sorted(known))}"
                )
            try:
                shlex.split(value)
            except ValueError as error:
                raise ValueError(
                    f"{name}: {value!r:.80} can't be split into words as a shell does ({error})"
                ) from error


def _read_file(path: Path) -> dict[str, str]:
    from semples_plugin.recipes.book import all_names

    try:
        content = tomllib.loads("\n".join(read_lines(path)))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f'{path}: expected TOML, lines such as voc = "/data/VOC2012" ({reason(error)})') from error
    known = all_names()
    given = {}
    for name, value in content.items():
        if name not in known:
            raise ValueError(f"{path}: {name} is no name of any recipe; expected some of {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{path}: {name}: expected a text or a number, got {value!r:.80}")
        given[name] = str(value)
    return given


def _absolute(path: str) -> str:
    """A path of the user, made absolute; a URL stays one."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
