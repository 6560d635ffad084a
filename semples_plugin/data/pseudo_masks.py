"""`semples pseudo-masks`: palette PNGs for the segmentation network, from CAMs and thresholds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.data.cam_files import Cams, read_cams
from semples_plugin.data.dense_crf import import_crf, refine_labels
from semples_plugin.data.derived_files import DerivedFiles, size_of_image
from semples_plugin.data.image_names import image_name
from semples_plugin.data.images import IGNORED, image_size, read_image, read_note, write_mask
from semples_plugin.utils.parallel import in_parallel


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
    """Writes a pseudo mask for every CAM file; an interrupted call goes on where it was.

    A pseudo mask gets the time of the CAM file that it is made from, and holds the recipe, and where the images were
    that a CRF looked at, as a text of PNG's.

    Args:
        folder: of CAM files of any host.
        out: folder for PNGs with VOC's palette, and nothing else: 0 background, k + 1 class k, 255 ignored.
        recipe: thresholds and CRF.
        images: folder of the images; needed for the CRF, and for FMA-WSSS's CAMs, which don't know their size.
        image_list: text file of image names, to make pseudo masks of these alone.
        workers: processes; more than one want a script that guards its start with `if __name__ == "__main__"`.
        progress: show a progress bar.

    Returns:
        Image name to what was wrong, of the images without a pseudo mask.

    Raises:
        FileNotFoundError: where there are no CAMs or images.
        ImportError: where the CRF is asked for and `pydensecrf2` is missing.
        ValueError: where images are needed, or `out` is the CAMs' folder or holds files that were not made with
            this recipe, of these CAMs as they are now.
    """
    files = DerivedFiles(folder, out, ".png", images, image_list)
    if recipe.crf and images is None:
        raise ValueError("a CRF looks at the images: give --images FOLDER")
    files.check_images(sizes_needed=True)
    if recipe.crf:
        import_crf()
    note = _note(recipe, images)

    def is_own(path: Path) -> bool:
        if not files.is_current(path) or read_note(path) != note:
            return False
        image = files.image_of(image_name(path))
        return image is None or _size_if_readable(image) in (None, _size_if_readable(path))

    files.claim(is_own)
    pending = files.pending()
    tasks = [_Task(files.cam_files[name], files.targets[name], files.image_of(name), recipe, note) for name in pending]
    outcomes: dict[str, _Outcome] = {}
    total = len(files.targets)
    with tqdm(
        total=total, initial=total - len(pending), desc="pseudo masks", unit="image", disable=not progress
    ) as bar:
        results = in_parallel(_make_mask, tasks, workers, chunk=1 if recipe.crf else 8)
        for name, outcome in zip(pending, results, strict=True):
            outcomes[name] = outcome
            bar.update()
    _warn_of_empty(list(outcomes.values()))
    failed = {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
    written = [name for name in files.targets if name not in failed]
    return {**failed, **files.changed(written, is_own)}


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


class _Task(NamedTuple):
    """A pseudo mask to make."""

    cam_file: Path
    target: Path
    image: Path | None
    recipe: Recipe
    note: str


class _Outcome(NamedTuple):
    """What became of it: an error in a sentence, or nothing; whether it shows an object, None without CAMs."""

    error: str
    shows_object: bool | None


def _make_mask(task: _Task) -> _Outcome:
    try:
        source_time, cams = task.cam_file.stat().st_mtime_ns, read_cams(task.cam_file)
        labels = _labels_of(cams, task)
        write_mask(task.target, labels, source_time, task.note)
    except (OSError, ValueError) as error:
        return _Outcome(str(error), None)
    return _Outcome("", bool(labels.any()) if cams.planes else None)


def _labels_of(cams: Cams, task: _Task) -> NDArray[np.uint8]:
    size, recipe = size_of_image(cams, task.cam_file, task.image), task.recipe
    if not cams.planes:
        return np.zeros(size, np.uint8)
    scores = np.stack(cams.scores(*size))
    if not recipe.crf or task.image is None:
        return to_labels(scores, cams.class_index, recipe)
    pixels = read_image(task.image)
    single = [recipe] if recipe.power is not None else [replace(recipe, thresholds=(t,)) for t in recipe.thresholds]
    refined = [refine_labels(to_labels(scores, cams.class_index, step), pixels, recipe.crf) for step in single]
    # Where a low and a high background score disagree, the class is uncertain.
    return np.where(refined[0] == refined[-1], refined[0], IGNORED).astype(np.uint8)


def _note(recipe: Recipe, images: str | Path | None) -> str:
    """All that changes a pseudo mask but for its CAMs and its size: the recipe, and the images of a CRF."""
    used = str(Path(images).resolve()) if recipe.crf and images else None
    return json.dumps({**asdict(recipe), "images": used})


def _size_if_readable(image: Path) -> tuple[int, int] | None:
    try:
        return image_size(image)
    except (OSError, ValueError):
        return None


def _warn_of_empty(outcomes: Sequence[_Outcome]) -> None:
    of_cams = [outcome for outcome in outcomes if outcome.shows_object is not None]
    empty = sum(not outcome.shows_object for outcome in of_cams)
    if empty and 2 * empty >= len(of_cams):
        warnings.warn(
            f"{empty} of {len(of_cams)} masks of images with CAMs are background alone: CAMs want to be scores that "
            "reach 1, each divided by its maximum, and to exceed the threshold somewhere",
            stacklevel=3,
        )
