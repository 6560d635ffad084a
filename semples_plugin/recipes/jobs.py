"""The steps of a recipe for all seeds, and what is known of each: done, stale, or still to do."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from semples_plugin.recipes.recipe import Recipe, Step
from semples_plugin.recipes.settings import Settings, settings_for
from semples_plugin.utils.atomic_files import replacing

DONE, FAILED, INTERRUPTED, UNFINISHED = "done", "failed", "interrupted", "not finished"
MOVED = "the folder was moved, and what it made holds paths"
"""Why a `placed` step runs again that nothing else has made stale."""


@dataclass
class Record:
    """What is known of the last run of a job, kept as JSON.

    Attributes:
        command, folder: what was run, and where.
        status: "done", "failed", "interrupted", or "not finished" while it runs and after a kill.
        seconds: of all runs of this very command since it was last begun anew.
        ended: ISO time in UTC.
        environment: versions, host's commit, device.
    """

    command: list[str]
    folder: str
    status: str
    seconds: float
    ended: str
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A step for one seed, or for all."""

    step: Step
    settings: Settings

    @property
    def key(self) -> str:
        """Unique in the recipe: the step's name, and the seed where it runs for each."""
        return self.step.name if self.step.once else f"{self.step.name}-seed{self.settings.seed}"

    @property
    def words(self) -> list[str]:
        """Of its command, as printed and as executed; empty where the user has to do it."""
        return self.settings.words(self.step.command)

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return self.settings.path(self.step.folder)

    @property
    def line(self) -> str:
        """The command as the user would type it."""
        return shlex.join(self.words)

    @property
    def needs(self) -> list[Path]:
        """What has to be there before."""
        return [self.settings.path(text) for text in self.step.needs]

    @property
    def makes(self) -> list[Path]:
        """What is there afterwards."""
        return [self.settings.path(text) for text in self.step.makes]

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.settings.folder / "steps" / f"{self.key}.log"

    @property
    def record_file(self) -> Path:
        """Where its record is kept."""
        return self.log.with_suffix(".json")

    def read_record(self) -> Record | None:
        """Its record; None where it never ran, or the file is damaged, so that it runs again."""
        try:
            record = Record(**json.loads(self.record_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        texts = (record.folder, record.status, record.ended)
        is_whole = isinstance(record.command, list) and isinstance(record.environment, dict)
        is_number = isinstance(record.seconds, (int, float))
        return record if is_whole and is_number and all(isinstance(text, str) for text in texts) else None

    def write_record(self, record: Record) -> None:
        """Keeps the record."""
        with replacing(self.record_file) as temporary:
            temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def jobs_of(recipe: Recipe, given: Mapping[str, str], seeds: int, miniature: bool) -> list[Job]:
    """All jobs in order: one seed after the other, and what serves all of them with the first."""
    return [
        Job(step, settings)
        for seed in range(seeds)
        for settings in [settings_for(recipe, given, seed, miniature)]
        for step in recipe.steps_of(miniature)
        if seed == 0 or not step.once
    ]


def exists(path: Path) -> bool:
    """Whether a file or folder is there and not empty."""
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0


def makers(job: Job, jobs: Sequence[Job], needs: Sequence[Path] | None = None) -> list[Job]:
    """The jobs before this one that make what it needs, or those of its `needs` that are given."""
    needs = job.needs if needs is None else needs
    before = jobs[: jobs.index(job)]
    return [other for other in before if any(_lies_in(need, made) for need in needs for made in other.makes)]


def _lies_in(need: Path, made: Path) -> bool:
    """Whether one is the other, or a folder around it."""
    return need == made or made in need.parents or need in made.parents


def why_to_run(job: Job, jobs: Sequence[Job]) -> str:
    """Why a job has to run; empty where it is done."""
    absent = [path for path in job.makes if not exists(path)]
    if not job.words:
        return f"{absent[0]} isn't there" if absent else "" if job.makes else "nothing shows whether you did it"
    record = job.read_record()
    if record is None:
        return "it never ran"
    if record.status != DONE:
        return f"it was {record.status}"
    if change := describe_change(record, job):
        return f"its command changed: {change}"
    newer = newer_makers(job, record, jobs)
    if job.step.placed and record.folder != str(job.folder) and not newer:
        return MOVED
    if absent:
        return f"{absent[0]} is gone"
    return f"{newer[0].key} ran again" if newer else ""


def describe_change(record: Record, job: Job) -> str:
    """What differs between the command of the last run and that of the next; empty where nothing does.

    That the folder `runs` was moved since, with this record in it, is no difference.
    """
    before = _where_runs_was(record, job)
    if before is None:
        return f"it ran in {record.folder}, and would run in {job.folder}"
    path = re.compile(rf"(?<![\w./-]){re.escape(before)}(?![\w.-])")
    now = [*job.words, *[""] * len(record.command)]
    moved = [
        new if path.sub(lambda _: job.settings.texts["runs"], old) == new else old
        for old, new in zip(record.command, now, strict=False)
    ]
    for old_option, option in itertools.zip_longest(_options(moved), _options(job.words)):
        if old_option != option:
            return f"{shlex.join(old_option or ()) or 'nothing'} became {shlex.join(option or ()) or 'nothing'}"
    return ""


def _where_runs_was(record: Record, job: Job) -> str | None:
    """The folder `runs` when the record was written; None where the job ran elsewhere in it, or would run outside."""
    runs, folder = Path(job.settings.texts["runs"]), Path(record.folder)
    if runs not in job.folder.parents:
        return str(runs) if folder == job.folder else None
    below = job.folder.relative_to(runs).parts
    return str(Path(*folder.parts[: -len(below)])) if folder.parts[-len(below) :] == below else None


def _options(words: Sequence[str]) -> list[list[str]]:
    """The words of a command, those behind an option together with it."""
    groups: list[list[str]] = []
    for word in words:
        if groups and groups[-1][0].startswith("-") and not word.startswith("-"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def seeds_on_disk(folder: Path) -> int:
    """How many seeds have run, at least in part, in a recipe's folder; 1 where none has."""
    seeds = [re.fullmatch(r".+-seed(\d+)", path.stem) for path in (folder / "steps").glob("*.json")]
    return max((int(match[1]) + 1 for match in seeds if match), default=1)


def stale_jobs(jobs: Sequence[Job]) -> dict[str, str]:
    """Key of each job that is not done, or builds on one that isn't, and why."""
    stale: dict[str, str] = {}
    for job in jobs:
        why = why_to_run(job, jobs)
        waits = [maker.key for maker in makers(job, jobs) if stale.get(maker.key, MOVED) != MOVED]
        if why or waits:
            stale[job.key] = why or f"{waits[0]} has to run first"
    return stale


def newer_makers(job: Job, record: Record, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that made what this one needs after it ended; jobs run one after the other."""
    made = [(maker, maker.read_record()) for maker in makers(job, jobs)]
    return [maker for maker, other in made if other is not None and other.ended > record.ended]


def executable(words: Sequence[str]) -> list[str]:
    """The words with this environment's Python in place of `python` and `semples`."""
    if words[0] == "semples":
        return [sys.executable, "-m", "semples_plugin", *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else list(words)
