"""`semples demo`: baseline, matching, prompts and refinement in the embedded world, row by row."""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from semples_plugin import (
    BackgroundPrompts,
    ClassMasks,
    FrozenClip,
    LossWeights,
    SemPLeSRegularizer,
    learn_background_prompts,
)
from semples_plugin.demo.data import OBJECTS, Scenes, make_scenes
from semples_plugin.demo.export import write_scenes, write_stage, write_world_report
from semples_plugin.demo.network import CamNet
from semples_plugin.evaluation.sweep import CamEvaluation
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD, sum_of
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.checks import check_device, check_integers
from semples_plugin.version import __version__
from semples_plugin.viz.overlays import draw_grid, overlay_cam, overlay_mask, write_picture

CamsOf = Callable[[slice], Tensor]
THRESHOLDS = np.linspace(0.02, 0.98, 49)
ROWS = ("baseline", "match", "unlearned", "full")
ABLATION = ("text only", "image only")


@dataclass(frozen=True)
class Recipe:
    """Settings of the demo. The paper's weights are for ViT-B/32; a tiny CLIP has other cosines."""

    train_images: int = 1000
    test_images: int = 300
    baseline_steps: int = 150
    baseline_lr: float = 2e-3
    steps: int = 100
    batch_size: int = 16
    lr: float = 5e-4
    prompt_length: int = 16
    prompt_steps: int = 200
    prompt_batch_size: int = 128
    prompt_lr: float = 2e-2
    weights: LossWeights = LossWeights(background=0.4, text=0.02, refine=0.2)  # noqa: RUF009, it is frozen


@dataclass(frozen=True)
class Judgement:
    """What CAMs are worth on scenes with exact masks.

    Attributes:
        miou: over 8 objects and background at the best threshold, in percent.
        threshold: that one.
        coverage: mean CAM over the pixels of its object, in [0, 1].
        context: mean CAM over the pixels of its object's own context: the false activation, in [0, 1].
    """

    miou: float
    threshold: float
    coverage: float
    context: float


def run_demo(
    seeds: Sequence[int],
    out: str | Path,
    device: str = "cpu",
    ablation: bool = False,
    *,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs all rows for every seed and prints the table.

    Writes the prompts and, after every seed, `results.json`; of the first seed `grid.png`, `report.html`, test scenes
    and CAMs. Seeds that `results.json` holds already are taken from there, so a stopped call goes on where it was.

    Args:
        seeds: one run each; a seed decides scenes, network and order.
        out: folder for the results.
        device: of torch.
        ablation: also the rows of Table 5 with one half of (2).
        recipe: sizes, steps and weights; those of the published table by default.
        progress: show progress bars.

    Returns:
        What `results.json` holds: `settings`, and by seed `rows` (the `Judgement` of each), `drifted` and `seconds`.

    Raises:
        OSError: where `out` can't be written into.
        ValueError: for seeds below 0 or twice, a device that isn't there, or an `out` with results of other settings.
    """
    out, recipe = Path(out), recipe or Recipe()
    check_integers("seeds", seeds, least=0)
    out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    check_device(device)
    names = (*ROWS[:3], *ABLATION, "full") if ablation else ROWS
    results = _open_results(
        out / "results.json",
        {"recipe": asdict(recipe), "rows": list(names), "device": str(device), "threads": torch.get_num_threads(),
         "version": __version__},
    )  # fmt: skip
    if kept := [str(seed) for seed in seeds if str(seed) in results["seeds"]]:
        print(f"{out}/results.json has seeds {', '.join(kept)} already; without that file they are trained anew\n")
    try:
        clip = FrozenClip.load("demo", device=device)
        for seed in seeds:
            if str(seed) not in results["seeds"]:
                _run_seed(_World(clip, seed, recipe, progress), names, out, results)
    except KeyboardInterrupt:
        there = ", ".join(results["seeds"]) or "none"
        print(f"seeds in {out}/results.json: {there}; the same command goes on with the others", file=sys.stderr)
        raise
    runs = results["seeds"]
    chosen = {seed: runs[str(seed)] for seed in seeds}
    rows = {name: [Judgement(**run["rows"][name]) for run in chosen.values()] for name in names}
    print(format_table(rows))
    print(f"\n{explain(rows)}")
    drifted = [f"seed {seed}: {', '.join(run['drifted'])}" for seed, run in chosen.items() if run["drifted"]]
    if drifted:
        print(f"Prompts that came nearest to their own object, where refinement can't help: {'; '.join(drifted)}.")
    print(f"\n{sum(run['seconds'] for run in chosen.values()):.0f} s; {out}/report.html shows seed {next(iter(runs))}; "
          "pictures, prompts, figures and CAMs are beside it")  # fmt: skip
    return results


def _open_results(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the file holds, if it was made with the same settings; what a new one begins with, if there is none."""
    if not file.exists():
        return {"settings": settings, "seeds": {}}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        old = found.get("settings", {})
        others = [name for name, value in settings.items() if old.get(name) != json.loads(json.dumps(value))]
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, or choose another --out") from error
    if others:
        raise ValueError(
            f"{file} holds results of other settings ({', '.join(others)}), which are not mixed or overwritten: choose "
            "another --out, or delete it"
        )
    return found


def _run_seed(world: _World, names: Sequence[str], out: Path, results: dict[str, Any]) -> None:
    """Trains a seed's rows, and writes its files and then its figures, with which it is done."""
    started = time.perf_counter()
    rows = {name: asdict(judgement) for name, judgement in world.run(names).items()}
    world.regularizer.prompts.save(out / f"prompts-{world.seed}.safetensors")  # type: ignore[union-attr]
    if not results["seeds"]:
        write_picture(out / "grid.png", world.draw())
        world.export(out)
    seconds = round(time.perf_counter() - started, 1)
    run = {"rows": rows, "drifted": world.drifted, "seconds": seconds}
    grown = {**results, "seeds": {**results["seeds"], str(world.seed): run}}
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps(grown, indent=2) + "\n")
    results.update(grown)


