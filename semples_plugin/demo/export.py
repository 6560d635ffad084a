"""The demo's scenes and CAMs as files, as a host would have them, and the report on them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.data.images import write_mask
from semples_plugin.demo.data import CONTEXTS, OBJECTS, Scenes, make_scenes
from semples_plugin.evaluation.folders import evaluate_folder
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.checks import check_integers
from semples_plugin.viz.overlays import write_picture
from semples_plugin.viz.prompt_maps import nearest_words
from semples_plugin.viz.report import prompt_panels, write_report


def write_scenes(folder: Path, scenes: Scenes) -> None:
    """`images/`, `masks/` and `classes.txt`, as data sets in VOC's layout have them."""
    for i, (image, mask) in enumerate(zip(scenes.images, scenes.objects, strict=True)):
        write_picture(folder / "images" / f"{i:04}.png", image)
        write_mask(folder / "masks" / f"{i:04}.png", mask)
    with replacing(folder / "classes.txt") as temporary:
        temporary.write_text("\n".join(OBJECTS) + "\n", encoding="utf-8")


def write_stage(folder: Path, scenes: Scenes, cams: np.ndarray) -> None:
    """CAMs `[N, K, H, W]` in [0, 1] of the present classes, in WeakTr's format."""
    for i, (maps, labels) in enumerate(zip(cams, scenes.labels, strict=True)):
        present = np.flatnonzero(labels)
        write_cams(folder / f"{i:04}.npy", Cams(maps[present], tuple(present.tolist()), "weaktr"))


def write_world_report(
    folder: Path, stages: Mapping[str, str], prompts: BackgroundPrompts, clip: FrozenClip, progress: bool
) -> None:
    """`report.html`: the stages (folder under `cams/` to title), their images and the prompts."""
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


def write_world(folder: Path, train: int = 1000, test: int = 300, seed: int = 0) -> None:
    """Train and test scenes under `train/` and `test/`, with lists and `cls_labels.npy`, for other code to read.

    Args:
        folder: to write into.
        train, test: numbers of scenes, at least 1.
        seed: of the scenes, at least 0.
    """
    for name, value, least in (("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        check_integers(name, (value,), least=least)
    for split, count, scene_seed in (("train", train, seed), ("test", test, seed + 10_000)):
        scenes = make_scenes(count, scene_seed)
        write_scenes(folder / split, scenes)
        labels = {f"{i:04}": row.astype(np.float32) for i, row in enumerate(scenes.labels)}
        with replacing(folder / split / "cls_labels.npy") as temporary, temporary.open("wb") as file:
            np.save(file, np.array(labels, dtype=object), allow_pickle=True)
        with replacing(folder / split / "list.txt") as temporary:
            temporary.write_text("\n".join(labels) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the world; the command line's entry."""
    parser = argparse.ArgumentParser(
        prog="python -m semples_plugin.demo.export",
        description="Writes scenes of the demo's world, to train on and to test with, for configs and scripts that "
        "read data sets in VOC's layout.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=1000, help="scenes to train on (default: %(default)s)")
    parser.add_argument("--test", type=int, default=300, help="scenes to test with (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        write_world(options.folder, options.train, options.test, options.seed)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"wrote {options.folder}/train and /test: images, masks, list.txt, cls_labels.npy and classes.txt")


if __name__ == "__main__":
    main()
