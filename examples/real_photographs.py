"""What SemPLeS changes on real photographs: a CAM network with image labels alone, and with each stage added.

    python examples/real_photographs.py --data VOC2012 --train train --val val --seeds 0 1 2 --out photographs

trains every row of `ROWS` once per seed, from the same start and on the same batches, judges the CAMs of the
val images by their masks, and writes into --out: `table.md` and `results.json`, `report.html` with the images
that gained and lost most, the CAMs (`semples eval` reads them, with `masks/`), networks and prompts. A run that
was stopped goes on with the same command; a row whose settings have changed is trained again.

Weights and schedules are defaults for a small CLIP and a small network, in minutes on a CPU. For CLIP's
ViT-B/32 and VOC the paper has --lambda-b 2.4 --lambda-refine 0.05, 60 epochs and a learning rate of 5e-4.
"""

from __future__ import annotations

import argparse
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cam_networks import Backbone, load_backbone
from photograph_results import Results
from torch import Tensor, nn
from tqdm import tqdm
from voc_photographs import Dataset, read_dataset

from semples_plugin import (
    BackgroundPrompts,
    ClassMasks,
    FrozenClip,
    LossWeights,
    SemPLeSRegularizer,
    learn_background_prompts,
    load_preset,
)
from semples_plugin.data.image_labels import read_class_names
from semples_plugin.regularizer import sum_of

LossOf = Callable[[nn.Module, Tensor], Tensor]
"""The loss of a CAM network on the training images of some indices."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        title: what it is.
        stages: "baseline", or SemPLeS's: "match" (a), "prompts" (b), "refine" (c). (a) and (c) start from the
            baseline, (b) looks at the masks of the row "match".
        changes: settings of this row alone, by their names in `Settings`.
    """

    title: str
    stages: tuple[str, ...]
    changes: Mapping[str, float] = field(default_factory=dict)

    @property
    def after(self) -> str | None:
        """The row that must be trained before this one."""
        return {"baseline": None, "prompts": "match"}.get(self.stages[0], "baseline")


ROWS = {
    "baseline": Row("image labels alone", ("baseline",)),
    "match": Row("(a) segment-label matching", ("match",)),
    "unlearned": Row("(c) refinement, prompts not learned", ("refine",)),
    "full": Row("(b) and (c), the paper's", ("prompts", "refine")),
    "best": Row("(b) and (c), recommended", ("prompts", "refine"), {"lambda_f": 0.5, "prompt_tau": 0.3}),
}


def setting(default: float, stages: str, help_: str) -> Any:
    """A field of `Settings`: an option, and the stages that it matters to."""
    return field(default=default, metadata={"stages": set(stages.split()), "help": help_})


@dataclass(frozen=True)
class Settings:
    """Weights and schedules of all rows; each is an option of the command line."""

    batch_size: int = setting(16, "baseline match refine", "images per step")
    baseline_steps: int = setting(100, "baseline", "steps of the baseline")
    baseline_lr: float = setting(3e-3, "baseline", "learning rate of the baseline's classifier")
    backbone_lr: float = setting(1e-4, "baseline", "learning rate of the baseline's backbone")
    steps: int = setting(100, "match refine", "steps of (a), and of (c)")
    lr: float = setting(1e-4, "match refine", "learning rate of (a) and (c)")
    lambda_b: float = setting(0.6, "match refine", "weight of the background term in (1); the paper: 2.4 for VOC")
    lambda_refine: float = setting(0.2, "refine", "lambda, the weight of refinement (3); the paper: 0.05 for VOC")
    lambda_t: float = setting(0.02, "prompts", "weight of the text term in (2)")
    lambda_f: float = setting(0.0, "prompts", "weight of a term that keeps prompts off the object; not in the paper")
    prompt_tau: float = setting(1.0, "prompts", "(b) takes min(M / tau, 1) for masks; the paper: 1")
    prompt_length: int = setting(16, "prompts refine", "vectors of a prompt; the paper: 30")
    prompt_steps: int = setting(300, "prompts", "steps of (b)")
    prompt_batch_size: int = setting(128, "prompts", "pairs per step of (b)")
    prompt_lr: float = setting(2e-2, "prompts", "learning rate of (b)")

    def of(self, row: Row) -> dict[str, float]:
        """Those that matter to a row, with its changes."""
        own = replace(self, **row.changes)
        stages = set(row.stages)
        return {each.name: getattr(own, each.name) for each in fields(own) if each.metadata["stages"] & stages}


