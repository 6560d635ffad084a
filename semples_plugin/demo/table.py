"""What CAMs are worth in the demo's world: as figures, as a table, in words and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semples_plugin.demo.data import OBJECTS, Scenes
from semples_plugin.demo.rows import ROWS
from semples_plugin.evaluation.iou import CamEvaluation
from semples_plugin.viz.overlays import draw_grid, overlay_cam, overlay_mask

CamsOf = Callable[[slice], Tensor]
"""Gives the raw CAMs `[n, K, h, w]` of the scenes in a slice."""

THRESHOLDS = np.linspace(0.02, 0.98, 49)


@dataclass(frozen=True)
class Judgement:
    """What CAMs are worth on scenes with exact masks.

    Attributes:
        miou: over 8 objects and background at the best threshold, in percent.
        threshold: the best one.
        coverage: mean CAM over the pixels of its object, in [0, 1].
        context: mean CAM over the pixels of its object's own context: the false activation, in [0, 1].
    """

    miou: float
    threshold: float
    coverage: float
    context: float


def judge(cams_of: CamsOf, scenes: Scenes) -> Judgement:
    """Compares the CAMs of the present classes with the exact masks of objects and contexts.

    Args:
        cams_of: gives the raw CAMs `[n, K, h, w]` of the scenes in a slice.
        scenes: N of them.
    """
    evaluation = CamEvaluation(len(OBJECTS), THRESHOLDS)
    on_object, on_context = [], []
    for part in slices(len(scenes)):
        for i, cams in enumerate(normalized_cams(cams_of, scenes, part), part.start):
            present = np.flatnonzero(scenes.labels[i])
            evaluation.update(cams[present], present.tolist(), scenes.objects[i])
            for k in present:
                on_object.append(cams[k][scenes.objects[i] == k + 1])
                on_context.append(cams[k][scenes.contexts[i] == k + 1])
    sweep = evaluation.compute()
    return Judgement(
        100 * float(sweep.miou[sweep.best]),
        float(sweep.thresholds[sweep.best]),
        float(np.concatenate(on_object).mean()),
        float(np.concatenate(on_context).mean()),
    )


def slices(count: int) -> Iterator[slice]:
    """Slices of at most 100 scenes, which together are all of them."""
    for start in range(0, count, 100):
        yield slice(start, min(start + 100, count))


@torch.no_grad()
def normalized_cams(cams_of: CamsOf, scenes: Scenes, part: slice) -> np.ndarray:
    """ReLU CAMs of a slice of scenes divided by their maxima, at the scenes' resolution: `[n, K, H, W]` in [0, 1]."""
    cams = F.interpolate(cams_of(part).relu(), scenes.images.shape[1:3], mode="bilinear", align_corners=False)
    return (cams / cams.amax((2, 3), keepdim=True).clamp(min=1e-12)).cpu().numpy()


def format_table(rows: Mapping[str, Sequence[Judgement]]) -> str:
    """The rows, by their names in `ROWS`, with mean and standard deviation over the seeds."""
    seeds = len(next(iter(rows.values())))
    figures = "one seed" if seeds == 1 else f"mean of {seeds} seeds (standard deviation)"
    lines = [f"{figures:42}  mIoU [%]      coverage      context activation"]
    for name, judgements in rows.items():
        cells = (
            _format_cell([judgement.miou for judgement in judgements], decimals=1),
            _format_cell([judgement.coverage for judgement in judgements], decimals=2),
            _format_cell([judgement.context for judgement in judgements], decimals=2),
        )
        lines.append(f"{ROWS[name].title:42}  " + "  ".join(f"{cell:12}" for cell in cells).rstrip())
    return "\n".join(lines)


def _format_cell(values: Sequence[float], decimals: int) -> str:
    spread = f" ({np.std(values, ddof=1):.{decimals}f})" if len(values) > 1 else ""
    return f"{np.mean(values):5.{decimals}f}{spread}"


def explain(rows: Mapping[str, Sequence[Judgement]]) -> str:
    """Two sentences on what the table shows, whatever it shows."""
    miou = {name: np.array([judgement.miou for judgement in judgements]) for name, judgements in rows.items()}
    matching = miou["match"] - miou["baseline"]
    refinement = miou["full"] - miou["match"]
    learning = miou["full"] - miou["unlearned"]
    baseline, matched, full = (
        float(np.mean([judgement.context for judgement in rows[name]])) for name in ("baseline", "match", "full")
    )
    falls = "falls" if baseline > matched > full else "does not fall"
    return (
        f"Matching image regions to their label changes the CAMs' mIoU by {matching.mean():+.1f} points, refinement "
        f"with background prompts learned from images and labels alone by a further {refinement.mean():+.1f} (better "
        f"in {(refinement > 0).sum()} of {len(refinement)} seeds; {learning.mean():+.1f} over prompts that were not "
        f"learned). The activation of co-occurring backgrounds {falls} at each step, "
        f"from {baseline:.2f} over {matched:.2f} to {full:.2f}."
    )


def draw_cams(scenes: Scenes, stages: Mapping[str, CamsOf]) -> np.ndarray:
    """Image, mask and the CAMs of every stage, for scenes with one object, six at most, each of another class."""
    single = np.flatnonzero(scenes.labels.sum(1) == 1)
    classes, positions = np.unique(scenes.labels[single].argmax(1), return_index=True)
    rows = []
    for i, k in list(zip(single[positions].tolist(), classes.tolist(), strict=True))[:6]:
        image = scenes.images[i]
        cams = [normalized_cams(cams_of, scenes, slice(i, i + 1))[0, k] for cams_of in stages.values()]
        rows.append([image, overlay_mask(image, scenes.objects[i]), *(overlay_cam(image, cam) for cam in cams)])
    return draw_grid(rows, ["image", "mask", *stages])
