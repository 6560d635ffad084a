"""Judgements and prompts as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semples_plugin.cams.folders import FolderEvaluation
from semples_plugin.cams.prompt_views import NearWords


def format_classes(evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> str:
    """IoU per class of each evaluation, the gain, and precision and recall of the last, in percent."""
    last = evaluations[-1]
    columns = [100 * one.sweep.iou[one.chosen] for one in evaluations]
    if len(columns) == 2:
        columns.append(columns[1] - columns[0])
    columns += [100 * last.sweep.precision[last.chosen], 100 * last.sweep.recall[last.chosen]]
    heads = [*titles, *(["gain"] if len(evaluations) == 2 else []), "precision", "recall"]
    widths = [max(len(head), 7) for head in heads]
    lines = [f"{'IoU [%]':16}" + "".join(f"  {head:>{width}}" for head, width in zip(heads, widths))]
    for k, name in enumerate(("background", *last.class_names)):
        cells = ["-" if np.isnan(column[k]) else f"{column[k]:.1f}" for column in columns]
        lines.append(f"{name:16}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths)))
    return "\n".join(lines)


def format_words(words: Sequence[NearWords]) -> str:
    """A line per class: cosine with its own label and background, and the nearest words."""
    lines = [f"{'prompt of':16}  label  background  nearest words"]
    for one in words:
        background = "-" if one.background is None else f"{one.background:.2f}"
        near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in one.words)
        lines.append(f"{one.class_name:16}  {one.label:5.2f}  {background:>10}  {near}")
    return "\n".join(lines)
