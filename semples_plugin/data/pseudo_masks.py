"""`semples pseudo-masks`: palette PNGs for the segmentation network, from CAMs and thresholds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.data.cam_files import FORMATS, Cams, chosen_cams, list_cams, read_cams
from semples_plugin.data.image_names import image_name
from semples_plugin.data.images import (
    IGNORED,
    check_images,
    find_image,
    image_size,
    read_image,
    read_note,
    write_mask,
)
from semples_plugin.utils.atomic_files import CHANGED, claim_folder, is_made_of
from semples_plugin.utils.extras import how_to_install
from semples_plugin.utils.parallel import in_parallel

CONFIDENCE = 0.7  # of a label before the CRF, as IRNet and its descendants have it


@dataclass(frozen=True)
class Recipe:
    """How scores become labels.

    Attributes:
        thresholds: one background score, or two: pixels between them become 255, ignored.
        power: instead of thresholds, FMA-WSSS's background score (1 - m)^power.
        crf: iterations of a dense CRF (Krähenbühl and Koltun, NeurIPS 2011) over the labels; 0 for none.
    """

    thresholds: tuple[float, ...] = ()
    power: float | None = None
    crf: int = 0

    def __post_init__(self) -> None:
        if (self.power is None) == (not self.thresholds):
            raise ValueError("expected one or two thresholds, or a power, and not both")
        if self.power is not None and not 0 < self.power < np.inf:
            raise ValueError(f"power: expected a number above 0, got {self.power}")
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
    image_list: str | Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, str]:
    """Writes a mask for every CAM file; an interrupted call goes on where it was.

    A mask gets the time of the CAM file that it is made from, and holds the recipe, and where the images were that
    a CRF looked at, as a text of PNG's.

    Args:
        folder: of CAM files of any host.
        out: folder for PNGs with VOC's palette, and nothing else: 0 background, k + 1 class k, 255 ignored.
        recipe: thresholds and CRF.
        images: folder of the images; needed for the CRF, and for FMA-WSSS's CAMs, which don't know their size.
        image_list: text file of image names, to make masks of these alone.
        workers: processes; more than one want a script that guards its start with `if __name__ == "__main__"`.
        progress: show a progress bar.

    Returns:
        Image name to what was wrong, of the images without a mask.

    Raises:
        FileNotFoundError: where there are no CAMs or images.
        ImportError: where the CRF is asked for and `pydensecrf2` is missing.
        ValueError: where images are needed, or `out` is the CAMs' folder or holds files that were not made with
            this recipe, of these CAMs as they are now.
    """
    found, out = chosen_cams(folder, image_list), Path(out)
    if out.resolve() == Path(folder).resolve():
        raise ValueError(f"{out} is the folder of the CAMs themselves; choose another")
    if images is not None:
        check_images(images, found)
    elif recipe.crf:
        raise ValueError("a CRF looks at the images: give --images FOLDER")
    elif all(path.suffix == FORMATS["fma"] for path in found.values()):
        raise ValueError(f"{folder} doesn't say how large its images are: give --images FOLDER")
    if recipe.crf:
        _import_crf()
    sources = {path.stem: path for path in list_cams(folder).values()}
    # What changes a mask: images do so by their edges, which the CRF sees, or by their size, which the mask has.
    note = json.dumps({**asdict(recipe), "images": str(Path(images).resolve()) if recipe.crf and images else None})

    def is_own(path: Path) -> bool:
        source = sources.get(path.stem)
        if source is None or not is_made_of(path, source) or read_note(path) != note:
            return False
        return images is None or _size(find_image(images, image_name(path))) in (None, _size(path))

    claim_folder(out, is_own)
    targets = {name: out / f"{path.stem}.png" for name, path in found.items()}
    todo = [name for name in found if not targets[name].exists()]
    image_paths = {name: find_image(images, name) for name in todo} if images is not None else {}
    tasks = [(found[name], targets[name], image_paths.get(name), recipe, note) for name in todo]
    failed: dict[str, str] = {}
    bar = tqdm(
        total=len(found), initial=len(found) - len(todo), desc="pseudo masks", unit="image", disable=not progress
    )
    with bar:
        results = in_parallel(_write_one, tasks, workers, chunk=1 if recipe.crf else 8)
        empty = labelled = 0
        for name, (error, holds) in zip(todo, results, strict=True):
            if error:
                failed[name] = error
            empty, labelled = empty + (holds is False), labelled + (holds is not None)
            bar.update()
    if empty and 2 * empty >= labelled:
        warnings.warn(
            f"{empty} of {labelled} masks of images with CAMs are background alone: CAMs want to be scores that reach "
            "1, each divided by its maximum, and to exceed the threshold somewhere",
            stacklevel=2,
        )
    for name in found:
        if name not in failed and not is_own(targets[name]):
            failed[name] = CHANGED
    return failed


def to_labels(scores: NDArray[np.float32], class_index: Sequence[int], recipe: Recipe) -> NDArray[np.uint8]:
    """Labels `[H, W]` from scores `[P, H, W]` in [0, 1], P at least 1, without a CRF."""
    highest = scores.max(0)
    labels = (np.array(class_index, dtype=np.uint8) + 1)[scores.argmax(0)]
    if recipe.power is not None:
        labels[highest <= np.power(1 - highest, np.float32(recipe.power))] = 0
        return labels
    low, high = np.array((recipe.thresholds[0], recipe.thresholds[-1]), dtype=scores.dtype)
    uncertain = (highest > low) & (highest <= high)
    labels[highest <= low] = 0
    labels[uncertain] = IGNORED
    return labels


def refine_labels(labels: NDArray[np.uint8], image: NDArray[np.uint8], iterations: int) -> NDArray[np.uint8]:
    """Labels after a dense CRF that believes each with 0.7 and moves boundaries to the image's edges.

    Kernels and confidence are those that IRNet and its descendants use: 3 pixels for smoothness; 50 pixels and 5 grey
    levels, weighted 10, for appearance.

    Args:
        labels: `[H, W]`, 0 background.
        image: RGB `[H, W, 3]`.
        iterations: of mean-field inference.
    """
    crf = _import_crf()
    values, index = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        return labels
    unary = np.full((len(values), labels.size), -np.log((1 - CONFIDENCE) / (len(values) - 1)), dtype=np.float32)
    unary[index.reshape(-1), np.arange(labels.size)] = -np.log(CONFIDENCE)
    height, width = labels.shape
    field = crf.DenseCRF2D(width, height, len(values))
    field.setUnaryEnergy(unary)
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.require(image, requirements=["C", "W"]), compat=10)
    marginals = np.asarray(field.inference(iterations)).reshape(len(values), height, width)
    return values[marginals.argmax(0)]


def _write_one(task: tuple[Path, Path, Path | None, Recipe, str]) -> tuple[str, bool | None]:
    """An error in a sentence, or nothing; and whether the mask holds an object, None where there are no CAMs."""
    path, target, image, recipe, note = task
    try:
        source_time, cams = path.stat().st_mtime_ns, read_cams(path)
        labels = _labels_of(cams, image, recipe, path)
        write_mask(target, labels, source_time, note)
    except (OSError, ValueError) as error:
        return str(error), None
    return "", bool(labels.any()) if cams.planes else None


def _size(picture: Path) -> tuple[int, int] | None:
    """None where there is no such picture that can be read."""
    try:
        return image_size(picture)
    except (OSError, ValueError):
        return None


def _labels_of(cams: Cams, image: Path | None, recipe: Recipe, path: Path) -> NDArray[np.uint8]:
    if image is not None:
        size = image_size(image)
    elif cams.format == "fma" or cams.size is None:
        raise ValueError(f"{path} doesn't say how large its image is: give --images FOLDER")
    else:
        size = cams.size
    if not cams.planes:
        return np.zeros(size, np.uint8)
    scores = np.stack(cams.scores(*size))
    if not recipe.crf or image is None:
        return to_labels(scores, cams.class_index, recipe)
    pixels = read_image(image)
    single = [recipe] if recipe.power is not None else [replace(recipe, thresholds=(t,)) for t in recipe.thresholds]
    each = [refine_labels(to_labels(scores, cams.class_index, one), pixels, recipe.crf) for one in single]
    # Where a low and a high background score disagree, nobody knows.
    return np.where(each[0] == each[-1], each[0], IGNORED).astype(np.uint8)


def _import_crf() -> Any:
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise ImportError(
            f"the CRF needs one package more, which is there for Python 3.10 to 3.12: {how_to_install('crf')}"
        ) from error
    return pydensecrf.densecrf
