"""The demo's test scenes and CAMs as files, as a host would have them, and the report on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from semples_plugin.cams.drawing import voc_palette, write_picture
from semples_plugin.cams.files import Cams, write_cams
from semples_plugin.cams.folders import evaluate_folder
from semples_plugin.cams.prompt_views import nearest_words
from semples_plugin.cams.report import prompt_panels, write_report
from semples_plugin.clip import FrozenClip
from semples_plugin.demo.data import CONTEXTS, OBJECTS, Scenes
from semples_plugin.files import replacing
from semples_plugin.prompts import BackgroundPrompts


def write_scenes(folder: Path, scenes: Scenes) -> None:
    """`images/`, `masks/` and `classes.txt`, as data sets in VOC's layout have them."""
    from PIL import Image

    for i, (image, mask) in enumerate(zip(scenes.images, scenes.objects)):
        write_picture(folder / "images" / f"{i:04}.png", image)
        with replacing(folder / "masks" / f"{i:04}.png") as temporary:
            picture = Image.fromarray(mask, mode="P")
            picture.putpalette(voc_palette().flatten().tolist())
            picture.save(temporary, format="PNG")
    with replacing(folder / "classes.txt") as temporary:
        temporary.write_text("\n".join(OBJECTS) + "\n")


def write_stage(folder: Path, scenes: Scenes, cams: np.ndarray) -> None:
    """CAMs `[N, K, H, W]` in [0, 1] of the present classes, in WeakTr's format."""
    for i, (maps, labels) in enumerate(zip(cams, scenes.labels)):
        present = np.flatnonzero(labels)
        write_cams(folder / f"{i:04}.npy", Cams(maps[present], tuple(map(int, present)), "weaktr"))


def write_world_report(
    folder: Path, stages: Mapping[str, str], prompts: BackgroundPrompts, clip: FrozenClip, progress: bool
) -> None:
    """`report.html`: two stages (folder under `cams/` to title), their images and the prompts."""
    evaluations = [
        evaluate_folder(folder / "cams" / name, folder / "masks", OBJECTS, progress=progress) for name in stages
    ]
    write_report(
        folder / "report.html",
        evaluations,
        list(stages.values()),
        images=folder / "images",
        words=nearest_words(prompts, clip, (*OBJECTS, *CONTEXTS)),
        prompts=prompt_panels(prompts, clip, evaluations[-1], folder / "images"),
        heading="SemPLeS in the demo's world",
    )
