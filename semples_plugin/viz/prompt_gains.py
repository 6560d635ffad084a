"""Whether the scores of (b) say which classes gain: each class's separation beside the change of its IoU."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from statistics import correlation
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.prompt_quality import SEPARATED
from semples_plugin.viz.curves import colours, literal
from semples_plugin.viz.tables import class_figures

if TYPE_CHECKING:  # it imports torch
    from semples_plugin.viz.prompt_maps import NearWords

MIN_CLASSES = 5
"""Of fewer classes even a perfect order is likely enough by chance."""

_MOST_NAMES = 25  # in the chart: of more classes those whose gain is the farthest from 0

_ORDERS = 10_000  # random ones, to compare with


class PromptGain(NamedTuple):
    """A class's separation after (b), in [0, 1], and the gain of its IoU in points."""

    class_name: str
    separation: float
    gain: float


def prompt_gains(evaluations: Sequence[FolderEvaluation], words: Sequence[NearWords]) -> list[PromptGain]:
    """The classes that have both figures, but for those whose IoU is 0 all along: they have nothing to lose.

    None where there is a single evaluation.
    """
    gains = {row.name: row.gain for row in class_figures(evaluations)[1:] if max(row.iou) > 0}
    measured = []
    for prompt in words:
        gain = gains.get(prompt.class_name)
        separation = None if prompt.quality is None else prompt.quality.after.separation
        if gain is not None and separation is not None and np.isfinite([gain, separation]).all():
            measured.append(PromptGain(prompt.class_name, separation, gain))
    return measured


def describe_prompt_gains(classes: Sequence[PromptGain]) -> str:
    """How well separation ranks the classes by their gain, and how often chance ranks them as well."""
    separations, gains = (np.array(values, np.float64) for values in list(zip(*classes, strict=True))[1:])
    if np.ptp(separations) == 0 or np.ptp(gains) == 0:
        return f"All {len(classes)} classes have the same separation or the same gain: there is nothing to rank."
    rho = rank_correlation(separations, gains)
    chance = share_of_orders(separations, gains)
    verdict = "such an order can be luck"
    if chance < 0.05:
        verdict = f"here the classes whose prompts are the best separated gained the {'most' if rho > 0 else 'least'}"
    return (
        f"Rank correlation (Spearman) of {len(classes)} classes {rho:+.2f}; {100 * chance:.0f} % of random orders are "
        f"as far from 0: {verdict}. That is one run: another seed moves classes by several points."
    )


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rho of two lists of numbers, neither of them constant; equal numbers share their mean rank."""
    return correlation(_ranks(a).tolist(), _ranks(b).tolist())


def share_of_orders(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The share of random orders of `b`, the same in each call, whose rho is as far from 0: a p-value."""
    ranks_a, ranks_b = (_ranks(values) - (len(values) + 1) / 2 for values in (a, b))
    generator = np.random.default_rng(0)
    orders = generator.permuted(np.tile(ranks_b, (_ORDERS, 1)), axis=1)
    return float((np.abs(orders @ ranks_a) >= abs(ranks_b @ ranks_a) - 1e-9).mean())


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the smallest; equal numbers have the mean of their ranks."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((2 * last - counts + 1) / 2)[position]


def draw_prompt_gains(classes: Sequence[PromptGain]) -> bytes:
    """A dot for each class, as an SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(0, color="#8a8f98", linewidth=0.8)
    axes.axvspan(0, 100 * SEPARATED, color="#8a8f98", alpha=0.1, linewidth=0)
    for each in sorted(classes, key=lambda each: -abs(each.gain))[:_MOST_NAMES]:
        right = each.separation > 0.7  # where a name to the right of its dot would leave the chart
        axes.annotate(
            literal(textwrap.shorten(each.class_name, 24, placeholder="...")),
            (100 * each.separation, each.gain),
            xytext=(-5 if right else 5, 3),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
        )
    _, separations, gains = zip(*classes, strict=True)
    axes.plot([100 * separation for separation in separations], gains, "o", color=colours(1)[0], markersize=5)
    axes.set(
        xlim=(0, 103),
        xlabel="separation: pairs whose background is nearer to the prompt than the object [%]",
        ylabel="gain in IoU [points]",
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()
