"""The report of a recipe: the paper's figures beside the measured ones, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from semples_plugin.recipes.jobs import Job, stale_jobs
from semples_plugin.recipes.measured import Row, rows_of
from semples_plugin.recipes.recipe import Recipe
from semples_plugin.recipes.show import wrapped
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.viz.pages import render, write_page


def report(recipe: Recipe, jobs: Sequence[Job], miniature: bool) -> dict[str, Any]:
    """Everything that the report says, ready for `json.dumps`."""
    stale = stale_jobs(jobs)
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "table": recipe.table,
        "miniature": miniature,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "figures": [_figure(row) for row in _side_by_side(rows_of(jobs, stale))],
        "steps": [_step(job, stale) for job in jobs],
        "environments": _environments(jobs),
    }


def write_report(content: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes `report.json` and `report.html` into the recipe's folder, and returns their paths."""
    paths = folder / "report.json", folder / "report.html"
    with replacing(paths[0]) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_page(paths[1], _page(content))
    return paths


def format_rows(content: dict[str, Any]) -> str:
    """The figures as a table for the terminal."""
    lines = [("figure", "row", "paper", "measured", "judged at")]
    for figure in content["figures"]:
        lines.append(
            (
                figure["name"],
                figure["row"],
                "-" if figure["paper"] is None else f"{figure['paper']:.1f} ({figure['table']})",
                describe_measured(figure),
                describe_judgement(figure),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def describe_measured(figure: dict[str, Any]) -> str:
    """Mean mIoU [%], its deviation over seeds, and how many there are."""
    if figure["mean"] is None:
        return "not yet"
    count = len(figure["measured"])
    spread = "" if figure["deviation"] is None else f" ± {figure['deviation']:.1f}"
    return f"{figure['mean']:.1f}{spread} ({count} seed{'s' if count > 1 else ''})"


def describe_judgement(figure: dict[str, Any]) -> str:
    """Background score, images, and whether the score was chosen on them."""
    words = []
    for measurement in figure["measured"][:1]:
        if measurement["split"]:
            images = "" if measurement["images"] is None else f", {measurement['images']} images"
            words.append(f"{measurement['split']}{images}")
    settings = sorted({m["setting"] for m in figure["measured"] if m["setting"] is not None})
    if settings:
        where = "chosen there" if any(m["chosen_here"] for m in figure["measured"]) else "chosen elsewhere"
        words.append(f"background score {', '.join(f'{setting:g}' for setting in settings)}, {where}")
    return "; ".join(words)


def _side_by_side(rows: Sequence[Row]) -> list[Row]:
    """The rows with figures of one name next to one another, in the order of their first."""
    names = list(dict.fromkeys(row.figure.name for row in rows))
    return sorted(rows, key=lambda row: names.index(row.figure.name))


def _figure(row: Row) -> dict[str, Any]:
    figure = row.figure
    return {
        "name": figure.name,
        "row": figure.row,
        "table": figure.table,
        "paper": figure.paper,
        "note": figure.note,
        "measured": [asdict(measurement) for measurement in row.measurements],
        "mean": row.mean,
        "deviation": row.deviation,
    }


def _step(job: Job, stale: Mapping[str, str]) -> dict[str, Any]:
    record = job.read_record()
    return {
        "step": job.key,
        "about": job.step.about,
        "folder": str(job.folder),
        "command": job.line,
        "printed": wrapped(job.words) if job.words else "",
        "source": job.step.source,
        "state": stale.get(job.key, "done"),
        "hours": None if record is None else record.seconds / 3600,
        "expected hours": job.step.hours,
        "ended": None if record is None else record.ended,
    }


def _environments(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The environments in which steps ran, each once, with its steps; steps outside of a checkout have no commit."""
    environments: dict[str, dict[str, Any]] = {}
    for job in jobs:
        record = job.read_record()
        if record is not None and record.environment:
            versions = {name: value for name, value in record.environment.items() if name != "commit"}
            new = {**versions, "commits": [], "steps": []}
            environment = environments.setdefault(json.dumps(versions, sort_keys=True), new)
            environment["steps"].append(job.key)
            commit = record.environment.get("commit")
            environment["commits"] += [commit] if commit and commit not in environment["commits"] else []
    return list(environments.values())


def _page(content: dict[str, Any]) -> str:
    notes = list(dict.fromkeys(figure["note"] for figure in content["figures"] if figure["note"]))
    figures = [
        {
            **figure,
            "value": describe_measured(figure),
            "judgement": describe_judgement(figure),
            "mark": notes.index(figure["note"]) + 1 if figure["note"] else "",
        }
        for figure in content["figures"]
    ]
    values = [(figure["name"], figure["mean"]) for figure in figures if figure["mean"] is not None]
    equal = len(set(values)) < len(values)
    hours = sum(step["hours"] or 0 for step in content["steps"])
    done = sum(step["state"] == "done" for step in content["steps"])
    return render(
        "recipe.html.jinja", **{**content, "figures": figures}, notes=notes, hours=hours, done=done, equal=equal
    )