def normalize_images(
    images: np.ndarray,
    device: str | torch.device = "cpu",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """uint8 RGB `[N, H, W, 3]` to normalised floats `[N, 3, H, W]`."""
    shift, scale = torch.tensor([mean, std], device=device).view(2, 1, 3, 1, 1)
    return (torch.from_numpy(images).to(device).permute(0, 3, 1, 2) / 255 - shift) / scale


def format_table(rows: dict[str, list[Judgement]]) -> str:
    """The rows with mean and standard deviation over the seeds."""
    titles = {
        "baseline": "baseline: image labels alone",
        "match": "(a) + segment-label matching",
        "unlearned": "(c) + refinement, prompts not learned",
        "text only": "(c) + refinement, prompts from L_T alone",
        "image only": "(c) + refinement, prompts from L_I alone",
        "full": "(c) + refinement, learned prompts (full)",
    }
    count = len(next(iter(rows.values())))
    of = "one seed" if count == 1 else f"mean of {count} seeds (standard deviation)"
    lines = [f"{of:42}  mIoU [%]      coverage      context activation"]
    for name, judgements in rows.items():
        cells = []
        for field, form in (
            ("miou", "5.1f"),
            ("coverage", "5.2f"),
            ("context", "5.2f"),
        ):
            values = np.array([getattr(judgement, field) for judgement in judgements])
            spread = f" ({values.std(ddof=1):{form[1:]}})" if count > 1 else ""
            cells.append(f"{values.mean():{form}}{spread}")
        lines.append(f"{titles[name]:42}  " + "  ".join(f"{cell:12}" for cell in cells).rstrip())
    return "\n".join(lines)


def explain(rows: dict[str, list[Judgement]]) -> str:
    """Two sentences on what the table shows, whatever it shows."""
    miou = {name: np.array([judgement.miou for judgement in judgements]) for name, judgements in rows.items()}
    matching, refinement, learning = (
        miou[after] - miou[before]
        for before, after in (("baseline", "match"), ("match", "full"), ("unlearned", "full"))
    )
    context = [
        float(np.mean([judgement.context for judgement in rows[name]])) for name in ("baseline", "match", "full")
    ]
    falls = context[0] > context[1] > context[2]
    return (
        f"Matching image regions to their label changes the CAMs' mIoU by {matching.mean():+.1f} points, refinement "
        f"with background prompts learned from images and labels alone by a further {refinement.mean():+.1f} (better "
        f"in {(refinement > 0).sum()} of {len(refinement)} seeds; {learning.mean():+.1f} over prompts that were not "
        f"learned). The activation of co-occurring backgrounds {'falls' if falls else 'does not fall'} at each step, "
        f"from {context[0]:.2f} over {context[1]:.2f} to {context[2]:.2f}."
    )


class _World:
    """One seed: its scenes, its baseline and the rows that start from it."""

    def __init__(self, clip: FrozenClip, seed: int, recipe: Recipe, progress: bool) -> None:
        self.clip, self.seed, self.recipe, self.progress = clip, seed, recipe, progress
        self.train = make_scenes(recipe.train_images, seed)
        self.test = make_scenes(recipe.test_images, seed + 10_000)
        self.images = normalize_images(self.train.images, clip.device)
        self.labels = torch.from_numpy(self.train.labels).to(clip.device)
        self.regularizer = self._regularizer(recipe.weights)
        self.nets: dict[str, CamNet] = {}
        self.drifted: list[str] = []

    def run(self, names: Sequence[str]) -> dict[str, Judgement]:
        """Trains every row; (c) starts from the baseline again, as the release does."""
        baseline = self.nets["baseline"] = self._train_baseline()
        matched = self.nets["match"] = self._train(baseline, self.regularizer, "match")
        for name in names[2:]:
            weights = self.recipe.weights
            if name == "text only":
                weights = replace(weights, image=0.0)
            elif name == "image only":
                weights = replace(weights, text=0.0)
            regularizer = self._regularizer(weights)
            regularizer.prompts = BackgroundPrompts.for_clip(
                self.clip, OBJECTS, self.recipe.prompt_length, seed=self.seed
            )
            if name == "unlearned":
                regularizer.prompts.learned = True  # a row of the table, no mistake to warn of
            else:
                self._learn_prompts(regularizer, matched)
            with warnings.catch_warnings():
                if (
                    name == "text only"
                ):  # its prompts lie so far from everything that they teach nothing, which it shows
                    warnings.simplefilter("ignore", UserWarning)
                self.nets[name] = self._train(baseline, regularizer, name)
            self.regularizer = regularizer
        return {name: judge(self._cams_of(name), self.test) for name in names}

    def draw(self) -> np.ndarray:
        """The CAMs of baseline, matching and full on test scenes."""
        titles = {"baseline": "baseline", "match": "+ matching", "full": "+ SemPLeS"}
        return draw_cams(self.test, {title: self._cams_of(name) for name, title in titles.items()})

    def export(self, folder: Path) -> None:
        """Test scenes and CAMs as files, and a report on them."""
        titles = {"baseline": "baseline", "full": "SemPLeS"}
        write_scenes(folder, self.test)
        for name in ("baseline", "match", "full"):
            cams = [_judged(self._cams_of(name), self.test, slice(i, i + 100)) for i in range(0, len(self.test), 100)]
            write_stage(folder / "cams" / name, self.test, np.concatenate(cams))
        prompts = self.regularizer.prompts
        assert prompts is not None
        write_world_report(folder, titles, prompts, self.clip, self.progress)

    def _cams_of(self, name: str) -> CamsOf:
        return lambda part: self.nets[name](normalize_images(self.test.images[part], self.clip.device))

    def _regularizer(self, weights: LossWeights) -> SemPLeSRegularizer:
        return SemPLeSRegularizer(self.clip, OBJECTS, weights=weights)

    def _batches(self, steps: int, stream: int) -> Iterator[Tensor]:
        """Indices of training images, reshuffled for every pass."""
        generator = torch.Generator().manual_seed(self.seed * 1_000 + stream)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < self.recipe.batch_size:
                order = torch.randperm(len(self.images), generator=generator)
            yield order[: self.recipe.batch_size]
            order = order[self.recipe.batch_size :]

    def _train_baseline(self) -> CamNet:
        torch.manual_seed(self.seed)
        net = CamNet(len(OBJECTS)).to(self.clip.device).train()
        steps = self.recipe.baseline_steps
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.recipe.baseline_lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for index in self._bar(self._batches(steps, 0), steps, "baseline"):
            logits = net(self.images[index]).mean((2, 3))
            loss = F.binary_cross_entropy_with_logits(logits, self.labels[index].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return net.eval()

    def _train(self, baseline: CamNet, regularizer: SemPLeSRegularizer, name: str) -> CamNet:
        """Stage (a) or (c), with batch norm in eval mode: its statistics are the baseline's."""
        net = copy.deepcopy(baseline)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.recipe.lr)
        # Every row sees the same batches, so that rows differ by their losses alone.
        for index in self._bar(self._batches(self.recipe.steps, 1), self.recipe.steps, name):
            masks = ClassMasks.from_dense(net(self.images[index]), self.labels[index]).max_normalized()
            loss = sum_of(regularizer(self.images[index], masks))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net

    def _learn_prompts(self, regularizer: SemPLeSRegularizer, matched: CamNet) -> None:
        recipe = self.recipe
        pairs = int(self.labels.sum())
        epochs = round(recipe.prompt_steps * recipe.prompt_batch_size / pairs)

        @torch.no_grad()
        def batches() -> Iterator[tuple[Tensor, ClassMasks]]:
            for index in torch.arange(len(self.images)).split(100):
                cams = matched(self.images[index])
                yield self.images[index], ClassMasks.from_dense(cams, self.labels[index]).max_normalized()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of drift, which `run_demo` tells with the results
            history = learn_background_prompts(
                regularizer, batches(), epochs=epochs, lr=recipe.prompt_lr, batch_size=recipe.prompt_batch_size,
                seed=self.seed, progress=self.progress,
            )  # fmt: skip
        self.drifted = history.drifted

    def _bar(self, batches: Iterator[Tensor], steps: int, name: str) -> Iterator[Tensor]:
        return iter(tqdm(batches, f"seed {self.seed} {name}", steps, disable=not self.progress))


def judge(cams_of: CamsOf, scenes: Scenes) -> Judgement:
    """Compares the CAMs of the present classes with the exact masks of objects and contexts.

    Args:
        cams_of: gives the raw CAMs `[n, K, h, w]` of the scenes in a slice.
        scenes: N of them.
    """
    evaluation = CamEvaluation(len(OBJECTS), THRESHOLDS)
    on_object, on_context = [], []
    for start in range(0, len(scenes), 100):
        for i, cams in enumerate(_judged(cams_of, scenes, slice(start, start + 100)), start):
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


def draw_cams(scenes: Scenes, stages: Mapping[str, CamsOf]) -> np.ndarray:
    """Image, mask and the CAMs of every stage, for scenes with one object, each of another class."""
    single = np.flatnonzero(scenes.labels.sum(1) == 1)
    first = [next((i for i in single if scenes.labels[i, k]), None) for k in range(len(OBJECTS))]
    grid = []
    for i in [i for i in first if i is not None][:6]:
        image, k = scenes.images[i], int(scenes.labels[i].argmax())
        cams = [_judged(cams_of, scenes, slice(i, i + 1))[0, k] for cams_of in stages.values()]
        grid.append([image, overlay_mask(image, scenes.objects[i]), *(overlay_cam(image, cam) for cam in cams)])
    return draw_grid(grid, ["image", "mask", *stages])


@torch.no_grad()
def _judged(cams_of: CamsOf, scenes: Scenes, part: slice) -> np.ndarray:
    """ReLU CAMs divided by their maxima, at the images' resolution: `[n, K, H, W]` in [0, 1]."""
    cams = F.interpolate(cams_of(part).relu(), scenes.images.shape[1:3], mode="bilinear", align_corners=False)
    return (cams / cams.amax((2, 3), keepdim=True).clamp(min=1e-12)).cpu().numpy()
