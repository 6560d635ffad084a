"""What a recipe is: data, namely an ordered list of steps, each with its command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Figure:
    """A figure that a step measures, and what the paper reports for it.

    Attributes:
        name: what is measured, such as "CAMs" or "DeepLab, val"; figures of one name stand side by side.
        row: whose: "baseline", "+ SemPLeS", or a row of an ablation.
        table: of the paper, such as "Table 1".
        paper: mIoU [%] that the paper reports, or None.
        file: where the measured one is read: an `eval.json` of `semples eval`, or a log file; left out, the log
            of the step.
        title: of the evaluation in `eval.json`; left out, its only one.
        pattern: regular expression whose first group is the mIoU, for logs; the last match counts.
        factor: that makes percent of what the pattern finds.
        note: what tells the two apart, such as another split or a host's improved version.
    """

    name: str
    row: str
    table: str
    paper: float | None = None
    file: str = ""
    title: str = ""
    pattern: str = ""
    factor: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One command of a recipe. Texts hold placeholders such as `{voc}`, see `Recipe`.

    Attributes:
        name: unique in its recipe, for `--only` and `--from`.
        about: one line, what it does.
        command: words as in a shell, which is not used: no pipes, no variables. `python` and `semples` are those of
            this environment. Empty for what nobody can do for you, such as a download behind a form.
        folder: where it runs.
        needs: files or folders that have to be there before.
        makes: files or folders that are there, and not empty, when it is done.
        source: where the files of a step without a command come from, or what to do; one without `makes` is told, and
            nothing waits for it.
        hours: on one modern GPU, an estimate until measured; 0 below five minutes.
        figures: what it measures.
        once: whether it runs once for all seeds.
        resume: a file that an interrupted run leaves, and the options with which the command goes on from it.
        only: "full" or "miniature", for a step that the other kind of run leaves out.
        placed: whether what it makes holds paths of the folder `runs`, such as links: where that was moved it runs
            again, and nothing that builds on it does.
    """

    name: str
    about: str
    command: str = ""
    folder: str = "{checkout}"
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    source: str = ""
    hours: float = 0.0
    figures: tuple[Figure, ...] = ()
    once: bool = False
    resume: tuple[str, str] | None = None
    only: str = ""
    placed: bool = False


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps, and what their placeholders stand for.

    Every recipe knows these placeholders: `{runs}` (where everything is written), `{shared}` (this recipe's folder in
    it), `{out}` (this seed's folder in that), `{checkout}` (its clone of the host), `{seed}`, and those of `paths` and
    `values`.

    Attributes:
        name: such as "weaktr-voc".
        host: as `semples run` and `semples patch` call it.
        about: one line.
        table: of the paper, that it ends with.
        steps: in order.
        paths: placeholder -> default path below the working folder, which the user may set; each is made absolute.
            Values that look like a URL (`https://...`) stay as they are.
        values: placeholder -> text, which the user may set as well. A word of a command that is such a placeholder
            alone becomes as many words as the text holds, none included.
        miniature: values that a miniature run replaces, so that every step takes minutes on a CPU.
        help: placeholder -> what it is, for `recipe show` and for the settings file.
    """

    name: str
    host: str
    about: str
    table: str
    steps: tuple[Step, ...]
    paths: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    miniature: Mapping[str, str] = field(default_factory=dict)
    help: Mapping[str, str] = field(default_factory=dict)

    def steps_of(self, miniature: bool) -> tuple[Step, ...]:
        """The steps of a full run, or of a miniature one."""
        left_out = "full" if miniature else "miniature"
        return tuple(step for step in self.steps if step.only != left_out)


def fill(text: str, settings: Mapping[str, str]) -> str:
    """`text` with its placeholders replaced.

    >>> fill("{out}/cams of {seed}", {"out": "/runs", "seed": "0"})
    '/runs/cams of 0'
    """
    return PLACEHOLDER.sub(lambda match: settings[match[1]], text)


def words_of(command: str, settings: Mapping[str, str], values: Mapping[str, str]) -> list[str]:
    """The words of a command; a word that is a placeholder of `values` alone becomes as many words as its text holds.

    >>> settings = {"list": "/my images/a.txt", "size": "--epochs 1"}
    >>> words_of("main.py --list {list} {size}", settings, {"size": "--epochs 1"})
    ['main.py', '--list', '/my images/a.txt', '--epochs', '1']
    """
    words: list[str] = []
    for word in shlex.split(command):
        match = PLACEHOLDER.fullmatch(word)
        whole = match is not None and match[1] in values
        parts = shlex.split(values[match[1]]) if match and whole else [word]
        words += [fill(part, settings) for part in parts]
    return words


def placeholders(step: Step) -> Iterator[str]:
    """Names of all placeholders of a step."""
    texts = [step.command, step.folder, *step.needs, *step.makes, *(step.resume or ())]
    texts += [figure.file for figure in step.figures]
    for text in texts:
        yield from PLACEHOLDER.findall(text)


def options_of(step: Step, recipe: Recipe) -> dict[str, str]:
    """The values that hold whole options of a step's command, such as `{device}`, and what they are."""
    words = shlex.split(step.command)
    found = {}
    for before, word in zip(["", *words], words, strict=False):
        match = PLACEHOLDER.fullmatch(word)
        if match and match[1] in recipe.values and match[1] in recipe.help and not before.startswith("--"):
            found[match[1]] = recipe.help[match[1]]
    return found
