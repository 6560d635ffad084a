"""What the steps measured, beside the paper's figures."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semples_plugin.recipes.jobs import Job
from semples_plugin.recipes.recipe import Figure


@dataclass(frozen=True)
class Measurement:
    """A figure as one seed measured it.

    Attributes:
        seed: of the run.
        miou: in percent.
        setting: background score at which it was judged; None for pseudo masks and segmentation networks.
        split: list of the images that were judged, where it is known.
        chosen_here: whether the setting was chosen on the ground truth that judges it.
        images: how many were judged, where it is known.
    """

    seed: int
    miou: float
    setting: float | None = None
    split: str = ""
    chosen_here: bool = False
    images: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of the report: the paper's figure and what all seeds measured."""

    figure: Figure
    measurements: tuple[Measurement, ...]

    @property
    def mean(self) -> float | None:
        """Mean mIoU [%] over the seeds; None where nothing was measured yet."""
        return statistics.fmean(m.miou for m in self.measurements) if self.measurements else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds, in points; None below two seeds."""
        return statistics.stdev(m.miou for m in self.measurements) if len(self.measurements) > 1 else None


def rows_of(jobs: Sequence[Job], stale: Container[str]) -> list[Row]:
    """A row for each figure of the jobs' steps, in order; those of `stale`, see `stale_jobs`, measured nothing."""
    rows: dict[Figure, list[Measurement]] = {}
    for job in jobs:
        for figure in job.step.figures:
            measurements = rows.setdefault(figure, [])
            if job.key not in stale and job.words:
                measurement = _read(figure, job)
                measurements += [measurement] if measurement else []
    return [Row(figure, tuple(measurements)) for figure, measurements in rows.items()]


def _read(figure: Figure, job: Job) -> Measurement | None:
    """What a job measured; None where its file is gone or holds no such figure."""
    path = job.settings.path(figure.file) if figure.file else job.log
    try:
        text = path.read_text(errors="replace", encoding="utf-8")
        found = _search(figure, job, text) if figure.pattern else _take(figure, job, json.loads(text))
        return found if found is not None and math.isfinite(found.miou) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _search(figure: Figure, job: Job, log: str) -> Measurement | None:
    matches = re.findall(figure.pattern, log)
    return Measurement(job.settings.seed, figure.factor * float(matches[-1])) if matches else None


def _take(figure: Figure, job: Job, content: dict[str, Any]) -> Measurement:
    judged = content[figure.title or next(iter(content), "")]
    setting = None if judged["background"] == "none" else float(judged["chosen"])
    chosen_here, images = bool(judged["chosen on these masks"]), int(judged["images"])
    miou = 100 * float(judged["miou"])
    return Measurement(job.settings.seed, miou, setting, Path(judged["split"]).name, chosen_here, images)
