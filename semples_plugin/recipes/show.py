"""A recipe as text: what its settings are, and the very commands that `semples recipe run` executes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from semples_plugin.recipes.jobs import Job
from semples_plugin.recipes.recipe import Recipe
from semples_plugin.recipes.settings import Settings


def format_settings(recipe: Recipe, settings: Settings) -> str:
    """The names that the user may set, with what they are set to, as comments of a shell."""
    lines = [f"# {recipe.name}: {recipe.about}", "# set by --set NAME=VALUE or in semples.toml:"]
    for name in (*recipe.paths, *recipe.values):
        value = settings.texts[name] if name in recipe.paths else settings.values[name]
        meaning = recipe.help.get(name, "")
        lines.append(f"#   {name} = {json.dumps(value, ensure_ascii=False)}" + (f"  ({meaning})" if meaning else ""))
    return "\n".join(lines)


def format_steps(jobs: Sequence[Job]) -> str:
    """The jobs' commands in order, with comments; a shell runs them as they stand."""
    lines: list[str] = []
    folder = None
    for job in jobs:
        hours = f", about {job.step.hours:g} h" if job.step.hours else ""
        lines += [*([""] if lines else []), f"# {job.key}: {job.step.about}{hours}"]
        if not job.words:
            lines += [f"# by hand: {job.step.source}", *(f"#   it belongs to {path}" for path in job.makes)]
            continue
        if job.folder != folder:
            folder = job.folder
            lines.append(f"mkdir -p {shlex.quote(str(folder))} && cd {shlex.quote(str(folder))}")
        lines.append(wrapped(job.words))
    return "\n".join(lines)


def wrapped(words: Sequence[str], width: int = 116) -> str:
    """A command as a shell reads it, in lines that end with a backslash; an option stays with its value.

    >>> print(wrapped(["python", "main.py", "--epochs", "60", "--list", "a b.txt"], width=26))
    python main.py \\
        --epochs 60 \\
        --list 'a b.txt'
    """
    groups: list[str] = []
    for word in words:
        quoted = shlex.quote(word)
        starts = not groups or word.startswith("--")
        groups[-1:] = [*groups[-1:], quoted] if starts else [f"{groups[-1]} {quoted}"]
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 3 <= width:
            lines[-1] += f" {group}"
        else:
            lines.append(f"    {group}")
    return " \\\n".join(lines)
