"""mIoU over background scores, as a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.utils.atomic_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {"constant": "threshold: a constant background score", "power": "power p of the background score (1 - m)^p"}
_COLOURS = ("#8a8f98", "#0b6bcb", "#d1581b", "#1d7f4a", "#8d4bbb", "#b3261e")  # the one to beat, then the others


def colours(count: int) -> list[str]:
    """As many colours as there are evaluations, as hexadecimal RGB; one alone isn't grey."""
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)] if count > 1 else [_COLOURS[1]]


def draw_curve(evaluations: Sequence[FolderEvaluation], titles: Sequence[str], form: str) -> bytes:
    """The curves of evaluations, with the chosen setting of each as a dot; `form` is "png" or "svg".

    Constant background scores and powers have a panel each; masks, which have no such score, are lines across.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    present = {evaluation.background for evaluation in evaluations}
    kinds = [kind for kind in _LABELS if kind in present] or ["constant"]
    figure = Figure(figsize=(6.4 * len(kinds), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        for evaluation, title, colour in zip(evaluations, titles, colours(len(evaluations)), strict=True):
            if evaluation.background in (kind, "none"):
                _draw_evaluation(axes, evaluation, title, colour)
        axes.set(xlabel=_LABELS[kind], ylabel="mIoU [%]")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if form == "svg" else None
    figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


def _draw_evaluation(axes: Axes, evaluation: FolderEvaluation, title: str, colour: str) -> None:
    """A curve with a dot at the chosen setting, or, for masks, a line across."""
    settings, miou = evaluation.settings, 100 * evaluation.sweep.miou
    setting, value = settings[evaluation.chosen], miou[evaluation.chosen]
    if evaluation.background == "none":
        axes.axhline(value, color=colour, label=literal(f"{title}: {value:.1f}"))
        return
    marker = "." if len(settings) < 20 else None
    axes.plot(settings, miou, color=colour, label=literal(f"{title}: {value:.1f} at {setting:g}"), marker=marker)
    axes.plot(setting, value, "o", color=colour)


def literal(text: str) -> str:
    """A label that is shown literally: to matplotlib, $ begins a formula, and what begins with _ is no label."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def write_curve(path: str | Path, evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> None:
    """Writes the curves as a PNG."""
    with replacing(path) as temporary:
        temporary.write_bytes(draw_curve(evaluations, titles, "png"))
