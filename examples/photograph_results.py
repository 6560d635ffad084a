"""The folder of `real_photographs.py`: what was trained, the CAMs and what they are worth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm
from voc_photographs import Dataset

from semples_plugin import BackgroundPrompts, FrozenClip
from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.data.images import IGNORED, read_mask
from semples_plugin.evaluation.comparison import compare, on_common_images
from semples_plugin.evaluation.folders import FolderEvaluation, evaluate_folder
from semples_plugin.utils.atomic_files import replacing, set_aside
from semples_plugin.viz.prompt_maps import nearest_words
from semples_plugin.viz.report import write_report
from semples_plugin.viz.tables import class_figures, describe_gain

PER_SEED = ("miou", "threshold", "share", "separation", "seconds")
"""Figures of a run that `results.json` has a list of, one for each seed; separation is of learned prompts alone."""


class Results:
    """A folder with a file of figures for every run, which is one row and one seed, and its network and CAMs.

    Args:
        folder: made where it doesn't exist.
        data: what the runs are judged by.
        titles: of the rows, by name.
        seeds: of every row.
        changed: settings of all rows that differ from the defaults, by name.
    """

    def __init__(
        self,
        folder: Path,
        data: Dataset,
        titles: Mapping[str, str],
        seeds: Sequence[int],
        changed: Mapping[str, float] | None = None,
    ) -> None:
        self.folder, self.data, self.titles, self.seeds = folder, data, titles, seeds
        self.changed = changed or {}
        self._evaluations: dict[tuple[str, int], FolderEvaluation] = {}

    def has(self, row: str, seed: int, settings: Mapping[str, Any]) -> bool:
        """Whether a run was finished with these settings."""
        run = self._read(row, seed)
        return run is not None and run["settings"] == json.loads(json.dumps(settings))

    def begin(self, row: str, seed: int) -> None:
        """Makes room for a run; an earlier one's figures are kept as NAME.before."""
        if set_aside(self._file("runs", row, seed, ".json")):
            print(f"{row}, seed {seed}: its settings have changed, it is trained again")
        shutil.rmtree(self._file("cams", row, seed), ignore_errors=True)

    def finish(
        self,
        row: str,
        seed: int,
        settings: Mapping[str, Any],
        network: nn.Module,
        prompts: BackgroundPrompts | None,
        notes: Mapping[str, Any],
    ) -> None:
        """Judges a run's CAMs, and writes everything; its figures come last, as they say that it is finished."""
        share = write_all_cams(network, self.data, self._file("cams", row, seed))
        with replacing(self._file("networks", row, seed, ".safetensors")) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary)
        if prompts is not None:
            prompts.save(self._file("prompts", row, seed, ".safetensors"))
        evaluation = self.evaluation(row, seed)
        run = {
            "miou": 100 * evaluation.miou,
            "threshold": evaluation.settings[evaluation.chosen],
            "share": share,
            "iou": {each.name: None if np.isnan(each.iou[0]) else each.iou[0] for each in class_figures([evaluation])},
            **notes,
            "settings": settings,
        }
        _write_json(self._file("runs", row, seed, ".json"), run)
        print(f"{row}, seed {seed}: mIoU {run['miou']:.1f} %, share in the object {share:.3f}")

    def load_network(self, network: nn.Module, row: str, seed: int) -> nn.Module:
        """Reads the weights of a finished run into a network."""
        network.load_state_dict(load_file(self._file("networks", row, seed, ".safetensors")))
        return network

    def evaluation(self, row: str, seed: int) -> FolderEvaluation:
        """A run's CAMs, judged at all thresholds."""
        if (row, seed) not in self._evaluations:
            folder = self._file("cams", row, seed)
            self._evaluations[row, seed] = evaluate_folder(folder, self.data.masks, self.data.class_names)
        return self._evaluations[row, seed]

    def write(self) -> dict[str, dict[str, Any]]:
        """Writes `results.json` with all runs that there are, and returns its rows."""
        rows: dict[str, dict[str, Any]] = {}
        for row, title in self.titles.items():
            runs = {seed: run for seed in self.seeds if (run := self._read(row, seed)) is not None}
            if runs:
                rows[row] = {"title": title, "seeds": list(runs)}
                rows[row] |= {
                    name: [run[name] for run in runs.values()]
                    for name in PER_SEED
                    if all(name in run for run in runs.values())
                }
                rows[row]["iou"] = {
                    name: [run["iou"][name] for run in runs.values()] for name in ("background", *self.data.class_names)
                }
        _write_json(self.folder / "results.json", {"seeds": list(self.seeds), "rows": rows})
        return rows

    def write_table(self, beat: str) -> str:
        """`table.md`: the rows, and for every seed how each stands to the row `beat`, if that is there."""
        rows = self.write()
        lines = [
            "| row | | mIoU [%] | share in the object | separation of the prompts | minutes |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            minutes = np.mean(row["seconds"]) / 60
            separation = _spread(row["separation"], 2) if "separation" in row else ""
            figures = f"{_spread(row['miou'], 1)} | {_spread(row['share'], 3)} | {separation} | {minutes:.1f}"
            lines.append(f"| {name} | {row['title']} | {figures} |")
        lines += [
            "",
            f"Mean and standard deviation over seeds ({len(self.seeds)}), on {len(self.data.val)} images. The threshold"
            " of each row is the best on these masks, as is the custom. Share: which part of a CAM lies in its object, "
            "the mean over the pairs. Separation: pairs whose background is nearer to its prompt than the foreground.",
            "",
        ]
        if self.changed:
            changes = ", ".join(f"{name} {value:g}" for name, value in self.changed.items())
            lines += [f"Other settings than the defaults, of all rows that have none of their own: {changes}.", ""]
        for name in rows:
            for seed in rows[name]["seeds"] if beat in rows and name != beat else ():
                gain = compare(*on_common_images([self.evaluation(beat, seed), self.evaluation(name, seed)]))
                lines.append(f"- {name} beside {beat}, seed {seed}: {describe_gain(gain)}")
        text = "\n".join(lines) + "\n"
        with replacing(self.folder / "table.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        return text

    def write_report(self, clip: FrozenClip) -> None:
        """`report.html`: the first seed's rows, and the prompts of the last row that learned some."""
        seed = self.seeds[0]
        learned = [row for row in self.titles if "separation" in (self._read(row, seed) or ())]
        prompts = [BackgroundPrompts.load(self._file("prompts", row, seed, ".safetensors")) for row in learned[-1:]]
        rows = list(self.titles)
        write_report(
            self.folder / "report.html",
            [self.evaluation(row, seed) for row in rows],
            rows,
            images=self.data.image_folder,
            words=[word for each in prompts for word in nearest_words(each, clip)],
            refined=(rows.index("match"), rows.index(learned[-1])) if learned else (-2, -1),
            heading=f"SemPLeS on real photographs, seed {seed}",
        )

    def _file(self, kind: str, row: str, seed: int, suffix: str = "") -> Path:
        return self.folder / kind / f"{row}-seed{seed}{suffix}"

    def _read(self, row: str, seed: int) -> dict[str, Any] | None:
        path = self._file("runs", row, seed, ".json")
        if not path.is_file():
            return None
        try:
            run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and its run is made again") from error
        return run


@torch.no_grad()
def write_all_cams(network: nn.Module, data: Dataset, folder: Path) -> float:
    """Writes the CAMs of all val images, of their present classes, in [0, 1] and at full size, in WeakTr's format.

    Returns:
        Which part of a CAM lies in its object, the mean over the pairs.
    """
    val, device = data.val, next(network.parameters()).device
    shares = []
    for part in tqdm(list(val.parts()), folder.name, unit="batch"):
        for i, cams in zip(part.tolist(), network(val.inputs(part, device)), strict=True):
            present = val.labels[i].nonzero()[:, 0].tolist()
            mask = read_mask(data.masks / f"{val.names[i]}.png")
            maps = F.interpolate(cams[present].relu()[None], mask.shape, mode="bilinear", align_corners=False)[0]
            maps = (maps / (maps.amax((1, 2), keepdim=True) + 1e-5)).cpu().numpy()
            shares += [share_in_object(plane, mask == k + 1, mask) for plane, k in zip(maps, present, strict=True)]
            # In half precision: the thresholds are hundredths, and full size takes much room.
            planes = list(maps.astype(np.float16))
            write_cams(folder / f"{val.names[i]}.npy", Cams(planes, tuple(present), "weaktr"))
    return float(np.mean(shares))


def share_in_object(cam: np.ndarray, is_object: np.ndarray, mask: np.ndarray) -> float:
    """Which part of a CAM `[H, W]` lies in its object; ignored pixels don't count, and an empty CAM has none."""
    counted = mask != IGNORED
    total = cam[counted].sum()
    return float(cam[counted & is_object].sum() / total) if total > 0 else 0.0


def _spread(values: Sequence[float], decimals: int) -> str:
    spread = f" \N{PLUS-MINUS SIGN} {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
