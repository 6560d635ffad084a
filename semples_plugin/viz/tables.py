"""Evaluations and prompts as text for a terminal, and the figures that tables show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semples_plugin.evaluation.comparison import MIN_GAIN, MIN_IMAGES_FOR_BOOTSTRAP, Comparison
from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.prompt_quality import SEPARATED, describe_quality

if TYPE_CHECKING:  # it imports torch
    from semples_plugin.viz.prompt_maps import NearWords


UNSEEN = "not learned, as no image showed this class"
COLUMNS = {
    "label": "cosine of the prompt and its class's own label text",
    "background": "mean cosine with the backgrounds that it was learned from; higher is better",
    "foreground": "mean cosine with their foregrounds; should be below the former",
    "separation": "share of the pairs whose background is nearer than their foreground; below "
    f"{SEPARATED:g} the prompt describes the object",
}
"""What the figures of a learned prompt mean."""


@dataclass(frozen=True)
class ClassFigures:
    """A class in one or more evaluations at their chosen settings, in percent; NaN where `ThresholdSweep` has it.

    Attributes:
        name: of the class.
        iou: in each evaluation.
        precision, recall: in the last one.
    """

    name: str
    iou: tuple[float, ...]
    precision: float
    recall: float

    @property
    def gain(self) -> float | None:
        """The last evaluation's IoU less the first's, in points; None where there is a single one."""
        return self.iou[-1] - self.iou[0] if len(self.iou) > 1 else None


def class_figures(evaluations: Sequence[FolderEvaluation]) -> list[ClassFigures]:
    """Background and K classes in evaluations of the same classes."""
    last = evaluations[-1]
    ious = [100 * evaluation.sweep.iou[evaluation.chosen] for evaluation in evaluations]
    precision, recall = 100 * last.sweep.precision[last.chosen], 100 * last.sweep.recall[last.chosen]
    return [
        ClassFigures(name, tuple(float(iou[k]) for iou in ious), float(precision[k]), float(recall[k]))
        for k, name in enumerate(("background", *last.class_names))
    ]


def pluralize(number: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(names: Iterable[str]) -> str:
    """The first five names, and dots where there are more."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def describe_judgement(evaluation: FolderEvaluation) -> str:
    """mIoU, over how many classes and images, and how the background was scored."""
    iou = evaluation.sweep.iou[evaluation.chosen]
    classes = f"{int((iou >= 0).sum())} of {len(iou)} classes"
    images = describe_images(evaluation, evaluation.split)
    return f"mIoU {100 * evaluation.miou:.2f} % over {classes} on {images}; {describe_setting(evaluation)}"


def describe_images(evaluation: FolderEvaluation, split: str | None) -> str:
    """How many images were judged, of which list, called `split`, or of the folder."""
    judged = len(evaluation.counts)
    total = judged + len(evaluation.failed) + len(evaluation.missing) + len(evaluation.left_out)
    images = f"{judged} of the {total} images" if total > judged else pluralize(judged, "image")
    return f"{images} of {split or 'the folder'}"


def describe_setting(evaluation: FolderEvaluation) -> str:
    """How the background was scored, and on what the setting was chosen."""
    if evaluation.background == "none":
        return "masks as they are"
    setting = evaluation.settings[evaluation.chosen]
    score = f"(1 - m)^{setting:g}" if evaluation.background == "power" else f"a constant {setting:g}"
    if not evaluation.chosen_here:
        return f"background score {score}, as given"
    choice = "the best on these masks"
    if evaluation.background == "constant" and evaluation.chosen in (0, len(evaluation.settings) - 1):
        choice += ", and the last that was tried: do the CAMs span 0 to 1, and are few of them 0 everywhere?"
    return f"background score {score}, {choice}"


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
    images = pluralize(comparison.images, "image")
    return (
        f"{100 * gain:+.2f} points of mIoU on {images}; 95 % bootstrap interval {low:+.2f} to {high:+.2f}, "
        f"over images and not over training seeds: {verdict}"
    )


def format_classes(evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> str:
    """IoU per class of each evaluation, the last's gain over the first, its precision and recall, in percent.

    A last line says whose the last columns are, where there are several evaluations.
    """
    several = len(evaluations) > 1
    heads = [*titles, "gain", "precision", "recall"] if several else [*titles, "precision", "recall"]
    widths = [max(len(head), 7) for head in heads]
    lines = [_format_row("IoU [%]", heads, widths)]
    for row in class_figures(evaluations):
        gain = [] if row.gain is None else [row.gain]
        cells = [format_percent(value) for value in (*row.iou, *gain, row.precision, row.recall)]
        lines.append(_format_row(row.name, cells, widths))
    if several:
        lines.append(f"The gain is that of {titles[-1]} over {titles[0]}; precision and recall are {titles[-1]}'s.")
    return "\n".join(lines)


def _format_row(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"{name:16}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def format_percent(value: float, sign: str = "") -> str:
    """One decimal, "-" for NaN; what rounds to 0 has no sign."""
    if np.isnan(value):
        return "-"
    return format(value, f"{sign}.1f") if abs(value) >= 0.05 else "0.0"


def format_words(words: Sequence[NearWords]) -> str:
    """A line per class with its figures and nearest words, what the figures mean, and whether (b) went well."""
    lines = [f"{'prompt of':16}  {'  '.join(COLUMNS)}  nearest words"]
    for prompt in words:
        figures = "  ".join(f"{value:>{len(name)}}" for name, value in zip(COLUMNS, prompt.columns, strict=True))
        nearest = UNSEEN if prompt.unseen else ", ".join(f"{word} {cosine:.2f}" for word, cosine in prompt.words)
        lines.append(f"{prompt.class_name:16}  {figures}  {nearest}")
    lines += ["", *(f"{name}: {meaning}" for name, meaning in COLUMNS.items()), "", describe_words(words)]
    return "\n".join(lines)


def describe_words(words: Sequence[NearWords]) -> str:
    """Whether (b) went well, by what the prompts' file says."""
    quality = [prompt.quality for prompt in words if prompt.quality is not None]
    return describe_quality(quality, shared=all(prompt.shared for prompt in words))
