"""Failure strata as a table for a terminal, as rows of the report, and as a chart."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from semples_plugin.evaluation.comparison import MIN_GAIN, MIN_IMAGES_FOR_BOOTSTRAP
from semples_plugin.evaluation.regions import OBJECT
from semples_plugin.evaluation.strata import Interval, Score, Strata, Stratum
from semples_plugin.viz.curves import colours, literal
from semples_plugin.viz.tables import format_percent, pluralize, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = {
    "size": "size: share of the image [%]",
    "border": "border of the image",
    "contrast": "contrast to the surroundings [CIELAB]",
    "classes": "classes in the image",
}
_FEW = "*"  # marks strata of few images


class StratumBar(NamedTuple):
    """IoU [%] in one evaluation: its text, that of its interval, the bar's width in percent, and its colour."""

    text: str
    interval: str
    width: str
    colour: str


class StratumGain(NamedTuple):
    """A gain in points, with its interval; `direction` is "up" or "down", or "" where it is little or can be luck."""

    text: str
    interval: str
    direction: str


class StratumRow(NamedTuple):
    """A stratum in the report's table: bars, pooled IoU and recall [%] of all evaluations, gains over the first."""

    name: str
    number: str
    bars: list[StratumBar]
    pooled: list[str]
    recall: list[str]
    gains: list[StratumGain]


def format_strata(strata: Strata, titles: Sequence[str]) -> str:
    """A line for each stratum and evaluation, and what the figures mean."""
    width = max(len(name) for name, _ in _lines(strata)) + 2
    of = max(7, *map(len, titles))
    head = f"{'failure strata':{width}}  objects  images  {'':{of}}    IoU  95 % interval  pooled  recall"
    lines = [head + ("   gain  95 % interval" if len(titles) > 1 else "")]
    for name, stratum in _lines(strata):
        if stratum is None:
            lines.append(name)
            continue
        start = f"{name:{width}}  {stratum.objects:7}  {stratum.images:6}"
        for title, score in zip(titles, stratum.scores, strict=True):
            lines.append(f"{start}  {title:{of}}  {_figures(score)}")
            start = " " * len(start)
    return "\n".join([*lines, *describe_strata(strata)])


def describe_strata(strata: Strata) -> list[str]:
    """Sentences on what the figures are, and how far to trust them."""
    shown = [strata.every, *(stratum for group in strata.groups.values() for stratum in group)]
    notes = [
        f"An object is {OBJECT}. IoU and recall are means over objects, in percent; pooled is the IoU of their pixels "
        "together, in which large objects decide.",
        "Intervals are bootstraps over images, not over training seeds.",
    ]
    if len(shown[0].scores) > 1:
        notes[1] += f" One in twenty misses the truth by luck, and there are {len(shown)} strata."
    if any(stratum.is_small for stratum in shown):
        notes.append(f"{_FEW} fewer than {MIN_IMAGES_FOR_BOOTSTRAP} images: the interval is too narrow.")
    if "contrast" not in strata.groups:
        notes.append(
            "No strata of contrast: there was no image to read that shows an object and its surroundings; "
            "--images FOLDER names their folder."
        )
    if strata.failed:
        notes.append(f"{pluralize(len(strata.failed), 'image')} not measured: {shorten(strata.failed)}.")
    return notes


def strata_tables(strata: Strata, titles: Sequence[str]) -> dict[str, list[StratumRow]]:
    """The report's rows by what the strata are of; all objects come first, under an empty heading."""
    groups = {"": (strata.every,), **{GROUPS[name]: group for name, group in strata.groups.items()}}
    palette = colours(len(titles))
    return {heading: [_row(stratum, palette) for stratum in group] for heading, group in groups.items()}


