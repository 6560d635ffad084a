"""mIoU over background scores, as a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from semples_plugin.cams.folders import FolderEvaluation
from semples_plugin.files import replacing

COLOURS = ("#8a8f98", "#0b6bcb")  # before, after


def draw_curve(evaluations: Sequence[FolderEvaluation], titles: Sequence[str], form: str) -> bytes:
    """The curves of one or two evaluations, with the chosen setting of each as a dot; `form` is "png" or "svg"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for evaluation, title, colour in zip(evaluations, titles, COLOURS[-len(evaluations) :]):
        x, y = evaluation.settings, 100 * evaluation.sweep.miou
        t = evaluation.chosen
        axes.plot(x, y, color=colour, label=f"{title}: {y[t]:.1f} at {x[t]:g}", marker="." if len(x) < 20 else None)
        axes.plot(x[t], y[t], "o", color=colour)
    power = evaluations[0].background == "power"
    axes.set_xlabel("power p of the background score (1 - m)^p" if power else "background score")
    axes.set_ylabel("mIoU [%]")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def write_curve(path: str | Path, evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> None:
    """Writes the curves as a PNG."""
    with replacing(path) as temporary:
        temporary.write_bytes(draw_curve(evaluations, titles, "png"))
