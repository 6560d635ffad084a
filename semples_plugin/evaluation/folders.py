"""`semples eval`: the CAMs of a folder judged by ground truth."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.data.cam_files import name_cam_files, read_cams, read_image_list
from semples_plugin.data.image_names import image_name
from semples_plugin.data.images import IGNORED, find_mask, read_mask
from semples_plugin.evaluation.iou import CamEvaluation, ImageCounts, ThresholdSweep, power_thresholds, sweep_of
from semples_plugin.evaluation.stored_counts import ChosenCounts, StoredCounts
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.parallel import in_parallel

THRESHOLDS = np.arange(100) / 100
POWERS = (0.5, 0.6, 0.7, 0.8, 0.9, *range(1, 11))
_BACKGROUNDS = {".npz": "power", ".npy": "constant", ".png": "none"}  # as the hosts that write such files judge them


@dataclass(frozen=True)
class FolderEvaluation:
    """CAMs or pseudo masks of a folder, judged.

    Attributes:
        folder, ground_truth, split: where CAMs and ground truth are, and the list of images; None where all CAMs were
            judged.
        class_names: K names, without background.
        background: "constant", "power" for (1 - m)^p, or "none" for pseudo masks, which need no such score.
        settings: the T thresholds or powers, in the order of `sweep`.
        sweep: IoU, precision and recall at each.
        chosen: position of the setting to report.
        chosen_here: whether it is the best on this ground truth, rather than given.
        counts: image name to its pixel counts, which `evaluate_folder` leaves in a file, see `StoredCounts`.
        missing: images of the list without CAMs.
        extra: CAMs of images that aren't in the list.
        failed: images that could not be judged, and why.
        left_out: images that were judged but don't count, because another folder lacks them.
    """

    folder: str
    ground_truth: str
    split: str | None
    class_names: tuple[str, ...]
    background: str
    settings: tuple[float, ...]
    sweep: ThresholdSweep
    chosen: int
    chosen_here: bool
    counts: Mapping[str, ImageCounts]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    failed: dict[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def miou(self) -> float:
        """At the chosen setting, in [0, 1]."""
        return float(self.sweep.miou[self.chosen])

    @property
    def annotated_cams(self) -> tuple[int, int]:
        """CAMs of a class that the same image's ground truth holds, and all CAMs, as far as one wins a pixel."""
        annotated = winning = 0
        for counts in self.counts.values():
            wins = (counts.classes > 0) & (counts.predicted[:, 0] > 0)
            winning += int(wins.sum())
            annotated += int((counts.annotated[wins] > 0).sum())
        return annotated, winning

    @property
    def empty_cams(self) -> tuple[int, int]:
        """CAMs that exceed the lowest background score nowhere, and all CAMs."""
        empty = cams = 0
        for counts in self.counts.values():
            empty += counts.empty
            cams += counts.cams
        return empty, cams

    @cached_property
    def doubt(self) -> str:
        """Sentences on CAMs that something must be wrong with; empty where nothing is.

        Where most are of classes that their images' ground truth lacks, as those of another data set are; and where a
        tenth of them are empty, as those of logits that are never positive are.
        """
        doubts = []
        annotated, winning = self.annotated_cams
        if 2 * annotated < winning:
            doubts.append(
                f"only {annotated} of {winning} CAMs ({100 * annotated / winning:.0f} %) are of a class that the same "
                f"image's ground truth in {self.ground_truth} holds: do both count the same classes in the same order?"
            )
        empty, cams = self.empty_cams
        if empty and 10 * empty >= cams:
            lowest = self.sweep.thresholds[0]
            where = f"never exceed {lowest:.2g}" if lowest else "are nowhere above 0"
            doubts.append(
                f"{empty} of {cams} CAMs {where}, the lowest background score: were they saved from a trained model, "
                "after ReLU or sigmoid and divided by their maximum?"
            )
        return f"{self.folder}: {' '.join(doubts)}" if doubts else ""

    def on_images(self, names: Sequence[str]) -> FolderEvaluation:
        """The same evaluation of some of its images alone; a setting that was chosen here is chosen anew."""
        counts = ChosenCounts(self.counts, names)
        sweep = sweep_of(counts.values(), len(self.class_names), self.sweep.thresholds)
        chosen = sweep.best if self.chosen_here else self.chosen
        left_out = tuple(name for name in self.counts if name not in counts)
        return replace(self, sweep=sweep, chosen=chosen, counts=counts, left_out=left_out)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the counts, ready for `json.dumps`; NaN becomes None.

        `images` were judged; `missing`, `failed` and `left out` ones, see `FolderEvaluation`, don't count. Figures are
        in [0, 1], and `curve` is mIoU at every setting.
        """
        names, t = ("background", *self.class_names), self.chosen
        per_class = {
            name: {key: _number(getattr(self.sweep, key)[t, k]) for key in ("iou", "precision", "recall")}
            for k, name in enumerate(names)
        }
        curve = zip(self.settings, self.sweep.miou, strict=True)
        return {
            "cams": self.folder,
            "masks": self.ground_truth,
            "split": self.split or "all CAMs",
            "images": len(self.counts),
            "doubt": self.doubt or None,
            "background": self.background,
            "chosen": self.settings[t],
            "chosen on these masks": self.chosen_here,
            "miou": self.miou,
            "classes": per_class,
            "curve": {str(setting): _number(miou) for setting, miou in curve},
            "missing": list(self.missing),
            "extra": list(self.extra),
            "failed": self.failed,
            "left out": list(self.left_out),
        }


def evaluate_folder(
    folder: str | Path,
    ground_truth: str | Path,
    class_names: Sequence[str],
    *,
    image_list: str | Path | None = None,
    background: str | None = None,
    setting: float | None = None,
    workers: int = 1,
    progress: bool = True,
) -> FolderEvaluation:
    """Judges CAMs of any host, at all background scores, in one pass; or pseudo masks, as they are.

    Args:
        folder: of CAM files, see `semples_plugin.data.cam_files`, or of pseudo masks as PNGs, in which 255 is
            background.
        ground_truth: folder of PNGs: 0 background, k + 1 class k, 255 ignored.
        class_names: K names, in the order of the CAMs' classes.
        image_list: text file of image names, one a line (FMA-WSSS's lines of paths are read as well); left out,
            every CAM is judged.
        background: "constant", or "power" for FMA-WSSS's (1 - m)^p; by default what the host of the files does.
        setting: a threshold or power to report at, beside the others; left out, the best on this ground truth is,
            and the result says so. Pseudo masks, which have neither, take no notice of these two.
        workers: processes; more than one want a script that guards its start with `if __name__ == "__main__"`.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: where there are no CAMs, no ground truth or no list.
        ValueError: where nothing can be judged, or the setting is none that (0 to 1, or above 0) can be.

    Warns:
        UserWarning: where most CAMs are of classes that their images' ground truth lacks, or a tenth of them is empty.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semples_plugin.data.cam_files import Cams, write_cams
        >>> from semples_plugin.data.images import write_mask
        >>> cam = np.array([[0.8, 0.4], [0.1, 0.0]], np.float32)
        >>> with TemporaryDirectory() as folder:
        ...     write_cams(f"{folder}/cams/a.npy", Cams([cam], (1,), "weaktr"))
        ...     write_mask(f"{folder}/gt/a.png", np.array([[2, 0], [0, 255]], np.uint8))
        ...     evaluation = evaluate_folder(f"{folder}/cams", f"{folder}/gt", ["cat", "dog"], progress=False)
        >>> evaluation.miou, evaluation.settings[evaluation.chosen]
        (1.0, 0.4)
    """
    cam_files, ground_truth = name_cam_files(folder, masks=True), Path(ground_truth)
    if not ground_truth.is_dir():
        raise FileNotFoundError(f"there is no folder {ground_truth}")
    requested = read_image_list(image_list) if image_list is not None else list(cam_files)
    names = [name for name in requested if name in cam_files]
    if not names:
        raise ValueError(f"none of the {len(requested)} images of {image_list} has CAMs in {folder}")

    usual = _BACKGROUNDS[Path(cam_files[names[0]]).suffix]
    if usual == "none":
        background, setting = usual, None
    background = background or usual
    settings, thresholds = _settings(background, setting)

    count = partial(_count_image, len(class_names), thresholds, Path(folder), ground_truth)
    results = in_parallel(count, [cam_files[name] for name in names], workers)
    bar = tqdm(results, str(folder), len(names), unit="image", disable=not progress)
    failed: dict[str, str] = {}
    total = CamEvaluation(len(class_names), thresholds)

    def judged() -> Iterator[tuple[str, ImageCounts]]:
        for name, outcome in zip(names, bar, strict=True):
            if isinstance(outcome, str):
                failed[name] = outcome
            else:
                total.add(outcome)
                yield name, outcome

    counts = StoredCounts(judged())
    if not counts:
        raise ValueError(f"none of the CAMs in {folder} could be judged; the first: {next(iter(failed.values()))}")

    sweep = total.compute()
    evaluation = FolderEvaluation(
        folder=str(folder),
        ground_truth=str(ground_truth),
        split=None if image_list is None else str(image_list),
        class_names=tuple(class_names),
        background=background,
        settings=tuple(settings),
        sweep=sweep,
        chosen=sweep.best if setting is None else settings.index(setting),
        chosen_here=setting is None and background != "none",
        counts=counts,
        missing=tuple(name for name in requested if name not in cam_files),
        extra=tuple(name for name in cam_files if name not in counts and name not in failed),
        failed=failed,
    )
    if evaluation.doubt:
        warnings.warn(evaluation.doubt, stacklevel=2)
    return evaluation


def write_evaluation(
    folder: str | Path, content: Mapping[str, Any], evaluations: Sequence[FolderEvaluation], titles: Sequence[str]
) -> None:
    """Writes `eval.json`, and `images.csv` with the mean IoU [%] of each image's classes in each evaluation."""
    write_figures(folder, content)
    utf8: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}  # of names, which may be any bytes
    with replacing(Path(folder) / "images.csv") as temporary, temporary.open("w", newline="", **utf8) as file:
        table = csv.writer(file)
        table.writerow(["image", *titles])
        for name in evaluations[0].counts:
            ious = [image_iou(evaluation, name) for evaluation in evaluations]
            table.writerow([name, *(f"{100 * iou:.2f}" for iou in ious)])