def draw_strata(strata: Strata, titles: Sequence[str]) -> bytes:
    """IoU by stratum as an SVG: a panel for what the strata are of, a bar with its interval for each evaluation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = (len(strata.groups) + 1) // 2
    figure = Figure(figsize=(9.2, 2.5 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, sharey=True, squeeze=False).flatten()
    for axes, (name, group) in zip(panels, strata.groups.items(), strict=False):
        _draw_group(axes, group, titles)
        axes.set_title(GROUPS[name], fontsize=10, loc="left")
    for axes in panels[len(strata.groups) :]:
        axes.set_visible(False)
    for axes in panels[::2]:
        axes.set_ylabel("mean IoU [%]")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=len(titles), loc="outside upper right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def _draw_group(axes: Axes, group: Sequence[Stratum], titles: Sequence[str]) -> None:
    """Bars of the evaluations beside one another, at each stratum; lines are their intervals."""
    width = 0.8 / len(titles)
    for e, (title, colour) in enumerate(zip(titles, colours(len(titles)), strict=True)):
        places = [k + (e - (len(titles) - 1) / 2) * width for k in range(len(group))]
        scores = [stratum.scores[e] for stratum in group]
        axes.bar(places, [100 * score.iou for score in scores], 0.92 * width, color=colour, label=literal(title))
        for place, score in zip(places, scores, strict=True):
            axes.vlines(place, 100 * score.interval.low, 100 * score.interval.high, color="#1c2026", linewidth=1)
    labels = [f"{stratum.name.replace(' quarter', '')}{_mark(stratum)}\n{_span(stratum)}" for stratum in group]
    axes.set_xticks(range(len(group)), labels, fontsize=8.5)
    axes.set_ylim(0, 100)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _row(stratum: Stratum, palette: Sequence[str]) -> StratumRow:
    bars = [
        StratumBar(_percent(score.iou), _interval(score.interval), f"{100 * score.iou:.1f}", colour)
        for score, colour in zip(stratum.scores, palette, strict=True)
    ]
    gains = []
    for score in stratum.scores:
        if score.gain is not None:
            gain, interval = score.gain
            can_be_luck = stratum.is_small or interval.low <= 0 <= interval.high or abs(gain) < MIN_GAIN
            direction = "" if can_be_luck else "up" if gain > 0 else "down"
            gains.append(StratumGain(format_percent(100 * gain, "+"), _interval(interval, "+"), direction))
    number = f"{pluralize(stratum.objects, 'object')} in {pluralize(stratum.images, 'image')}"
    pooled = [_percent(score.pooled_iou) for score in stratum.scores]
    recall = [_percent(score.recall) for score in stratum.scores]
    return StratumRow(_name(stratum), number, bars, pooled, recall, gains)


def _lines(strata: Strata) -> Iterator[tuple[str, Stratum | None]]:
    """What stands at the start of a line: a heading, which has no stratum, or a stratum's name."""
    yield _name(strata.every), strata.every
    for name, group in strata.groups.items():
        yield GROUPS[name], None
        for stratum in group:
            yield f"  {_name(stratum)}", stratum


def _name(stratum: Stratum) -> str:
    span = _span(stratum)
    return f"{stratum.name}{_mark(stratum)}{': ' if span else ''}{span}"


def _span(stratum: Stratum) -> str:
    """The values of a quartile, in the unit of `GROUPS`."""
    if stratum.span is None:
        return ""
    low, high = (value * (100 if stratum.group == "size" else 1) for value in stratum.span)
    return f"{low:.3g} to {high:.3g}"


def _mark(stratum: Stratum) -> str:
    return f" {_FEW}" if stratum.is_small else ""


def _figures(score: Score) -> str:
    """The columns of the terminal's table from IoU on."""
    text = f"{_percent(score.iou):>5}  {_interval(score.interval):>13}  {_percent(score.pooled_iou):>6}"
    text += f"  {_percent(score.recall):>6}"
    if score.gain is not None:
        gain, interval = score.gain
        text += f"  {format_percent(100 * gain, '+'):>5}  {_interval(interval, '+'):>13}"
    return text


def _percent(value: float) -> str:
    return format_percent(100 * value)


def _interval(interval: Interval, sign: str = "") -> str:
    return " to ".join(format_percent(100 * bound, sign) for bound in interval)
