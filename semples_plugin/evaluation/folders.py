"""`semples eval`: a folder of CAMs against a folder of masks, and two such folders against each other."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.data.cam_files import list_cams, read_cams, read_image_list
from semples_plugin.data.images import IGNORED, find_mask, read_mask
from semples_plugin.evaluation.sweep import CamEvaluation, ImageCounts, ThresholdSweep, power_thresholds
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.parallel import in_parallel

THRESHOLDS = np.arange(100) / 100
POWERS = (0.5, 0.6, 0.7, 0.8, 0.9, *range(1, 11))


@dataclass(frozen=True)
class FolderEvaluation:
    """CAMs or masks of a folder, judged.

    Attributes:
        folder, masks, split: where CAMs and masks are, and the list of images, None where all of them were judged.
        class_names: K names, without background.
        background: "constant", "power" for (1 - m)^p, or "none" for masks, which need no such score.
        settings: the T thresholds or powers, in the order of `sweep`.
        sweep: IoU, precision and recall at each.
        chosen: position of the setting to report.
        chosen_here: whether it is the best on these masks, rather than given.
        counts: image name to its pixel counts.
        missing: images of the list without CAMs.
        extra: CAMs of images that aren't in the list.
        failed: images that could not be judged, and why.
        left_out: images that were judged but don't count, because another folder lacks them.
    """

    folder: str
    masks: str
    split: str | None
    class_names: tuple[str, ...]
    background: str
    settings: tuple[float, ...]
    sweep: ThresholdSweep
    chosen: int
    chosen_here: bool
    counts: dict[str, ImageCounts]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    failed: dict[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def miou(self) -> float:
        """At the chosen setting, in [0, 1]."""
        return float(self.sweep.miou[self.chosen])

    @property
    def in_masks(self) -> tuple[int, int]:
        """CAMs of a class that the same image's mask holds, and all CAMs, as far as one wins a pixel anywhere."""
        present = [c.in_mask[(c.classes > 0) & (c.predicted[:, 0] > 0)] for c in self.counts.values()]
        return sum(int((pixels > 0).sum()) for pixels in present), sum(map(len, present))

    @property
    def empty(self) -> tuple[int, int]:
        """CAMs that exceed the lowest background score nowhere, and all CAMs."""
        return sum(counts.empty for counts in self.counts.values()), sum(counts.cams for counts in self.counts.values())

    @property
    def doubt(self) -> str:
        """Sentences where CAMs can hardly be meant so.

        Where most are of classes that their images' masks lack, as another data set's are; and where a tenth of them
        are empty, as those of logits that are never positive.
        """
        doubts = []
        right, winning = self.in_masks
        if 2 * right < winning:
            doubts.append(
                f"only {right} of {winning} CAMs ({100 * right / winning:.0f} %) are of a class that the same image's "
                f"mask in {self.masks} holds: do both count the same classes in the same order?"
            )
        empty, cams = self.empty
        if empty and 10 * empty >= cams:
            lowest = self.sweep.thresholds[0]
            doubts.append(
                f"{empty} of {cams} CAMs {f'never exceed {lowest:.2g}' if lowest else 'are nowhere above 0'}, the "
                "lowest background score: were they saved from a trained model, after ReLU or sigmoid and divided by "
                "their maximum?"
            )
        return f"{self.folder}: {' '.join(doubts)}" if doubts else ""

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
        return {
            "cams": self.folder,
            "masks": self.masks,
            "split": self.split or "all CAMs",
            "images": len(self.counts),
            "doubt": self.doubt or None,
            "background": self.background,
            "chosen": self.settings[t],
            "chosen on these masks": self.chosen_here,
            "miou": self.miou,
            "classes": per_class,
            "curve": {str(s): _number(m) for s, m in zip(self.settings, self.sweep.miou, strict=True)},
            "missing": list(self.missing),
            "extra": list(self.extra),
            "failed": self.failed,
            "left out": list(self.left_out),
        }