def write_figures(folder: str | Path, content: Mapping[str, Any]) -> None:
    """Writes `eval.json`."""
    with replacing(Path(folder) / "eval.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def image_iou(evaluation: FolderEvaluation, name: str) -> float:
    """Mean IoU of the classes of one image, in [0, 1], at the chosen setting; NaN where it shows none."""
    counts, t = evaluation.counts[name], evaluation.chosen
    hits = counts.hits[:, t]
    union = counts.annotated + counts.predicted[:, t] - hits
    shown = union > 0
    return float(np.mean(hits[shown] / union[shown])) if shown.any() else float("nan")


def _settings(background: str, setting: float | None) -> tuple[list[float], NDArray[np.float64]]:
    """The settings and their thresholds, both ascending by threshold; the given one is among them."""
    given = [] if setting is None else [setting]
    if background == "none":
        return [0.5], np.array([0.5])  # between a pseudo mask's 0 and 1
    if background == "constant":
        if setting is not None and not 0 <= setting <= 1:
            raise ValueError(f"threshold: expected 0 to 1, got {setting!r}")
        thresholds = np.union1d(THRESHOLDS, given)
        return thresholds.tolist(), thresholds
    if background != "power":
        raise ValueError(f'background: expected "constant" or "power", got {background!r}')
    if setting is not None and not 0 < setting < np.inf:
        raise ValueError(f"power: expected a number above 0, got {setting}")
    powers = sorted({*POWERS, *given}, reverse=True)
    return powers, power_thresholds(powers)


def _count_image(
    num_classes: int, thresholds: NDArray[np.float64], folder: Path, ground_truth: Path, file: str
) -> ImageCounts | str:
    """Pixel counts of an image, or what is wrong with it, so that one bad file costs one image.

    `file` is the name of its CAM file.
    """
    cam_file, mask_file = folder / file, find_mask(ground_truth, image_name(file))
    try:
        labels, cams = read_mask(mask_file), read_cams(cam_file)
        if (labels == IGNORED).all():
            raise ValueError(f"{mask_file} is {IGNORED} everywhere, which leaves nothing to judge")
        evaluation = CamEvaluation(num_classes, thresholds)
        return evaluation.count(cams.scores(*labels.shape), cams.class_index, labels)
    except (OSError, ValueError) as error:
        message = str(error)
        names_file = str(cam_file) in message or str(mask_file) in message
        return message if names_file else f"{cam_file}: {message}"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
