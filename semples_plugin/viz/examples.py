"""Images beside their CAMs, before and after: heat maps, and maps of what is right and wrong."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.cam_files import list_cams, read_cams
from semples_plugin.data.images import IGNORED, find_image, find_mask, read_image, read_mask
from semples_plugin.data.pseudo_masks import Recipe, to_labels
from semples_plugin.evaluation.folders import FolderEvaluation, image_iou
from semples_plugin.viz.overlays import (
    CLASSES,
    ERRORS,
    Colour,
    Picture,
    draw_grid,
    draw_legend,
    outline_labels,
    overlay_cam,
    overlay_errors,
    overlay_mask,
)

OUTLINES = "CAMs: the highest of all classes, red is 1; outlines are what is predicted, in the colour of its class"


def draw_images(
    evaluations: Sequence[FolderEvaluation], names: Sequence[str], images: str | Path, titles: Sequence[str]
) -> Picture:
    """A grid: image, mask, and for each evaluation the highest CAM, with outlines of the classes that win at the
    chosen setting, and its errors.

    Args:
        evaluations: of the same masks; one, or more to compare.
        names: of the images, one row each.
        images: folder of the images.
        titles: of the evaluations.

    Raises:
        ValueError: where none of them can be drawn; an image that can't is left out with a warning.
    """
    captions = ["image", "mask"]
    for title in titles:
        captions += [title, f"{title}, errors"]
    rows = {}
    for name in names:
        try:
            rows[name] = draw_image(evaluations, name, images)
        except (OSError, ValueError) as error:
            warnings.warn(str(error), stacklevel=2)
    if not rows:
        raise ValueError("there is no image to draw")
    grid = draw_grid(
        list(rows.values()),
        captions,
        row_captions=[f"{name}: {describe_iou(evaluations, name)}" for name in rows],
        keys=[class_colours(evaluations, name) for name in rows],
    )
    legends = [draw_legend(grid.shape[1], OUTLINES, {}), draw_legend(grid.shape[1], "errors:", ERRORS)]
    return np.concatenate([grid, *legends])


def draw_image(evaluations: Sequence[FolderEvaluation], name: str, images: str | Path) -> list[Picture]:
    """One row of `draw_images`, in the size of the image."""
    image = read_image(find_image(images, name))
    ground_truth = read_mask(find_mask(evaluations[0].ground_truth, name))
    if image.shape[:2] != ground_truth.shape:
        raise ValueError(f"{name}: the image has {image.shape[:2]} pixels, its mask {ground_truth.shape}")
    palette = np.zeros((256, 3), np.uint8)
    for class_name, colour in class_colours(evaluations, name).items():
        palette[evaluations[0].class_names.index(class_name) + 1] = colour
    row = [image, overlay_mask(image, np.where(ground_truth == IGNORED, 0, ground_truth), palette=palette)]
    for evaluation in evaluations:
        highest, labels = _predict(evaluation, name, image.shape[:2])
        heat_map = outline_labels(overlay_cam(image, highest), labels, palette)
        row += [heat_map, overlay_errors(image, labels, ground_truth)]
    return row


def _predict(
    evaluation: FolderEvaluation, name: str, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The highest CAM of an image, and the labels at the chosen setting: both `[H, W]`, 0 where it has no CAMs."""
    cams = read_cams(list_cams(evaluation.folder, masks=True)[name])
    scores = cams.scores(*size)
    if not len(scores):
        return np.zeros(size, np.float32), np.zeros(size, np.uint8)
    setting = evaluation.settings[evaluation.chosen]
    recipe = Recipe(power=setting) if evaluation.background == "power" else Recipe(thresholds=(setting,))
    return np.max(scores, axis=0), to_labels(np.stack(scores), cams.class_index, recipe)


def class_colours(evaluations: Sequence[FolderEvaluation], name: str) -> dict[str, Colour]:
    """A colour for each class that an image's mask holds or an evaluation predicts in it, as `draw_image` uses them."""
    classes: set[int] = set()
    for evaluation in evaluations:
        counts = evaluation.counts[name]
        visible = (counts.annotated > 0) | (counts.predicted[:, evaluation.chosen] > 0)
        classes.update(counts.classes[visible].tolist())
    names = [evaluations[0].class_names[k - 1] for k in sorted(classes - {0})]
    return {class_name: CLASSES[i % len(CLASSES)] for i, class_name in enumerate(names)}


def describe_image(evaluations: Sequence[FolderEvaluation], name: str) -> str:
    """An image's name, the classes in its mask, and its IoU in each evaluation."""
    counts = evaluations[0].counts[name]
    present = [k for k, pixels in zip(counts.classes, counts.annotated, strict=True) if k and pixels]
    classes = ", ".join(evaluations[0].class_names[k - 1] for k in present) or "background alone"
    return f"{name} ({classes}): {describe_iou(evaluations, name)}"


def describe_iou(evaluations: Sequence[FolderEvaluation], name: str) -> str:
    """An image's IoU in each evaluation."""
    ious = [f"{100 * image_iou(evaluation, name):.0f}" for evaluation in evaluations]
    return f"IoU {' -> '.join(ious)} %"


def gain_of(evaluations: Sequence[FolderEvaluation], name: str) -> float:
    """The last evaluation's IoU of an image less the first's, in [-1, 1]; the IoU where there is a single one."""
    last = image_iou(evaluations[-1], name)
    return last - image_iou(evaluations[0], name) if len(evaluations) > 1 else last


def ranked(evaluations: Sequence[FolderEvaluation]) -> list[str]:
    """Names of the images that all evaluations have, from best to worst by `gain_of`."""
    names = [name for name in evaluations[0].counts if all(name in other.counts for other in evaluations)]
    return sorted(names, key=lambda name: (-gain_of(evaluations, name), name))
