"""What the hosts' CAM heads gain from the three stages in the demo's world, each through its own adapter.

    python examples/hosts_in_the_demo.py --out hosts-out

trains, for every seed, a small network with the contracts of CLIMS, of WeakTr and of FMA-WSSS
(`host_heads.py`): first as the host does, then with (a) matching, then, from the same start, with (c)
refinement and the prompts that (b) learned. It prints the table, and writes `hosts.json` and one drawing per
host. Five minutes per seed on two cores.
Context activation is the mean CAM on the background that a class usually appears with: less is better.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from host_heads import ClimsHead, FmaHead, WeakTrHead
from torch import Tensor, nn
from tqdm import tqdm

from semples_plugin import BackgroundPrompts, FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.adapters.base import CamAdapter
from semples_plugin.adapters.clims import ClimsAdapter
from semples_plugin.adapters.fma_wsss import FmaAdapter
from semples_plugin.adapters.weaktr import FineCam, WeakTrAdapter
from semples_plugin.demo.data import OBJECTS, Scenes, make_scenes
from semples_plugin.demo.network import normalize_images
from semples_plugin.demo.table import CamsOf, Judgement, draw_cams, judge
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.viz.overlays import write_picture

WEIGHTS = LossWeights(background=0.4, text=0.02, refine=0.2)  # for the tiny CLIP, as in `semples demo`


LossOf = Callable[[Tensor, Tensor], Tensor]
"""The loss of a batch of images and labels."""


class Host(ABC):
    """A host's network, its own loss before and during the stages, and its adapter."""

    baseline_steps: int
    steps: int  # of (a) and of (c)
    baseline_lr: float
    lr: float
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    model: nn.Module
    adapter: CamAdapter

    @abstractmethod
    def own_loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """What the baseline is trained with."""

    @abstractmethod
    def step(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """CAMs as the adapter takes them, on the graph, and the host's loss beside the objectives."""

    def trained(self, model: nn.Module) -> list[nn.Parameter]:
        """What (a) and (c) train."""
        return list(model.parameters())

    def dense(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """CAMs [N, K, h, w] to be judged; of the present classes at least."""
        return self.step(model, images, labels)[0]


class Clims(Host):
    """Sigmoid CAMs, CLIMS's 10 before the foreground term, and its area term, the mean of all maps.

    With matching alone sigmoid masks grow over the image; the area term keeps them small.
    """

    baseline_steps, baseline_lr = 150, 2e-3
    steps, lr = 200, 5e-4

    def __init__(self, clip: FrozenClip) -> None:
        self.model = ClimsHead(len(OBJECTS))
        weights = LossWeights(background=0.4, text=0.02, refine=0.1)
        self.adapter = ClimsAdapter(SemPLeSRegularizer(clip, OBJECTS, weights=weights), scale=10)

    def own_loss(self, model, images, labels):
        return F.binary_cross_entropy_with_logits(model.logits(images).mean((2, 3)), labels)

    def step(self, model, images, labels):
        cams = model.freeze_stem()(images)
        return cams, 2 * cams.mean()


class WeakTr(Host):
    """A ViT's fine CAM; head and fusion are trained with the objectives alone, as the authors of SemPLeS do."""

    baseline_steps, baseline_lr = 250, 2e-3
    steps, lr = 100, 5e-3

    def __init__(self, clip: FrozenClip) -> None:
        self.model = WeakTrHead(len(OBJECTS))
        self.adapter = WeakTrAdapter(SemPLeSRegularizer(clip, OBJECTS, weights=WEIGHTS), eps=1e-4)

    def own_loss(self, model, images, labels):
        return sum(F.binary_cross_entropy_with_logits(logits, labels) for logits in model(images))

    def step(self, model, images, labels):
        with FineCam(model) as fine:
            model(images)
            return fine(), images.new_zeros(())

    def trained(self, model):
        return [*model.head.parameters(), *model.adaptive_attention_fusion.parameters()]


class FmaWsss(Host):
    """Grad-CAMs of a CLIP whose context is learned, with the host's classification loss and its weight."""

    baseline_steps, baseline_lr = 100, 3e-2
    steps, lr = 200, 3e-2

    def __init__(self, clip: FrozenClip) -> None:
        own = FrozenClip.load("demo")
        self.model, self.mean, self.std = FmaHead(own, OBJECTS), own.image_mean, own.image_std
        regularizer = SemPLeSRegularizer(clip, OBJECTS, weights=WEIGHTS, input_mean=None, input_std=None)
        self.adapter = FmaAdapter(regularizer)

    def own_loss(self, model, images, labels):
        return self._classification(model(images, labels)[1], labels)

    def step(self, model, images, labels):
        cams, logits = model(images, labels)
        return cams, self._classification(logits, labels)

    def dense(self, model, images, labels):
        pairs = self.step(model, images, labels)[0]
        maps = pairs.new_zeros(*labels.shape, *pairs.shape[1:])
        maps[labels.nonzero(as_tuple=True)] = pairs
        return maps

    def _classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 0.1 * F.multilabel_soft_margin_loss(logits, labels[labels.nonzero()[:, 0]])


HOSTS = {"CLIMS": Clims, "WeakTr": WeakTr, "FMA-WSSS": FmaWsss}


class Run:
    """One host and one seed: the baseline, (a), (b) and (c)."""

    def __init__(self, name: str, seed: int, images: int, shorten: int, out: Path) -> None:
        torch.manual_seed(seed)
        self.name, self.seed, self.shorten = name, seed, shorten
        self.host: Host = HOSTS[name](FrozenClip.load("demo"))
        self.train, self.test = make_scenes(images, seed), make_scenes(min(images, 300), seed + 10_000)
        baseline = self._train_baseline()
        matched = self._train_with_semples(baseline, "(a)")
        self._learn_prompts(matched, out / f"{name}-{seed}.safetensors")
        refined = self._train_with_semples(baseline, "(c)")
        self.stages = {"baseline": baseline, "(a) matching": matched, "(c) refinement": refined}

    def judge(self) -> dict[str, Judgement]:
        """How good the CAMs of each stage are on test scenes."""
        return {stage: judge(self._cams_of(model), self.test) for stage, model in self.stages.items()}

    def draw(self) -> np.ndarray:
        """Image, mask and the CAMs of each stage."""
        return draw_cams(self.test, {stage: self._cams_of(model) for stage, model in self.stages.items()})

    def _cams_of(self, model: nn.Module) -> CamsOf:
        return lambda chosen: self.host.dense(model, *self._batch(self.test, chosen))

    def _batch(self, scenes: Scenes, chosen: slice | Tensor) -> tuple[Tensor, Tensor]:
        images = normalize_images(scenes.images[chosen], mean=self.host.mean, std=self.host.std)
        return images, torch.from_numpy(scenes.labels[chosen]).float()

    def _train_baseline(self) -> nn.Module:
        host = self.host
        model = host.model.train()
        self._train(
            lambda images, labels: host.own_loss(model, images, labels),
            list(model.parameters()),
            host.baseline_lr,
            host.baseline_steps,
            "baseline",
        )
        return model.eval()

    def _train_with_semples(self, baseline: nn.Module, stage: str) -> nn.Module:
        host = self.host
        model = copy.deepcopy(baseline)

        def loss_of(images: Tensor, labels: Tensor) -> Tensor:
            cams, own_loss = host.step(model, images, labels)
            return own_loss + host.adapter.loss(images, cams, labels)

        self._train(loss_of, host.trained(model), host.lr, host.steps, stage)
        return model

    def _train(self, loss_of: LossOf, parameters: list[nn.Parameter], lr: float, steps: int, stage: str) -> None:
        steps = max(1, steps // self.shorten)
        optimizer = torch.optim.AdamW(parameters, lr=lr)
        # One warm-up and decay for all: a transformer doesn't start without.
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
        order = torch.Generator().manual_seed(self.seed)  # (a) and (c) see the same batches
        for _ in tqdm(range(steps), f"{self.name} seed {self.seed} {stage}"):
            chosen = torch.randint(len(self.train), (16,), generator=order)
            loss = loss_of(*self._batch(self.train, chosen))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def _learn_prompts(self, matched: nn.Module, path: Path) -> None:
        adapter = self.host.adapter
        clip = adapter.regularizer.clip
        adapter.regularizer.prompts = BackgroundPrompts.for_clip(clip, OBJECTS, length=16, seed=self.seed)

        def walk() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for start in range(0, len(self.train), 100):
                images, labels = self._batch(self.train, slice(start, start + 100))
                cams, _ = self.host.step(matched, images, labels)
                yield images, cams, labels

        epochs = max(2, 20 // self.shorten)
        with warnings.catch_warnings():
            # Prompts may describe objects that masks cover by half, and the file of another seed is written anew.
            warnings.simplefilter("ignore", UserWarning)
            adapter.learn_prompts(walk(), path, epochs=epochs, lr=2e-2, progress=False)


def table(results: dict[str, dict[str, list[Judgement]]]) -> str:
    """Markdown: mean mIoU with every seed's, and mean context activation."""
    lines = ["| host | stage | mIoU [%]: mean (seeds) | context activation |", "|---|---|---|---|"]
    for host, stages in results.items():
        for stage, judgements in stages.items():
            mious = [judgement.miou for judgement in judgements]
            seeds = ", ".join(f"{miou:.1f}" for miou in mious)
            context = np.mean([judgement.context for judgement in judgements])
            lines.append(f"| {host} | {stage} | {np.mean(mious):.1f} ({seeds}) | {context:.2f} |")
    return "\n".join(lines)


def write_results(args: argparse.Namespace, results: dict[str, dict[str, list[Judgement]]]) -> None:
    rows = {
        host: {stage: [asdict(judgement) for judgement in judgements] for stage, judgements in stages.items()}
        for host, stages in results.items()
    }
    settings = {"seeds": args.seeds, "images": args.images, "shorten": args.shorten}
    with replacing(args.out / "hosts.json") as temporary:
        temporary.write_text(json.dumps({**settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[100, 101, 102], help="default: %(default)s")
    add("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS))
    add("--out", type=Path, default=Path("hosts-out"), help="folder for hosts.json and the drawings")
    add("--images", type=int, default=1000, help="training scenes")
    add("--shorten", type=int, default=1, metavar="N", help="an N-th of all steps, to try it out")
    return parser.parse_args()


def main() -> None:
    """Trains every host for every seed; prints the table, writes figures and drawings."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, list[Judgement]]] = {}
    for name in args.hosts:
        for seed in args.seeds:
            run = Run(name, seed, args.images, args.shorten, args.out)
            for stage, judgement in run.judge().items():
                results.setdefault(name, {}).setdefault(stage, []).append(judgement)
            if seed == args.seeds[0]:
                write_picture(args.out / f"{name}.png", run.draw())
            write_results(args, results)  # after every run, so that an interrupt loses none
    print(table(results))
    if args.shorten > 1 or args.images != 1000:
        print("shortened: these figures say that it runs, and no more")
    print(f"wrote hosts.json and a drawing for each host to {args.out}")


if __name__ == "__main__":
    main()
