"""`semples pseudo-masks`: palette PNGs for the segmentation network, from CAMs and thresholds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.cams.drawing import voc_palette
from semples_plugin.cams.evaluation import IGNORED
from semples_plugin.cams.files import Cams, list_cams, read_cams
from semples_plugin.cams.pictures import find_photograph, photograph_size, read_photograph
from semples_plugin.files import replacing

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Recipe:
    """How scores become labels.

    Attributes:
        thresholds: one background score, or two: pixels between them become 255, ignored.
        power: instead of thresholds, FMA-WSSS's background score (1 - m)^power.
        crf: iterations of a dense CRF (Krähenbühl and Koltun, NeurIPS 2011) over the scores; 0 for none.
    """

    thresholds: tuple[float, ...] = ()
    power: float | None = None
    crf: int = 0

    def __post_init__(self) -> None:
        if (self.power is None) == (not self.thresholds):
            raise ValueError("expected one or two thresholds, or a power, and not both")
        if self.power is not None and not self.power > 0:
            raise ValueError(f"power: expected more than 0, got {self.power}")
        in_range = all(0 <= value <= 1 for value in self.thresholds)
        if len(self.thresholds) > 2 or not in_range or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"thresholds: expected one, or two ascending ones, from 0 to 1, got {self.thresholds}")
        if self.crf < 0:
            raise ValueError(f"crf: expected a number of iterations, got {self.crf}")


def write_pseudo_masks(
    folder: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    images: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Writes a mask for every CAM file; masks that are there already, from the same recipe, stay.

    Args:
        folder: of CAM files of any host.
        out: folder for PNGs with VOC's palette (0 background, k + 1 class k, 255 ignored) and `settings.json`.
        recipe: thresholds and CRF.
        images: folder of the photographs; needed for the CRF, and for FMA-WSSS's CAMs, which don't know their size.
        workers: processes; the number of cores by default.
        progress: show a progress bar.

    Returns:
        Image name to what was wrong, of the images without a mask.

    Raises:
        FileNotFoundError: where there are no CAMs or photographs.
        ImportError: where the CRF is asked for and `pydensecrf2` is missing.
        ValueError: where `out` holds masks of another recipe.
    """
    found, out = list_cams(folder), Path(out)
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"there is no folder {images}")
    if recipe.crf:
        if images is None:
            raise ValueError("a CRF looks at the photographs: give --images FOLDER")
        _import_crf()
    _claim(out, Path(folder), recipe)
    todo = [name for name in found if not (out / f"{name}.png").exists()]
    tasks = [
        (found[name], out / f"{name}.png", images and find_photograph(Path(images), name), recipe) for name in todo
    ]
    failed: dict[str, str] = {}
    bar = tqdm(
        total=len(found), initial=len(found) - len(todo), desc="pseudo masks", unit="image", disable=not progress
    )
    # Threads of torch don't survive a fork, and a CRF holds the interpreter's lock.
    with bar, ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for name, error in zip(todo, pool.map(_write_one, tasks, chunksize=8)):
            if error:
                failed[name] = error
            bar.update()
    return failed


def to_labels(scores: NDArray[np.float32], class_index: Sequence[int], recipe: Recipe) -> NDArray[np.uint8]:
    """Labels `[H, W]` from scores `[P, H, W]` in [0, 1], P at least 1, without a CRF."""
    highest = scores.max(0)
    labels = (np.array(class_index, dtype=np.uint8) + 1)[scores.argmax(0)]
    if recipe.power is not None:
        labels[highest <= (1 - highest) ** np.float32(recipe.power)] = 0
        return labels
    low, high = np.array((recipe.thresholds[0], recipe.thresholds[-1]), dtype=scores.dtype)
    uncertain = (highest > low) & (highest <= high)
    labels[highest <= low] = 0
    labels[uncertain] = IGNORED
    return labels


def refine_scores(
    scores: NDArray[np.float32], photograph: NDArray[np.uint8], background: NDArray[np.float32], iterations: int
) -> NDArray[np.float32]:
    """Scores after a dense CRF whose unary term is -log of the scores beside the background, normalised to sum to 1.

    The kernels are those that IRNet and its descendants use: 3 pixels for smoothness; 50 pixels and 5 grey levels,
    weighted 10, for appearance.

    Args:
        scores: `[P, H, W]` in [0, 1].
        photograph: RGB `[H, W, 3]`.
        background: `[H, W]`, the background's score.
        iterations: of mean-field inference.

    Returns:
        `[P + 1, H, W]`, probabilities, background first.
    """
    crf = _import_crf()
    together = np.concatenate([background[None], scores]).clip(1e-5, None)
    unary = -np.log(together / together.sum(0)).reshape(len(together), -1)
    height, width = background.shape
    field = crf.DenseCRF2D(width, height, len(together))
    field.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.require(photograph, requirements=["C", "W"]), compat=10)
    return np.asarray(field.inference(iterations), dtype=np.float32).reshape(together.shape)


def _write_one(task: tuple[Path, Path, Path | None, Recipe]) -> str:
    """An error in a sentence, or nothing."""
    path, target, image, recipe = task
    from PIL import Image

    try:
        cams = read_cams(path)
        labels = _labels_of(cams, image, recipe, path)
        with replacing(target) as temporary:
            picture = Image.fromarray(labels, mode="P")
            picture.putpalette(voc_palette().flatten().tolist())
            picture.save(temporary, format="PNG")
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _labels_of(cams: Cams, image: Path | None, recipe: Recipe, path: Path) -> NDArray[np.uint8]:
    if image is not None:
        size = photograph_size(image)
    elif cams.format == "fma" or cams.size is None:
        raise ValueError(f"{path} doesn't say how large its image is: give --images FOLDER")
    else:
        size = cams.size
    if not cams.planes:
        return np.zeros(size, np.uint8)
    scores = np.stack(cams.scores(*size))
    if not recipe.crf or image is None:
        return to_labels(scores, cams.class_index, recipe)
    photograph = read_photograph(image)
    highest = scores.max(0)
    if recipe.power is not None:
        backgrounds = [(1 - highest) ** np.float32(recipe.power)]
    else:
        backgrounds = [np.full_like(highest, threshold) for threshold in recipe.thresholds]
    numbers = np.array([0, *(k + 1 for k in cams.class_index)], dtype=np.uint8)
    each = [numbers[refine_scores(scores, photograph, b, recipe.crf).argmax(0)] for b in backgrounds]
    # Where a low and a high background score disagree, nobody knows.
    return np.where(each[0] == each[-1], each[0], IGNORED).astype(np.uint8)


def _claim(out: Path, folder: Path, recipe: Recipe) -> None:
    settings = json.loads(json.dumps({"cams": str(folder.resolve()), **asdict(recipe)}))
    path = out / SETTINGS
    if path.is_file():
        there = json.loads(path.read_text())
        if there != settings:
            raise ValueError(f"{out} holds masks of {there}, not of {settings}; choose another folder")
    elif out.is_dir() and any(out.glob("*.png")):
        raise ValueError(f"{out} holds PNGs already, which would be taken for masks of this run; choose another folder")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")


def _import_crf() -> Any:
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise ImportError("the CRF needs one package more: pip install 'semples-plugin[crf]'") from error
    return pydensecrf.densecrf
