"""Judgements and prompts as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from semples_plugin.evaluation.comparison import MIN_GAIN, MIN_IMAGES_FOR_BOOTSTRAP, Comparison
from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.prompt_quality import SEPARATED, describe_quality

if TYPE_CHECKING:  # it imports torch
    from semples_plugin.viz.prompt_maps import NearWords


UNSEEN = "not learned, as no image showed this class"
COLUMNS = {
    "label": "cosine of the prompt and its class's own label text; lower is safer",
    "background": "mean cosine with the backgrounds that it was learned from; higher is better",
    "foreground": "mean cosine with their foregrounds; should be below the former",
    "separation": "share of the pairs whose background is nearer than their foreground; below "
    f"{SEPARATED:g} the prompt describes the object",
}
"""What the figures of a learned prompt mean."""


def counted(number: int, what: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def shorten(names: Iterable[str]) -> str:
    """The first five."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def describe_judgement(evaluation: FolderEvaluation) -> str:
    """mIoU, over how many classes and images, and how the background was scored."""
    iou = evaluation.sweep.iou[evaluation.chosen]
    classes = f"{int((iou >= 0).sum())} of {len(iou)} classes"
    on = describe_images(evaluation, evaluation.split)
    return f"mIoU {100 * evaluation.miou:.2f} % over {classes} on {on}; {describe_setting(evaluation)}"


def describe_images(evaluation: FolderEvaluation, split: str | None) -> str:
    """How many images were judged, of which list, called `split`, or of the folder."""
    judged = len(evaluation.counts)
    of = judged + sum(map(len, (evaluation.failed, evaluation.missing, evaluation.left_out)))
    images = f"{judged} of the {of} images" if of > judged else counted(judged, "image")
    return f"{images} of {split or 'the folder'}"


def describe_setting(evaluation: FolderEvaluation) -> str:
    """How the background was scored, and on what the setting was chosen."""
    setting, how = evaluation.settings[evaluation.chosen], "as given"
    if evaluation.background == "none":
        return "masks as they are"
    what = f"(1 - m)^{setting:g}" if evaluation.background == "power" else f"a constant {setting:g}"
    if evaluation.chosen_here:
        how = "the best on these masks"
        if evaluation.background == "constant" and evaluation.chosen in (0, len(evaluation.settings) - 1):
            how += ", and the last that was tried: do the CAMs span 0 to 1, and are few of them 0 everywhere?"
    return f"background score {what}, {how}"


def describe_gain(comparison: Comparison) -> str:
    """The gain with its interval, and whether it is more than noise."""
    gain = comparison.miou[1] - comparison.miou[0]
    low, high = 100 * comparison.low, 100 * comparison.high
    if comparison.images < MIN_IMAGES_FOR_BOOTSTRAP:
        verdict = f"too few images to tell it from luck, for which it takes {MIN_IMAGES_FOR_BOOTSTRAP}"
    elif low <= 0 <= high:
        verdict = "the interval holds 0: such a difference can be luck"
    elif abs(gain) < MIN_GAIN:
        verdict = f"less than {100 * MIN_GAIN:g} points, too little to speak of, whatever the interval"
    else:
        verdict = f"{'better' if gain > 0 else 'worse'} on nearly every resampled set of images"
    images = counted(comparison.images, "image")
    return (
        f"{100 * gain:+.2f} points of mIoU on {images}; 95 % bootstrap interval {low:+.2f} to {high:+.2f}, over images "
        f"and not over training seeds: {verdict}"
    )


def format_classes(evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> str:
    """IoU per class of each evaluation, the last's gain over the first, its precision and recall, in percent.

    A last line says whose the last columns are, where there are several evaluations.
    """
    last = evaluations[-1]
    columns = [100 * one.sweep.iou[one.chosen] for one in evaluations]
    if len(columns) > 1:
        columns.append(columns[-1] - columns[0])
    columns += [100 * last.sweep.precision[last.chosen], 100 * last.sweep.recall[last.chosen]]
    heads = [*titles, *(["gain"] if len(evaluations) > 1 else []), "precision", "recall"]
    widths = [max(len(head), 7) for head in heads]
    lines = [f"{'IoU [%]':16}" + "".join(f"  {head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for k, name in enumerate(("background", *last.class_names)):
        cells = [format_percent(column[k]) for column in columns]
        lines.append(f"{name:16}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    if len(evaluations) > 1:
        lines.append(f"The gain is that of {titles[-1]} over {titles[0]}; precision and recall are {titles[-1]}'s.")
    return "\n".join(lines)


def format_percent(value: float, sign: str = "") -> str:
    """One decimal, "-" for NaN; what rounds to 0 has no sign."""
    if np.isnan(value):
        return "-"
    return format(value, f"{sign}.1f") if abs(value) >= 0.05 else "0.0"


def format_words(words: Sequence[NearWords]) -> str:
    """A line per class with its figures and nearest words, what the figures mean, and whether (b) went well."""
    lines = [f"{'prompt of':16}  {'  '.join(COLUMNS)}  nearest words"]
    for one in words:
        figures = "  ".join(f"{value:>{len(name)}}" for name, value in zip(COLUMNS, one.columns, strict=True))
        near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in one.words)
        near = UNSEEN if one.unseen else near
        lines.append(f"{one.class_name:16}  {figures}  {near}")
    lines += ["", *(f"{name}: {meaning}" for name, meaning in COLUMNS.items()), "", describe_words(words)]
    return "\n".join(lines)


def describe_words(words: Sequence[NearWords]) -> str:
    """Whether (b) went well, by what the prompts' file says."""
    return describe_quality([one.quality for one in words if one.quality is not None])