@dataclass
class Trained:
    """What a row's training left: the network, the prompts of (c), and how it went."""

    network: nn.Module
    prompts: BackgroundPrompts | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Experiment:
    """One data set, one backbone and one CLIP, with which any row is trained."""

    def __init__(self, data: Dataset, backbone: Backbone, clip: FrozenClip, settings: Settings, device: str) -> None:
        self.data, self.backbone, self.clip = data, backbone, clip
        self.settings, self.device = settings, device
        self.labels = data.train.labels.to(device)

    def train(self, name: str, seed: int, network_of: Callable[[str], nn.Module]) -> Trained:
        """Trains a row; `network_of` gives the networks of rows that were trained before, of the same seed."""
        row, settings = ROWS[name], replace(self.settings, **ROWS[name].changes)
        title = f"{name}, seed {seed}"
        if row.stages == ("baseline",):
            return self._train_baseline(settings, seed, title)
        regularizer = self._regularizer(settings)
        notes = {}
        if "refine" in row.stages:
            prompts = BackgroundPrompts.for_clip(self.clip, self.data.class_names, settings.prompt_length, seed=seed)
            regularizer.prompts = prompts
            if "prompts" in row.stages:
                notes = self._learn_prompts(regularizer, settings, seed, network_of("match"))
            else:
                prompts.learned = True  # a row of the table, no mistake to warn of

        def loss_of(network: nn.Module, index: Tensor) -> Tensor:
            return sum_of(regularizer(self._images(index), self._masks(network, index)))

        network = network_of("baseline")
        optimizer = torch.optim.AdamW(network.parameters(), settings.lr)
        # The same batches for every row, so that rows differ by their losses alone.
        batches = self._batches(settings.steps, settings.batch_size, seed, stream=1)
        losses = self._train(network, optimizer, loss_of, batches, settings.steps, title)
        return Trained(network, regularizer.prompts, {**notes, "loss": losses})

    def _train_baseline(self, settings: Settings, seed: int, title: str) -> Trained:
        """Classification by the means of the raw CAMs."""

        def loss_of(network: nn.Module, index: Tensor) -> Tensor:
            logits = network(self.data.train.inputs(index, self.device)).mean((2, 3))
            return F.multilabel_soft_margin_loss(logits, self.labels[index])

        torch.manual_seed(seed)
        network = self.new_network()
        groups = [
            {"params": network.upper.parameters(), "lr": settings.backbone_lr},
            {"params": network.classifier.parameters(), "lr": settings.baseline_lr},
        ]
        steps = settings.baseline_steps
        batches = self._batches(steps, settings.batch_size, seed, stream=0)
        losses = self._train(network, torch.optim.AdamW(groups), loss_of, batches, steps, title)
        return Trained(network, notes={"loss": losses})

    def new_network(self) -> nn.Module:
        """An untrained CAM network."""
        return self.backbone.cam_network(len(self.data.class_names)).to(self.device)

    def _regularizer(self, settings: Settings) -> SemPLeSRegularizer:
        weights = LossWeights(
            background=settings.lambda_b,
            refine=settings.lambda_refine,
            text=settings.lambda_t,
            prompt_foreground=settings.lambda_f,
        )
        statistics = {"input_mean": self.backbone.mean, "input_std": self.backbone.std}
        return SemPLeSRegularizer(self.clip, self.data.class_names, weights=weights, **statistics)

    def _learn_prompts(
        self, regularizer: SemPLeSRegularizer, settings: Settings, seed: int, matched: nn.Module
    ) -> dict[str, Any]:
        """(b): prompts learn the backgrounds of the matched network's masks; returns how it went."""

        @torch.no_grad()
        def walk() -> Iterator[tuple[Tensor, ClassMasks]]:
            for index in self.data.train.parts():
                masks = self._masks(matched, index).resized(*self.clip.image_size)
                yield self._images(index), masks.hardened(settings.prompt_tau)

        pairs = int(self.labels.sum())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of prompts that describe the object, as the verdict says
            history = learn_background_prompts(
                regularizer,
                walk(),
                epochs=max(1, round(settings.prompt_steps * settings.prompt_batch_size / pairs)),
                lr=settings.prompt_lr,
                batch_size=settings.prompt_batch_size,
                seed=seed,
            )
        separation = sum(
            quality.after.separation * count
            for quality, count in zip(history.quality, history.pairs, strict=True)
            if count
        )
        return {"separation": separation / pairs, "verdict": history.verdict}

    def _images(self, index: Tensor) -> Tensor:
        return self.data.train.images(index, self.device)

    def _masks(self, network: nn.Module, index: Tensor) -> ClassMasks:
        cams = network(self.data.train.inputs(index, self.device))
        return ClassMasks.from_dense(cams, self.labels[index]).max_normalized()

    def _batches(self, steps: int, size: int, seed: int, stream: int) -> Iterator[Tensor]:
        """Indices of training images, shuffled anew for every pass."""
        generator = torch.Generator().manual_seed(1000 * seed + stream)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(self.data.train), generator=generator)
            yield order[:size]
            order = order[size:]

    def _train(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: LossOf,
        batches: Iterator[Tensor],
        steps: int,
        title: str,
    ) -> list[float]:
        """Trains in place, with a cosine schedule; returns the mean loss of the first and of the last third."""
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for index in tqdm(batches, title, steps, unit="step"):
            loss = loss_of(network, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        third = max(steps // 3, 1)
        return [sum(losses[:third]) / third, sum(losses[-third:]) / third]


def with_earlier(names: list[str]) -> list[str]:
    """The rows of these names, and before each of them those that must be trained before."""
    chosen: dict[str, None] = {}
    for name in names:
        earlier = ROWS[name].after
        chosen |= dict.fromkeys([*(with_earlier([earlier]) if earlier else ()), name])
    return list(chosen)


def settings_of(name: str, seed: int, common: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """All that a run depends on: its own settings, and those of the run that comes before it."""
    earlier = ROWS[name].after
    return {
        **common,
        "stages": ROWS[name].stages,
        **settings.of(ROWS[name]),
        "seed": seed,
        "after": earlier and settings_of(earlier, seed, {}, settings),
    }


def run(options: argparse.Namespace) -> None:
    """Trains and judges all rows of all seeds that aren't finished yet, then writes the table and the report."""
    backbone = load_backbone(
        options.backbone,
        options.weights,
        size=options.size,
        train_from=options.train_from,
        train_all=options.train_all,
    )
    clip = load_clip(options)
    data = read_dataset(
        options.data,
        (options.train, options.val),
        read_class_names(options.classes),
        options.out,
        labels=options.labels,
        masks=options.masks,
        min_images=options.min_images,
        size=options.size,
        mean=backbone.mean,
        std=backbone.std,
    )
    if backbone.lower is not None:
        lower = backbone.lower.to(options.device)
        data.train.keep_features(lower, options.device)
        data.val.keep_features(lower, options.device)
    settings = Settings(**{each.name: getattr(options, each.name) for each in fields(Settings)})
    experiment = Experiment(data, backbone, clip, settings, options.device)
    common = {
        **{name: str(getattr(options, name)) for name in ("backbone", "weights", "size", "train_from", "train_all")},
        **{"clip": clip.name, "precision": options.precision, "view_size": clip.image_size},
        **{"classes": data.class_names, "images": [digest(data.train.names), digest(data.val.names)]},
    }
    rows = with_earlier(options.rows)
    results = Results(options.out, data, {name: ROWS[name].title for name in rows}, options.seeds)
    for seed in options.seeds:
        for name in rows:
            own = settings_of(name, seed, common, settings)
            if results.has(name, seed, own):
                print(f"{name}, seed {seed}: is in {options.out} already")
            else:
                train_and_judge(experiment, results, name, seed, own)
    print(results.write_table("match"))
    results.write_report(clip)
    print(f"wrote results.json, table.md, report.html and the CAMs to {options.out}")


def train_and_judge(
    experiment: Experiment, results: Results, name: str, seed: int, settings: Mapping[str, Any]
) -> None:
    """One row of one seed; the rows before it are in the results."""

    def network_of(earlier: str) -> nn.Module:
        return results.load_network(experiment.new_network(), earlier, seed)

    results.begin(name, seed)
    begun = time.perf_counter()
    trained = experiment.train(name, seed, network_of)
    notes = {"seconds": time.perf_counter() - begun, **trained.notes}
    results.finish(name, seed, settings, trained.network, trained.prompts, notes)
    results.write()


def load_clip(options: argparse.Namespace) -> FrozenClip:
    """The CLIP, whose views may have another size than its own."""
    clip = load_preset("voc").load_clip(
        options.clip, options.pretrained, device=options.device, precision=options.precision
    )
    if options.view_size is not None:
        clip.image_size = (options.view_size, options.view_size)
        try:
            clip.encode_images(torch.zeros(1, 3, *clip.image_size, device=clip.device))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"--view-size: {clip.name} takes images of its own size alone, as transformers do: leave it out"
            ) from error
    return clip


def digest(names: list[str]) -> str:
    """Tells one list of images from another."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder in VOC's layout: JPEGImages, ImageSets, SegmentationClassAug")
    add("--train", default="train", help="images to train on: a list in ImageSets/Segmentation, or a file's path")
    add("--val", default="val", help="images to judge by, likewise")
    add("--labels", type=Path, help="image labels of CLIMS, IRNet or WeakTr (default: cls_labels.npy in --data)")
    add("--masks", type=Path, help="masks to judge by (default: SegmentationClassAug or SegmentationClass in --data)")
    add("--classes", default="voc", help="a preset, or a text file with one class name a line (default: %(default)s)")
    add("--min-images", type=int, default=20, help="a class that fewer training images show counts as background")
    add("--clip", help="open_clip name, or local-dir:PATH (default: ViT-B/32 with OpenAI's weights)")
    add("--pretrained", help="its tag, or the path of a weights file")
    add("--precision", default="fp32", help="of CLIP: fp32, bf16 or fp16")
    add(
        "--view-size", type=int, help="side of CLIP's views, for convolutional CLIPs; less is faster (default: its own)"
    )
    add("--backbone", default="tf_efficientnet_lite0", help="one of timm's networks (default: %(default)s)")
    add("--weights", type=Path, help="its weights: a state dict, or an open_clip model with it as its image tower")
    add("--train-from", metavar="MODULE", help="first module that is trained (default: the last one alone is)")
    add("--train-all", action="store_true", help="train the whole backbone; nothing is kept, so steps take longer")
    add("--size", type=int, default=224, help="of the photographs, in pixels (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0], help="of classifier, batches and prompts")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"some of {', '.join(ROWS)}")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path("photographs-out"), help="folder for everything (default: %(default)s)")
    group = parser.add_argument_group("weights and schedules", "of all rows, unless a row has its own")
    for each in fields(Settings):
        option = f"--{each.name.replace('_', '-')}"
        help_ = f"{each.metadata['help']} (default: {each.default:g})"
        group.add_argument(option, type=type(each.default), default=each.default, metavar="X", help=help_)
    return parser


def main() -> None:
    command = parser()
    try:
        run(command.parse_args())
    except (OSError, ValueError) as error:
        command.exit(1, f"{command.prog}: {error}\n")


if __name__ == "__main__":
    main()