def evaluate_folder(
    folder: str | Path,
    masks: str | Path,
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
        folder: of CAM files, see `semples_plugin.data.cam_files`, or of PNGs of labels, in which 255 is background.
        masks: folder of PNGs: 0 background, k + 1 class k, 255 ignored.
        class_names: K names, in the order of the CAMs' classes.
        image_list: text file of image names, one a line (FMA-WSSS's lines of paths are read as well); left out,
            every CAM is judged.
        background: "constant", or "power" for FMA-WSSS's (1 - m)^p; by default what the host of the files does.
        setting: a threshold or power to report at, beside the others; left out, the best on these masks is, and the
            result says so. Masks, which have neither, take no notice of these two.
        workers: processes; more than one want a script that guards its start with `if __name__ == "__main__"`.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: where there are no CAMs, masks or list.
        ValueError: where nothing can be judged, or the setting is none that (0 to 1, or above 0) can be.

    Warns:
        UserWarning: where most CAMs are of classes that their images' masks lack, or a tenth of them is empty.
    """
    found, masks = list_cams(folder, masks=True), Path(masks)
    if not masks.is_dir():
        raise FileNotFoundError(f"there is no folder {masks}")
    wanted = read_image_list(image_list) if image_list is not None else list(found)
    there = [name for name in wanted if name in found]
    if not there:
        raise ValueError(f"none of the {len(wanted)} images of {image_list} has CAMs in {folder}")
    usual = {".npz": "power", ".npy": "constant", ".png": "none"}[found[there[0]].suffix]
    if usual == "none":
        background, setting = usual, None
    background = background or usual
    settings, thresholds = _settings(background, setting)
    evaluation = CamEvaluation(len(class_names), thresholds)

    counts: dict[str, ImageCounts] = {}
    failed: dict[str, str] = {}
    count = partial(_count, len(class_names), thresholds)
    tasks = [(found[name], find_mask(masks, name)) for name in there]
    results = in_parallel(count, tasks, workers)
    for name, result in zip(
        there, tqdm(results, str(folder), len(there), unit="image", disable=not progress), strict=True
    ):
        if isinstance(result, ImageCounts):
            counts[name] = result
            evaluation.add(result)
        else:
            failed[name] = result
    if not counts:
        raise ValueError(f"none of the CAMs in {folder} could be judged; the first: {next(iter(failed.values()))}")
    sweep = evaluation.compute()
    asked = set(wanted)
    judged = FolderEvaluation(
        str(folder), str(masks), None if image_list is None else str(image_list), tuple(class_names), background,
        tuple(settings), sweep, sweep.best if setting is None else settings.index(setting),
        setting is None and background != "none", counts, tuple(name for name in wanted if name not in found),
        tuple(name for name in found if name not in asked), failed,
    )  # fmt: skip
    if judged.doubt:
        warnings.warn(judged.doubt, stacklevel=2)
    return judged


def write_evaluation(
    folder: str | Path, content: dict[str, Any], evaluations: Sequence[FolderEvaluation], titles: Sequence[str]
) -> None:
    """Writes `eval.json`, and `images.csv` with the mean IoU [%] of each image's classes in each evaluation."""
    with replacing(Path(folder) / "eval.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    with replacing(Path(folder) / "images.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *titles])
        for name in evaluations[0].counts:
            table.writerow([name, *(f"{100 * image_iou(one, name):.2f}" for one in evaluations)])


def image_iou(evaluation: FolderEvaluation, name: str) -> float:
    """Mean IoU of the classes of one image, in [0, 1], at the chosen setting."""
    counts, t = evaluation.counts[name], evaluation.chosen
    union = counts.in_mask + counts.predicted[:, t] - counts.hits[:, t]
    return float(np.mean(counts.hits[:, t][union > 0] / union[union > 0])) if union.any() else float("nan")


def _settings(background: str, setting: float | None) -> tuple[list[float], NDArray[np.float64]]:
    """The settings and their thresholds, both ascending by threshold; the given one is among them."""
    given = [] if setting is None else [setting]
    if background == "none":
        return [0.5], np.array([0.5])  # between a mask's 0 and 1
    if background == "constant":
        if setting is not None and not 0 <= setting <= 1:
            raise ValueError(f"threshold: expected 0 to 1, got {setting!r}")
        found = np.union1d(THRESHOLDS, given)
        return found.tolist(), found
    if background != "power":
        raise ValueError(f'background: expected "constant" or "power", got {background!r}')
    if setting is not None and not 0 < setting < np.inf:
        raise ValueError(f"power: expected a number above 0, got {setting}")
    powers = sorted({*POWERS, *given}, reverse=True)
    return powers, power_thresholds(powers)


def _count(num_classes: int, thresholds: NDArray[np.float64], files: tuple[Path, Path]) -> ImageCounts | str:
    """Pixel counts of an image, or what is wrong with it: one bad file costs one image."""
    cams, mask = files
    try:
        labels, found = read_mask(mask), read_cams(cams)
        if (labels == IGNORED).all():
            raise ValueError(f"{mask} is {IGNORED} everywhere, which leaves nothing to judge")
        return CamEvaluation(num_classes, thresholds).count(found.scores(*labels.shape), found.class_index, labels)
    except (OSError, ValueError) as error:
        return str(error) if str(cams) in str(error) or str(mask) in str(error) else f"{cams}: {error}"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
